"""Every flag of every program: what it may be is written beside it, and anything else is refused in one sentence."""

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import small_envs
import torch

import evaluate
import export
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness import checks
from harness.checks import bytes_needed, check_run
from harness.flags import Range, check_args, flag_of, metadata, parse_args, run_script
from harness.input_error import InputError
from study import benchmark_speed, measure_gate, publish_checkpoints, shortest_ways
from tasks.real import TaskArgs, check_picture

ROOT = Path(__file__).parent.parent
SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]
CPU = torch.device("cpu")


def program_files():
    files = [file for folder in (".", "study", "scripts") for file in sorted((ROOT / folder).glob("*.py"))]
    return [file for file in files if "__main__" in file.read_text(encoding="utf-8")]


def programs():
    """Name and class of flags of each program that reads its command line with `run_script`."""
    found = {}
    for file in program_files():
        if reads := re.search(r"^    run_script\(main, (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name] = getattr(importlib.import_module(name), reads[1])
    return found


PROGRAMS = programs()
# What must be there for all else to be looked at.
REQUIRED = {
    evaluate.Args: {"checkpoint": "a.pt"},
    export.Args: {"checkpoint": "a.pt", "onnx": "a.onnx"},
    publish_checkpoints.Options: {"source": "a", "target": "b"},
}
REQUIRED_WORDS = {
    evaluate.Args: ["--checkpoint", "a.pt"],
    export.Args: ["--checkpoint", "a.pt", "--onnx", "a.onnx"],
    publish_checkpoints.Options: ["a", "b"],
}


def numbers_of(Args):
    """The flags with a number -> int or float; of a bool or a Literal there is nothing to limit."""
    hints = get_type_hints(Args)
    of = {name: {int, float} & {hint, *get_args(hint)} for name, hint in hints.items()}
    return {name: kind.pop() for name, kind in of.items() if kind}


# Flags that the training scripts have in common are looked at once.
NUMBERS = {
    (name if flag not in numbers_of(ppo_palmer.Args) or name[:4] != "ppo_" else "ppo_palmer", flag)
    for name, Args in PROGRAMS.items()
    for flag in numbers_of(Args)
}


def read(monkeypatch, Args, *words):
    """The command line read and checked, as a program begins."""
    monkeypatch.setattr(sys, "argv", ["program", *REQUIRED_WORDS.get(Args, ()), *words])
    presets = next((script.PRESETS for script in SCRIPTS if script.Args is Args), {})
    args = parse_args(Args, presets)
    check_args(args)
    return args


# ------------------------------------------------------------------------------------------------ numbers


def test_all_programs_are_looked_at():
    assert {"ppo_palmer", "ppo_lstm", "ppo_trxl", "evaluate", "study.tune", "study.measure_gate"} <= PROGRAMS.keys()
    for file in program_files():
        text = file.read_text(encoding="utf-8")
        reads_numbers = re.search(r"type=(int|float)", text)
        assert "run_script(" in text or not reads_numbers, f"{file}: has numbers that nobody checks"


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_flag_with_a_number_has_a_range_that_its_main_checks(name):
    Args = PROGRAMS[name]
    assert metadata(Args, Range).keys() == numbers_of(Args).keys()
    source = (ROOT / name.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert not numbers_of(Args) or "check_args(" in source or Args in [script.Args for script in SCRIPTS]


@pytest.mark.parametrize(("name", "flag"), sorted(NUMBERS))
def test_any_word_is_a_value_of_the_range_or_refused_in_one_sentence(name, flag, monkeypatch):
    Args = PROGRAMS[name]
    allowed, kind = metadata(Args, Range)[flag], numbers_of(Args)[flag]
    for word in ("0", "-1", "1000000000000", "4294967296", "nan", "inf", "-inf", "1.5", "x", ""):
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if allowed.holds(value):
            assert getattr(read(monkeypatch, Args, flag_of(flag), word), flag) in (value, (value,))
            continue
        with pytest.raises(InputError) as error:
            read(monkeypatch, Args, flag_of(flag), word)
        sentence = str(error.value)
        assert re.match(rf"{flag_of(flag)} \S*: must be .*{allowed}", sentence) and sentence.endswith("."), sentence
        assert "\n" not in sentence


def outside(allowed, kind):
    """Values that a flag of this range and kind must not have, the nearest ones among them."""
    if kind is int:
        return allowed.least - (not allowed.above), allowed.most + 1, -(10**30), 10**30
    below = allowed.least if allowed.above else math.nextafter(allowed.least, -math.inf)
    return below, math.nextafter(allowed.most, math.inf), math.nan, math.inf, -math.inf


def within(allowed, kind):
    """The first and the last value of the range."""
    if kind is int:
        return allowed.least + allowed.above, allowed.most
    return math.nextafter(allowed.least, math.inf) if allowed.above else allowed.least, allowed.most


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_outside_of_their_range_are_refused_before_anything_is_made(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module, Args = importlib.import_module(name), PROGRAMS[name]
    for maker in ("make_envs", "make_policy", "load_policy", "load_players"):  # nothing of the kind may be reached
        if hasattr(module, maker):
            monkeypatch.setattr(module, maker, lambda *a, **k: pytest.fail("something was made"))
    required = REQUIRED.get(Args, {}) | ({"cuda": False} if module in SCRIPTS else {})
    check_args(Args(**required))
    for flag, allowed in metadata(Args, Range).items():
        kind = numbers_of(Args)[flag]
        for value in within(allowed, kind):
            check_args(Args(**required | {flag: kind(value)}))
        for value in outside(allowed, kind):
            with pytest.raises(InputError) as error:
                module.main(Args(**required | {flag: value}))
            assert str(error.value) == f"{flag_of(flag)} {value}: must be {allowed}.", "one sentence names all"
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("Args", "words", "sentence"),
    [
        (
            ppo_palmer.Args,
            "--norm-adv no",
            "--norm-adv no: takes no value; must be --norm-adv or --no-norm-adv alone.",
        ),
        (
            ppo_palmer.Args,
            "--norm_adv=no",
            "--norm_adv no: takes no value; must be --norm-adv or --no-norm-adv alone.",
        ),
        (ppo_palmer.Args, "--no-cuda 1", "--no-cuda 1: takes no value; must be --cuda or --no-cuda alone."),
        (ppo_palmer.Args, "--norm-obs no", "--norm-obs no: must be True, False or None."),
        (ppo_palmer.Args, "--cnn tanh", "--cnn tanh: must be patch or nature."),
        (ppo_palmer.Args, "--preset mine", "--preset mine: must be default or report."),
        (ppo_palmer.Args, "--fixed-gate x", "--fixed-gate x: must be a number from 0 to 1 or None."),
        (ppo_palmer.Args, "--seed", "--seed: needs a value; must be a whole number from 0 to 99,999,999."),
        (ppo_palmer.Args, "--env-id --seed 3", "--env-id: needs a value; must be a text."),
        (ppo_palmer.Args, "--seed 1 2", "2: belongs to no flag; --help lists them all."),
        (ppo_palmer.Args, "train", "train: belongs to no flag; --help lists them all."),
        (ppo_palmer.Args, "-s 3", "-s 3: there is no such flag; --help lists all."),
        (ppo_lstm.Args, "--memory-length 3", r"--memory-length 3: there is no such flag.*; --help lists all."),
        (
            ppo_palmer.Args,
            "--sed 3",
            "--sed 3: there is no such flag, near matches are --seed, .*; --help lists all.",
        ),
        (ppo_palmer.Args, "--no-seed", "--no-seed: there is no such flag, near matches are --seed, .*"),
        (evaluate.Args, "", "--checkpoint: must be given; --help tells what it is."),
        (evaluate.Args, "--episode 3", "--episode 3: there is no such flag, near matches are --episodes.*"),
        (publish_checkpoints.Options, "", "SOURCE: must be given; --help tells what it is."),
        (publish_checkpoints.Options, "a", "TARGET: must be given; --help tells what it is."),
        (publish_checkpoints.Options, "a b c", "c: belongs to no flag; --help lists them all."),
        (measure_gate.Options, "a.pt --episodes", "--episodes: needs a value; must be a whole number from 1 to .*"),
        (measure_gate.Options, "a.pt --out", "--out: needs a value; must be a path."),
        (shortest_ways.Options, "MiniGrid-MemoryS11-v0", "MiniGrid-MemoryS11-v0: belongs to no flag.*"),
        (benchmark_speed.Options, "--growth 3", "--growth 3: takes no value; must be --growth or --no-growth alone."),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(Args, words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    presets = ppo_palmer.PRESETS if Args is ppo_palmer.Args else {}
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda args: pytest.fail("it began"), Args, presets, None)
    out, error = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    assert re.fullmatch(f"error: {sentence}\n", error), error


def test_what_tyro_alone_refuses_is_told_in_its_words_on_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        print("╭─ Error ─╮\n│ too odd │\n╰─────────╯", file=sys.stderr)
        sys.exit(2)

    monkeypatch.setattr("harness.flags.tyro.cli", refuse)
    with pytest.raises(InputError, match="^Error too odd$"):
        read(monkeypatch, ppo_palmer.Args)


def test_a_value_of_several_lines_makes_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--cnn", "a\nb"])
    with pytest.raises(SystemExit):
        run_script(check_args, ppo_palmer.Args, ppo_palmer.PRESETS, None)
    assert capsys.readouterr().err == "error: --cnn a b: must be patch or nature.\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("ppo_trxl.py --seed 4294967296", "--seed 4294967296: must be from 0 to 99,999,999."),
        ("-m study.tune --trials x", "--trials x: must be a whole number from 1 to 100,000."),
    ],
)
def test_a_program_says_no_more_than_the_sentence(command, sentence, tmp_path):
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {sentence}\n")


# ---------------------------------------------------------------------------------------------------- memory


def sized(script=ppo_palmer, **flags):
    return script.Args(**script.PRESETS[flags.get("preset", "default")] | {"cuda": False} | flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"num_envs": 65_536, "num_steps": 65_536, "width": 8192},
        {"num_envs": 65_536, "memory_length": 65_536},
        {"num_envs": 65_536, "num_steps": 65_536, "width": 1, "trxl_heads": 1},
        {"width": 8192, "lstm_layers": 64, "trxl_layers": 64},
        {"num_envs": 64, "num_steps": 8192, "memory_length": 65_536, "max_episode_steps": 0, "width": 1024},
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_by_name(flags, monkeypatch):
    monkeypatch.setattr(checks, "bytes_there", lambda device: 32 * 10**9)
    check_args(sized(**flags))
    with pytest.raises(InputError, match=r"GB of memory, and this machine has 32 GB; make them smaller\.$") as error:
        check_run(sized(**flags), CPU)
    for name in flags.keys() & set(checks.SIZES):
        assert f"{flag_of(name)} {flags[name]}" in str(error.value)


def test_what_is_documented_fits_into_a_small_machine(monkeypatch):
    monkeypatch.setattr(checks, "bytes_there", lambda device: 4 * 10**9)
    for script in SCRIPTS:
        for preset in script.PRESETS:
            check_run(sized(script, preset=preset), CPU)
    check_run(sized(memory_length=192, num_steps=64, max_episode_steps=192), CPU)
    for configurations in benchmark_speed.growth_configurations().values():
        for configuration in configurations:
            check_run(sized(**configuration.flags), CPU)
    check_run(sized(memory_length=65_536), CPU)  # free, as episodes are shorter


def test_the_estimate_is_near_what_was_measured():
    """Allocated in training, in MB: results/speed."""
    for flags, measured in (
        ({"preset": "report"}, 840),
        ({"num_envs": 4096, "num_steps": 8}, 1322),
        ({"num_envs": 1, "num_steps": 8192, "num_minibatches": 1}, 321),
        ({"width": 768}, 419),
    ):
        assert 0.7 * measured < bytes_needed(sized(**flags), CPU) / 1e6 <= 1.1 * measured, flags


def test_processes_share_the_environments_and_the_machine(monkeypatch):
    alone, there = bytes_needed(sized(num_envs=4096), CPU), checks.bytes_there(CPU)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert 0.2 < bytes_needed(sized(num_envs=4096), CPU) / alone < 0.3
    assert checks.bytes_there(CPU) == there // 2


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(checks.os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError))
    assert checks.bytes_there(CPU) is None
    check_run(sized(num_envs=65_536, num_steps=65_536), CPU)


# ------------------------------------------------------------------------------------------------------ film


class Undrawn:
    """What an environment's render does that cannot be filmed."""

    def fails(self):
        raise ImportError("no pygame")

    def gives_floats(self):
        return np.zeros((4, 4, 3))

    def gives_nothing(self):
        return None


@pytest.mark.parametrize(
    ("render", "cause"),
    [
        (Undrawn.fails, r"drawing it fails with ImportError \(no pygame\)"),
        (Undrawn.gives_floats, r"its render gives float64 \(4, 4, 3\); must be an array"),
        (Undrawn.gives_nothing, "its render gives NoneType; must be an array"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_told(render, cause, monkeypatch):
    monkeypatch.setattr(small_envs.Plain, "render", render)
    task = TaskArgs("small_envs:Case/Bit-v0")
    with pytest.raises(InputError, match=f"--capture-video: {task.env_id} cannot be filmed, as {cause}"):
        check_picture(task, "--capture-video")


def test_an_environment_without_rgb_array_or_render_mode_is_told(monkeypatch):
    with pytest.raises(InputError, match=r"--video: .*NoRenderMode.* constructor fails with TypeError .*render_mode"):
        check_picture(TaskArgs("small_envs:Case/NoRenderMode-v0"), "--video")
    monkeypatch.setattr(small_envs.Bit, "metadata", {"render_modes": ["human"]})
    with pytest.raises(InputError, match=r"rgb_array is none of its render_modes \['human'\]\.$"):
        check_picture(TaskArgs("small_envs:Case/Bit-v0"), "--video")


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "CartPole-v1", "palmer/TMazePassive-v0"])
def test_what_can_be_filmed_is_not_refused(env_id):
    check_picture(TaskArgs(env_id), "--video")
