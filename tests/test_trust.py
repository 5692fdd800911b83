"""What is promised of files and folders: strangers' run no code and fill no memory, damage is noticed, one writer."""

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import small_envs  # noqa: F401  registers what the tests play
import torch
from stand_ins import ROOT

import evaluate
import harness.archive
import harness.checkpoint
import harness.run
import ppo_lstm
import ppo_palmer
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.flags import check_args, run_script
from harness.folder import RunFolder
from harness.input_error import InputError, RunError
from harness.lock import lock_folder
from harness.progress import Interrupt, Progress
from harness.resume import check_saved, put_back
from harness.run import Run
from memory_aids import MemoryAids
from replay.film import DRAFTS
from scripts import torture
from scripts.children import FORK, run_child
from scripts.tampering import at_place, mutations, paths
from study.measure_gate import load_players
from tasks import make_envs

TINY = torture.TINY | {"total_timesteps": 64, "eval_every": 0, "checkpoint_every": 60.0}


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(script, folder, **changed):
    attention = {} if script is ppo_lstm else {"trxl_heads": 2, "memory_length": 6}
    return script.Args(**TINY | attention | {"run_dir": str(folder)} | changed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs, of each kind of environment -> their folders."""
    folder = tmp_path_factory.mktemp("runs")
    ppo_palmer.main(tiny(ppo_palmer, folder / "table"))
    ppo_lstm.main(tiny(ppo_lstm, folder / "lstm"))
    flags = {"env_id": "small_envs:Case/Bit-v0", "max_episode_steps": None}
    ppo_palmer.main(tiny(ppo_palmer, folder / "gymnasium", **flags))
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """copied("table") -> a copy of that run that may be spoilt."""

    def copy(name):
        target = tmp_path / name
        shutil.copytree(runs / name, target)
        return target

    return copy


def change(folder, **fields):
    """Other arguments in both files of a run."""
    config, saved = json.loads((folder / "config.json").read_text()), load_checkpoint(folder / "checkpoint.pt")
    config["args"] |= fields
    (folder / "config.json").write_text(json.dumps(config))
    save_checkpoint(folder / "checkpoint.pt", saved | {"args": saved["args"] | fields})


def contents(folder):
    """All bytes in a folder, but for the lock, which is empty."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != ".lock"}


def refused(work, *words):
    """Ends in one sentence with these words."""
    with pytest.raises(InputError) as error:
        work()
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.startswith("--") and sentence.endswith(".")
    for word in words:
        assert word in sentence, sentence
    return sentence


# ------------------------------------------------------------------------------------ strangers: no code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module whose import would be noticed -> is it imported?"""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "a_strangers_module.py").write_text("import small_envs")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.delitem(sys.modules, "a_strangers_module", raising=False)
    return lambda: "a_strangers_module" in sys.modules


def test_a_module_that_only_a_file_names_is_not_imported(copied, module):
    folder, env_id = copied("gymnasium"), "a_strangers_module:Case/Bit-v0"
    change(folder, env_id=env_id)
    file = str(folder / "checkpoint.pt")
    for given in ({}, {"env_kwargs": "{}"}):
        refused(lambda given=given: evaluate.main(evaluate.Args(checkpoint=file, **given)), f"--env-id {env_id}")
    refused(lambda: load_players((Path(file),)), f"--env-id {env_id}")
    before = contents(folder)
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder))), "--resume", f"--env-id {env_id}")
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder), env_id="small_envs:Case/Bit-v0")), "--env-id")
    assert not module() and contents(folder) == before
    # Another environment, named by the user, is played without the file's.
    evaluate.main(evaluate.Args(checkpoint=file, env_id="small_envs:Case/Bit-v0", episodes=1))
    assert not module()
    evaluate.main(evaluate.Args(checkpoint=file, env_id=env_id, episodes=1))
    assert module()
    summary = ppo_palmer.main(ppo_palmer.Args(resume=str(folder), env_id=env_id, total_timesteps=96))
    assert summary["steps"] == 96


def test_arguments_that_only_a_file_names_make_no_environment(copied, monkeypatch):
    """They may name modules, files and sizes."""
    folder, kwargs = copied("table"), '{"size": 1000000001}'
    change(folder, env_kwargs=kwargs)
    file = str(folder / "checkpoint.pt")
    monkeypatch.setattr(evaluate, "make_real_env", lambda *a: pytest.fail("made"))
    refused(lambda: evaluate.main(evaluate.Args(checkpoint=file)), "--env-kwargs", "1000000001")
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder))), "--env-kwargs", "1000000001")


def test_the_printed_commands_repeat_what_no_file_is_trusted_with(tmp_path, capsys):
    args = tiny(ppo_lstm, tmp_path / "run", env_id="small_envs:X-v0", env_kwargs='{"a": 1}')
    folder = RunFolder(args.run_dir, args, "lstm")
    folder.say_what_next("lstm", stopped=True)
    folder.close()
    out = capsys.readouterr().out
    assert out.count(" --env-id small_envs:X-v0 --env-kwargs '{\"a\": 1}'\n") == 2


def test_the_printed_commands_can_be_pasted(tmp_path, capsys):
    args = tiny(ppo_lstm, tmp_path / "a run's")
    folder = RunFolder(args.run_dir, args, "lstm")
    folder.say_what_next("lstm", stopped=True)
    folder.close()
    commands = [line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if " python " in line]
    assert [shlex.split(command)[3] for command in commands] == [args.run_dir + "/checkpoint.pt", args.run_dir]


def test_no_log_outside_of_the_folder_is_cut(copied, tmp_path):
    folder, secret = copied("table"), tmp_path / "secret"
    secret.write_text("x" * 1000)
    saved = load_checkpoint(folder / "checkpoint.pt")
    resume = lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder)))  # noqa: E731
    for name in ("../secret", str(secret), "config.json", "events.out.tfevents.../../../secret"):
        sizes = saved["log_sizes"] | {name: 1}
        save_checkpoint(folder / "checkpoint.pt", saved | {"log_sizes": sizes})
        refused(resume, "--resume")
    save_checkpoint(folder / "checkpoint.pt", saved)
    shutil.copy(folder / "metrics.jsonl", secret)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(secret)
    before = secret.read_bytes()
    refused(resume, "--resume", "metrics.jsonl")
    assert secret.read_bytes() == before


# ------------------------------------------------------------------------------------ strangers: no memory


def rezipped(source, target, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """A checkpoint of the format without a checksum, its entries changed."""
    saved = load_checkpoint(source)
    plain = io.BytesIO()
    torch.save(saved | {"format": 2}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def test_what_is_unpacked_is_no_larger_than_the_file(runs, tmp_path, monkeypatch):
    source, file = runs / "lstm" / "checkpoint.pt", tmp_path / "c.pt"
    load_checkpoint(rezipped(source, file))
    refused(lambda: load_checkpoint(rezipped(source, file, compression=zipfile.ZIP_DEFLATED)), "compressed")
    data = bytearray(rezipped(source, file).read_bytes())
    at = data.index(b"PK\1\2")  # of the first entry in the directory, both of its sizes
    data[at + 20 : at + 28] = 2 * (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)
    refused(lambda: load_checkpoint(file), "larger than the file")
    for limit, words in (("MOST_ENTRIES", "entries"), ("LARGEST_FILE", "bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(harness.archive, limit, 3)
            refused(lambda: load_checkpoint(source), words)


FORBIDDEN = [
    b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    b"ctorch\nzeros\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
    b"cos\nsystem\nX\x05\x00\x00\x00false\x85R.",
    b"\x8c\x02os\x8c\x06system\x93X\x05\x00\x00\x00false\x85R.",
    b"r\xff\xff\xff\x7f.",  # room for 2**31 values
    b"}q\x01X\x01\x00\x00\x00ah\x01s.",  # a dict that holds itself
    b"]q\x01" + b"".join(b"]q%c(h%ch%ch%ce" % (n + 1, n, n, n) for n in range(1, 19)) + b".",  # 3**18 lists
    b"(" * 1000 + b"t" * 1000 + b".",
]


@pytest.mark.parametrize("pickled", FORBIDDEN)
def test_a_pickle_can_do_nothing_but_describe(runs, tmp_path, pickled):
    def swapped(name, data):
        return b"\x80\x02" + pickled if name.endswith("data.pkl") else data

    file = rezipped(runs / "lstm" / "checkpoint.pt", tmp_path / "c.pt", swapped)
    refused(lambda: load_checkpoint(file), "damaged")


@pytest.mark.parametrize(
    "size, stride, elements", [(10**12, 0, 3), (10**12, 1, 10**12), (3, 2, 3), (2, 1, 3), (3, 1, 4)]
)
def test_a_tensor_is_as_large_as_its_numbers(tmp_path, size, stride, elements):
    """Of elements that are stored once and counted often, memory would be full; of such beyond the end, anything."""
    pickled = io.BytesIO()
    file = tmp_path / "c.pt"
    torch.save({"algo": "lstm", "format": 2, "w": torch.tensor([1.0, 2.0, 3.0])}, file)
    with zipfile.ZipFile(file) as old:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
    whole = next(name for name in entries if name.endswith("data.pkl"))
    three = lambda number: pickle.dumps(number, 2)[2:-1]  # noqa: E731
    data = entries[whole]
    assert data.count(b"K\x03\x85") == 1 and data.count(b"K\x03tq") == 1 and data.count(b"K\x01\x85") == 1
    data = data.replace(b"K\x03tq", three(elements) + b"tq").replace(b"K\x03\x85", three(size) + b"\x85")
    entries[whole] = data.replace(b"K\x01\x85", three(stride) + b"\x85")
    with zipfile.ZipFile(pickled, "w") as new:
        for name, entry in entries.items():
            new.writestr(name, entry)
    file.write_bytes(pickled.getvalue())
    refused(lambda: load_checkpoint(file), "damaged")


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 8000},
        {"width": 30_000},
        {"lstm_layers": 64},
        {"lstm_layers": 10**9},
        {"width": "8"},
        {"width": None},
    ],
)
def test_a_network_is_made_only_if_its_sizes_are_those_of_the_file(copied, changed, monkeypatch):
    folder = copied("lstm")
    change(folder, **changed)
    make, made = evaluate.make_policy, []

    def watched(*args):
        policy = make(*args)
        made.extend(str(parameter.device) for parameter in policy.parameters())
        return policy

    monkeypatch.setattr(evaluate, "make_policy", watched)
    monkeypatch.setattr(ppo_lstm, "make_policy", watched)
    refused(lambda: evaluate.main(evaluate.Args(checkpoint=str(folder / "checkpoint.pt"))), "--checkpoint")
    refused(lambda: ppo_lstm.main(ppo_lstm.Args(resume=str(folder))), "--resume")
    assert set(made) <= {"meta"}


def test_stored_arguments_are_checked_as_flags_are():
    for name, value, words in (
        ("width", "many", "--width many: must be a whole number from 1 to 8,192."),
        ("width", True, "--width True: must be a whole number from 1 to 8,192."),
        ("width", 8.0, "--width 8.0: must be a whole number from 1 to 8,192."),
        ("gamma", "1", "--gamma 1: must be a number from 0 to 1."),
        ("cuda", 1, "--cuda 1: must be True or False."),
        ("env_id", None, "--env-id None: must be a text."),
        ("obs_mode", "pictures", "--obs-mode pictures: must be rgb or symbolic."),
        ("max_episode_steps", "3", "--max-episode-steps 3: must be a whole number from 0 to 1,000,000 or None."),
        ("fixed_gate", [], "--fixed-gate []: must be a number from 0 to 1 or None."),
        ("seed", 10**200, "--seed 1" + "0" * 76 + "...: must be from 0 to 99,999,999."),
    ):
        with pytest.raises(InputError) as error:
            check_args(dataclasses.replace(ppo_palmer.Args(), **{name: value}))
        assert str(error.value) == words


# ------------------------------------------------------------------------------------ damage


def test_every_flipped_bit_and_every_lost_end_is_noticed(tmp_path):
    file = tmp_path / "c.pt"
    save_checkpoint(file, {"algo": "palmer", "weights": torch.arange(5.0), "step": 4})
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        for damaged in (flipped, whole[:at]):
            file.write_bytes(damaged)
            refused(lambda: load_checkpoint(file), "damaged")
    file.write_bytes(whole + b"\0")
    refused(lambda: load_checkpoint(file), "damaged")
    file.write_bytes(whole)
    assert load_checkpoint(file)["step"] == 4


def test_without_a_checksum_the_crcs_tell(tmp_path):
    """Files of the format before had none."""
    file, payload = tmp_path / "c.pt", {"algo": "palmer", "weights": torch.arange(1000.0), "format": 2}
    torch.save(payload, file)
    whole = file.read_bytes()
    assert torch.equal(load_checkpoint(file)["weights"], payload["weights"])
    at = whole.index(torch.arange(1000.0).numpy().tobytes()) + 999
    for damaged in (whole[:at] + b"\xff" + whole[at + 1 :], whole[:-1], whole + b"\0"):
        file.write_bytes(damaged)
        refused(lambda: load_checkpoint(file), "damaged")
    torch.save(payload | {"format": 3}, file)
    refused(lambda: load_checkpoint(file), "format 3")


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.tensor(float("inf")), float("nan")])
def test_what_is_not_finite_is_refused(tmp_path, value):
    torch.save({"algo": "palmer", "weights": value, "format": 2}, tmp_path / "c.pt")
    refused(lambda: load_checkpoint(tmp_path / "c.pt"), "damaged")


def test_what_is_not_finite_is_not_saved_over_what_is(tmp_path, monkeypatch):
    ppo_lstm.main(tiny(ppo_lstm, tmp_path / "run"))
    update = ppo_lstm.update

    def overflowing(args, policy, *others):
        losses = update(args, policy, *others)
        next(policy.parameters()).data.view(-1)[0] = math.inf
        return losses

    monkeypatch.setattr(ppo_lstm, "update", overflowing)
    with pytest.raises(RunError, match="checkpoint.policy.* is not finite"):
        ppo_lstm.main(ppo_lstm.Args(resume=str(tmp_path / "run"), total_timesteps=96))
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 64


def test_an_agent_whose_outputs_are_not_finite_plays_no_action(copied, capsys):
    folder = copied("lstm")
    saved = load_checkpoint(folder / "checkpoint.pt")
    saved["policy"]["actor.weight"] = torch.full_like(saved["policy"]["actor.weight"], 3e38)
    saved["policy"]["actor.bias"] = torch.full_like(saved["policy"]["actor.bias"], 3e38)
    save_checkpoint(folder / "checkpoint.pt", saved)
    with pytest.raises(RunError, match="not finite"):
        evaluate.main(evaluate.Args(checkpoint=str(folder / "checkpoint.pt"), episodes=2))


# ------------------------------------------------------------------------------------ one writer


def exit_code_of(work):
    process = FORK.Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_a_second_process_is_refused_before_anything_is_written(copied, tmp_path):
    folder = copied("table")
    lock = lock_folder(folder, "--resume")
    before = contents(folder)
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder), total_timesteps=96)), "another process")
    assert contents(folder) == before
    lock.release()
    assert ppo_palmer.main(ppo_palmer.Args(resume=str(folder), total_timesteps=96))["steps"] == 96

    lock = lock_folder(tmp_path, "--run-dir")
    refused(lambda: RunFolder(tmp_path, tiny(ppo_lstm, tmp_path), "lstm"), "--run-dir", "another process")
    lock.release()


def test_a_refused_run_and_a_closed_one_leave_no_lock(copied, tmp_path):
    folder = copied("table")
    change(folder, width=16)
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder))), "--resume")
    lock_folder(folder, "--resume").release()


def test_a_killed_processs_lock_needs_no_hand(tmp_path):
    def killed():
        lock_folder(tmp_path, "--resume")
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(killed) == -signal.SIGKILL
    lock_folder(tmp_path, "--resume").release()


def test_of_several_processes_the_first_takes_the_lock(copied, monkeypatch):
    folder = copied("table")
    lock = lock_folder(folder, "--resume")
    monkeypatch.setenv("RANK", "1")
    Run(ppo_palmer.Args(resume=str(folder)), "palmer")
    monkeypatch.setenv("RANK", "0")
    refused(lambda: Run(ppo_palmer.Args(resume=str(folder)), "palmer"), "another process")
    lock.release()


def test_where_there_are_no_locks_runs_do_without(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.lock.fcntl", None)
    lock_folder(tmp_path, "--resume").release()
    assert not list(tmp_path.iterdir())


def test_a_run_killed_before_its_first_checkpoint_starts_afresh_with_the_same_command(tmp_path):
    args = tiny(ppo_lstm, tmp_path / "run")
    first = RunFolder(args.run_dir, args, "lstm")
    first.log(5, {"a": 1.0})
    (first.path / "checkpoint.pt.tmp").write_text("half a file")
    draft = first.path / "videos" / f"{DRAFTS}999999999-x"  # of a film; no process has that number
    draft.mkdir(parents=True)
    first.close()
    ppo_lstm.main(args)
    assert not draft.exists()
    steps = [json.loads(line)["step"] for line in (first.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [32, 64, 64]
    assert len(list(first.path.glob("events*"))) == 1 and not list(first.path.glob("*.tmp"))
    refused(lambda: ppo_lstm.main(args), "--run-dir", "--resume")
    (first.path / "checkpoint.pt").unlink()  # it has finished: this is no folder to write over
    refused(lambda: ppo_lstm.main(args), "--run-dir")


# ------------------------------------------------------------------------------------ disks


def ended(script, args, monkeypatch, capsys):
    """As from the command line -> exit code, what was printed on stderr."""
    monkeypatch.setattr(sys, "argv", ["ppo_test.py"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda _: script.main(args), script.Args, {}, "")
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace", "torch.save"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_ends_a_run_in_one_sentence_and_keeps_the_earlier_checkpoint(
    copied, monkeypatch, capsys, failing, error
):
    folder = copied("lstm")

    def full(*args):
        raise OSError(error, os.strerror(error))

    (folder / "checkpoint.pt.tmp").write_text("of a kill")
    before = contents(folder)["checkpoint.pt"]
    args = ppo_lstm.Args(resume=str(folder), total_timesteps=96)
    with monkeypatch.context() as patch:
        patch.setattr("harness.run.save_checkpoint", lambda *a: patch.setattr(failing, full) or save_checkpoint(*a))
        code, text = ended(ppo_lstm, args, monkeypatch, capsys)
    assert code == 1 and text.count("\n") == 1 and os.strerror(error) in text
    assert "the checkpoint of 64 steps is kept" in text and f"--resume {folder}" in text
    assert contents(folder)["checkpoint.pt"] == before and not list(folder.glob("*.tmp"))
    assert ppo_lstm.main(args)["steps"] == 96, "there is space again"


def test_a_folder_that_is_removed_while_running(tmp_path, monkeypatch, capsys):
    args = tiny(ppo_lstm, tmp_path / "run")

    def removed(*a):
        shutil.rmtree(tmp_path / "run")
        return save_checkpoint(*a)

    monkeypatch.setattr("harness.run.save_checkpoint", removed)
    code, text = ended(ppo_lstm, args, monkeypatch, capsys)
    assert code == 1 and text.count("\n") == 1 and "No such file" in text and "nothing was saved" in text


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(copied, monkeypatch, capsys):
    folder = copied("lstm")

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for failing in ("os.truncate", "os.replace", "harness.folder.open_tensorboard"):
        with monkeypatch.context() as patch:
            patch.setattr(failing, read_only)
            code, text = ended(ppo_lstm, ppo_lstm.Args(resume=str(folder)), monkeypatch, capsys)
        assert code == 2 and text.count("\n") == 1 and "--resume" in text and "Read-only" in text
    lock_folder(folder, "--resume").release()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("kilobytes", [64, 300])
def test_a_disk_that_is_really_full(tmp_path, kilobytes):
    """In a process of its own, as a copy of this one: threads fail as well."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        log = tmp_path.parent / "log"
        code = run_child(ppo_palmer, tiny(ppo_palmer, tmp_path / "run"), log)
        text = log.read_text()
        assert code == 1 and "Traceback" not in text and "No space left" in text.splitlines()[-1]
        assert not list((tmp_path / "run").glob("*.tmp"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ------------------------------------------------------------------------------------ signals


def test_a_closed_terminal_is_written_to_no_more(monkeypatch):
    """SIGHUP comes once the terminal is gone, and a write to it would end the run before it has saved."""
    terminal, ours = os.openpty()
    written = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == ours)
    monkeypatch.setattr(os, "write", lambda descriptor, text: written.append(descriptor))
    with Interrupt() as interrupt:
        interrupt._terminals = [ours]
        os.close(terminal)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.requested and os.fstat(ours).st_rdev == os.stat(os.devnull).st_rdev
    os.close(ours)


def test_nohup_is_respected():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_progress_goes_on_where_nobody_reads():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(100, stream=Closed())
    for step in (50, 100):
        progress.update(step, sps=1.0, success_rate=0.5, length=1.0, episodic_return=1.0)
    progress.note("saved")
    progress.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_in_the_final_evaluation_keeps_what_was_trained(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(harness.run, "evaluate_policy", lambda *a, **k: os.kill(os.getpid(), number))
    code, text = ended(ppo_lstm, tiny(ppo_lstm, tmp_path / "run"), monkeypatch, capsys)
    assert code == 130 and "the checkpoint of 64 steps is kept" in text and len(text.strip().splitlines()) == 1
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 64


@pytest.mark.parametrize("script", ["ppo_palmer.py", "ppo_lstm.py", "ppo_trxl.py", "evaluate.py", "export.py"])
def test_ctrl_c_while_pytorch_is_imported_is_one_sentence(tmp_path, script):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\nstopped while starting.\n")
    # Where another program imports a script, Ctrl-C is that program's.
    python = [sys.executable, "-c", f"import {script[:-3]}"]
    imported = subprocess.run(python, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert imported.returncode == -signal.SIGINT and "KeyboardInterrupt" in imported.stderr


def test_ctrl_c_is_the_own_one_of_a_users_script_beside_ours(tmp_path):
    for name in ("evaluate.py", "harness"):
        (tmp_path / name).symlink_to(ROOT / name)
    mine = "import evaluate, os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nfinally:\n    print('mine')\n"
    (tmp_path / "mine.py").write_text(mine)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "mine.py"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "mine\n")


def test_ctrl_c_while_starting_and_twice(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ppo_lstm, "Run", interrupted)
        code, text = ended(ppo_lstm, tiny(ppo_lstm, tmp_path / "run"), monkeypatch, capsys)
    assert code == 130 and text == "\nstopped.\n"

    def twice(*args, **kwargs):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ppo_lstm, "update", twice)
    code, text = ended(ppo_lstm, tiny(ppo_lstm, tmp_path / "run"), monkeypatch, capsys)
    assert code == 130 and text == "\nstopped: nothing was saved before, so start again with the same command.\n"


# ------------------------------------------------------------------------------------ damaged folders


class Parts:
    """What `main` makes before a run is put back."""

    def __init__(self, script, args):
        self.args = args
        self.envs = make_envs(args, args.num_envs, seed=args.seed)
        table = self.envs.observations
        policy = script.make_policy(script.ALGO, vars(args), table.space, self.envs.action_space)
        aids = MemoryAids(args, self.envs, args.width, torch.device("cpu"))
        learned = [*policy.parameters(), *aids.heads.parameters()]
        optimizer = torch.optim.Adam(learned, lr=args.learning_rate, eps=1e-5, fused=True)
        self.carry = script.first_carry(policy, self.envs, aids)
        scale = script.ReturnScale(torch.device("cpu"))
        self.parts = {"policy": policy, "optimizer": optimizer, "aids": aids, "scale": scale}

    def put_back(self, saved, algo, part=None):
        """part: only this one of the parts, if it is one."""
        check_saved(saved, self.args, algo)
        parts = {name: self.parts[name] for name in self.parts if part in (None, name)}
        put_back(saved, 0, 1, self.args, parts, self.envs, self.carry)


# May be missing, as the file is not asked: config.json has the argument, and Adam its settings.
SPARE = {"args", "param_groups", "cuda", "milestones", "format"}
LISTS = {"recent", "log_sizes"}  # that may be shorter


@pytest.mark.parametrize("name, script", [("table", ppo_palmer), ("gymnasium", ppo_palmer)])
def test_every_field_of_a_checkpoint_may_be_missing_or_another(runs, name, script, monkeypatch):
    saved = load_checkpoint(runs / name / "checkpoint.pt")
    args = script.Args(**saved["args"] | {"resume": str(runs / name)})
    parts = Parts(script, args)
    # What takes time and does not depend on what is changed below.
    sized = evaluate.check_size
    parts.put_back(saved, script.ALGO)
    unnoticed, tried = [], 0
    some = [*list(saved["policy"])[:2], *list(saved["aids"]["heads"])[:1], 0]  # of what is many times the same
    many = [("policy",), ("optimizer", "state"), ("aids", "heads")]
    for place in [place for place in paths(saved) if place]:
        if name == "gymnasium" and place[0] not in ("aids", "processes"):  # the rest is as for tables
            continue
        if any(
            place[: len(one)] == one and place[len(one) : len(one) + 1] not in [(), *((s,) for s in some)]
            for one in many
        ):
            continue
        value = saved
        for key in place:
            value = value[key]
        changes = [at_place(saved, place, lambda holder, key: holder.pop(key))]
        changes += [
            at_place(saved, place, lambda holder, key, other=other: holder.__setitem__(key, other))
            for other in mutations(value)
        ]
        # The network's sizes are looked at only where they may have changed.
        network = "policy" in place or "args" in place
        monkeypatch.setattr("harness.resume.check_size", sized if network else lambda *a: None)
        for number, changed in enumerate(changes):
            tried += 1
            try:
                parts.put_back(changed, script.ALGO, place[0])
            except InputError as error:
                sentence = str(error)
                assert "\n" not in sentence and sentence.startswith("--"), sentence
            else:
                if number == 0 and not SPARE & set(place) and not LISTS & set(place[:-1]):
                    unnoticed.append(place)
    assert tried > 200
    assert unnoticed == []


def test_every_field_that_evaluation_reads_may_be_missing_or_another(copied, monkeypatch):
    folder = copied("lstm")
    saved = {key: load_checkpoint(folder / "checkpoint.pt")[key] for key in ("algo", "args", "policy", "step")}
    monkeypatch.setattr(evaluate, "load_checkpoint", lambda file, flag: changed)
    for place in [place for place in paths(saved) if place]:
        value = saved
        for key in place:
            value = value[key]
        other = [None] if place[0] == "policy" and place[1:] != ("actor.weight",) else mutations(value)
        for number in range(len(other) + 1):

            def change(holder, key, number=number, other=other):
                if number:
                    holder[key] = other[number - 1]
                else:
                    holder.pop(key)

            changed = at_place(saved, place, change)
            try:
                evaluate.load_policy("c.pt")
            except InputError as error:
                assert "\n" not in str(error) and str(error).startswith("--")
            else:
                assert place[0] in ("args", "step", "policy") and (number or place[0] == "args")


def test_every_field_of_config_json_and_of_the_last_row_may_be_missing_or_another(copied, monkeypatch):
    folder = copied("lstm")
    whole = load_checkpoint(folder / "checkpoint.pt")
    monkeypatch.setattr("harness.resume.load_checkpoint", lambda file, flag: whole)
    config = json.loads((folder / "config.json").read_text())
    checked = 0
    for place in [place for place in paths(config) if place]:
        value = config
        for key in place:
            value = value[key]
        for other in ["missing", *mutations(value)]:
            changed = at_place(
                config,
                place,
                lambda holder, key, other=other: (
                    holder.pop(key) if other == "missing" else holder.__setitem__(key, other)
                ),
            )
            (folder / "config.json").write_text(json.dumps(changed))
            try:
                _, _, lock = harness.run.open_earlier(ppo_lstm.Args(resume=str(folder)), "lstm")
                lock.release()
            except InputError as error:
                assert "\n" not in str(error) and str(error).startswith("--"), str(error)
                checked += 1
    assert checked > 400
    for text in ("", "[]", "{}", "[" * 10**5, "\0", '{"algo": "lstm", "args": {}, "resumed": 3}', "9" * 5000):
        (folder / "config.json").write_text(text)
        refused(lambda: ppo_lstm.main(ppo_lstm.Args(resume=str(folder))), "--resume")
    (folder / "config.json").write_text(json.dumps(config))

    metrics, size = (folder / "metrics.jsonl").read_bytes(), whole["log_sizes"]["metrics.jsonl"]
    before, last = metrics[:size].splitlines(keepends=True)
    for row in (
        b"",
        b"{}\n",
        b'{"time": "x"}\n',
        b'{"time": NaN}\n',
        b'{"time": -1}\n',
        b"\xff\n",
        b"[" * 9999 + b"\n",
    ):
        for filler in (b"", b" " * len(last)):
            (folder / "metrics.jsonl").write_bytes(before + (filler + row)[-len(last) :])
            refused(lambda: ppo_lstm.main(ppo_lstm.Args(resume=str(folder))), "--resume", "metrics.jsonl")


def test_a_checkpoint_of_another_run_is_refused(copied):
    folder, other = copied("table"), copied("gymnasium")
    shutil.copy(other / "checkpoint.pt", folder / "checkpoint.pt")
    refused(lambda: ppo_palmer.main(ppo_palmer.Args(resume=str(folder))), "--resume", "another run")


def test_torture(capsys):
    """What scripts/torture.py does for minutes, for a few cases of each kind."""
    torture.main(torture.Options(cases=14, seed=1))
    counts = capsys.readouterr().out.splitlines()[-1]
    assert all(f"{kind.__name__} " in counts for kind in torture.KINDS)
