"""export.py: the exported step is the agent's own, for any number of environments; a file complete or not at all."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents import TASKS, repeated, save_agent
from gymnasium import spaces

import evaluate
import export
from harness.flags import run_script

ROOT = Path(__file__).parent.parent
WITHOUT = "onnx and onnxruntime are not installed (requirements-export.txt)"
onnx = pytest.importorskip("onnx", reason=WITHOUT)
onnxruntime = pytest.importorskip("onnxruntime", reason=WITHOUT)

pytestmark = pytest.mark.usefixtures("one_thread")


def exported(file, given):
    """The policy of a checkpoint, its task, and the model."""
    policy, task, checkpoint = evaluate.load_policy(file, **given)
    about = export.describe(policy, task, checkpoint["algo"], checkpoint["step"])
    return policy, task, export.to_onnx(policy, task, about)


def session_of(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


# Algorithm, task, settings, steps: many of each agent, and few of each kind of observation and of network.
CASES = [("palmer", "pixels", {}, 500), ("lstm", "popgym", {}, 500), ("trxl", "last step", {}, 500)]
CASES += [("palmer", name, {}, 40) for name in ("cells", "missions", "continuous")]
CASES += [
    ("palmer", "last step", {"trxl_heads": 2}, 40),
    ("palmer", "pixels", {"fixed_gate": 0.5, "cnn": "nature"}, 40),
    ("trxl", "cells", {"memory_length": 1}, 40),
    ("lstm", "missions", {"forget": True}, 40),
]


@pytest.mark.parametrize("algo, name, settings, steps", CASES)
def test_onnxruntime_gives_what_pytorch_gives(tmp_path, monkeypatch, algo, name, settings, steps):
    """Of two environments, in episodes that are longer than the memory of 6 steps."""
    if name == "popgym":
        pytest.importorskip("popgym", reason="POPGym is not installed")
    file = tmp_path / "checkpoint.pt"
    save_agent(file, algo, **TASKS[name] | settings)
    assert export.CHECKED_STEPS == 500
    monkeypatch.setattr(export, "CHECKED_STEPS", steps)
    largest, relative = export.differences(*exported(file, repeated(TASKS[name])))
    assert 0 < relative <= largest <= 1e-5


def test_any_number_of_environments_and_starts_at_any_step(tmp_path):
    """Frames drawn at random, and memory that begins with numbers of no meaning."""
    file, generator = tmp_path / "checkpoint.pt", np.random.default_rng(0)
    save_agent(file, "palmer", **TASKS["pixels"])
    policy, _, model = exported(file, {})
    session = session_of(model)
    for rows in (1, 5):
        memory = {
            i.name: generator.normal(size=[rows if size == "batch" else size for size in i.shape]).astype(kind)
            for i in session.get_inputs()
            if (kind := {"clock": np.int64, "h": np.float32, "c": np.float32, "keys_values": np.float32}.get(i.name))
        }
        memory["clock"] = abs(memory["clock"])
        state = policy.initial_state(rows)
        for t in range(30):
            picture = export.some_frames(policy, rows)[0]
            start = generator.random(rows) < (0.2 if t else 1)
            names = [o.name for o in session.get_outputs()]
            given = {"picture": picture.numpy(), "episode_start": start} | memory
            found = dict(zip(names, session.run(names, given), strict=True))
            memory = {name: found[f"new_{name}"] for name in memory}
            with torch.no_grad():
                output, state = policy((picture[None],), state, torch.from_numpy(start)[None])
            for name, expected in (("logits", output.logits), ("value", output.value), ("gate", output.gate)):
                np.testing.assert_allclose(found[name], expected[0].numpy(), rtol=0, atol=1e-5)


def test_inputs_and_outputs_have_readable_names_and_sizes(tmp_path):
    save_agent(tmp_path / "checkpoint.pt", "palmer", **TASKS["missions"])
    session = session_of(exported(tmp_path / "checkpoint.pt", {})[2])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    memory = {"h": [2, "batch", 16], "c": [2, "batch", 16], "keys_values": [2, "batch", 2, 5, 16], "clock": ["batch"]}
    assert shapes == {"grid": ["batch", 3, 3, 3], "words": ["batch", 32], "episode_start": ["batch"]} | memory
    shapes = {value.name: value.shape for value in session.get_outputs()}
    heads = {"logits": ["batch", 7], "value": ["batch"], "gate": ["batch", 16]}
    assert shapes == heads | {f"new_{name}": shape for name, shape in memory.items()}


def test_the_metadata_say_what_the_agent_is(tmp_path):
    save_agent(tmp_path / "checkpoint.pt", "trxl", **TASKS["last step"])
    about = session_of(exported(tmp_path / "checkpoint.pt", repeated(TASKS["last step"]))[2]).get_modelmeta()
    found = about.custom_metadata_map
    expected = {"algo": "trxl", "env_id": "palmer/TMazePassive-v0", "env_kwargs": '{"length": 9}'}
    expected |= {"memory_length": "6", "last_action": "True", "last_reward": "True", "steps_trained": "64"}
    assert expected.items() <= found.items()
    assert "softmax" in found["action"] and json.loads(found["action_space"])["type"] == "Discrete"


def test_a_continuous_action_is_made_of_what_the_metadata_say(tmp_path):
    file = tmp_path / "checkpoint.pt"
    save_agent(file, "lstm", **TASKS["continuous"])
    agent, session = evaluate.load_agent(file), session_of(exported(file, {})[2])
    observation = agent.make_env().reset(seed=1)[0]
    zeros = np.zeros((2, 1, 16), np.float32)
    given = {"vector": observation[None], "episode_start": np.array([True]), "h": zeros, "c": zeros}
    mean = session.run(["logits"], given)[0][0]
    space = json.loads(session.get_modelmeta().custom_metadata_map["action_space"])
    low, high = np.array(space["low"]), np.array(space["high"])
    action = np.clip((low + high) / 2 + (high - low) / 2 * mean, low, high).reshape(space["shape"])
    np.testing.assert_allclose(action, agent.act(observation, greedy=True), atol=1e-4)
    assert space["log_std"] == [-0.5]


def test_every_kind_of_action_is_described():
    about = lambda space: export.about_actions(space)[1]  # noqa: E731
    assert about(spaces.Discrete(3, start=2)) == {"type": "Discrete", "n": 3, "start": 2}
    binary = {"type": "MultiBinary", "shape": [3], "sizes": [2, 2, 2], "start": [0, 0, 0]}
    assert about(spaces.MultiBinary(3)) == binary
    several = {"type": "MultiDiscrete", "shape": [2], "sizes": [3, 4], "start": [1, 0]}
    assert about(spaces.MultiDiscrete([3, 4], start=[1, 0])) == several
    assert about(spaces.Box(-2, 2, (1, 2)))["low"] == [-2.0, -2.0]


# ------------------------------------------------------------------------------------------------ the program


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Runs export.py on a small agent -> exit code, what was printed on stderr."""
    save_agent(tmp_path / "agent.pt", "palmer", **TASKS["cells"])
    monkeypatch.setattr(export, "CHECKED_STEPS", 20)

    def run(**flags):
        flags = {"checkpoint": tmp_path / "agent.pt", "onnx": tmp_path / "agent.onnx"} | flags
        words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        monkeypatch.setattr(sys, "argv", ["export.py", *words])
        try:
            run_script(export.main, export.Args, {}, "")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def test_the_program_writes_one_file_and_says_how_near_it_is(program, tmp_path):
    before = set(tmp_path.iterdir())
    code, text = program(memory_length=9)
    assert code == 0 and "20 steps" in text and re.search(r"within \d\.\de-\d\d", text)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "agent.onnx"}
    onnx.checker.check_model(onnx.load(tmp_path / "agent.onnx"))
    assert session_of(tmp_path / "agent.onnx").get_modelmeta().custom_metadata_map["memory_length"] == "9"


def test_the_file_says_what_the_agent_was_trained_on_wherever_it_was_compared(program, tmp_path):
    code, text = program(env_id="MiniGrid-MemoryS9-v0")
    assert code == 0 and "agent of MiniGrid-MemoryS7-v0" in text
    about = session_of(tmp_path / "agent.onnx").get_modelmeta().custom_metadata_map
    assert about["env_id"] == "MiniGrid-MemoryS7-v0"


def test_wrong_input_is_refused_in_one_sentence_and_leaves_the_file_as_it_was(program, tmp_path, monkeypatch):
    (tmp_path / "agent.onnx").write_text("an earlier one")
    (tmp_path / "folder.onnx").mkdir()
    save_agent(tmp_path / "lstm.pt", "lstm", **TASKS["cells"])
    before = set(tmp_path.iterdir())
    for flags, words in (
        ({"onnx": tmp_path / "agent.pt"}, "--onnx"),
        ({"onnx": tmp_path / "folder.onnx"}, "--onnx"),
        ({"onnx": tmp_path / "none" / "agent.onnx"}, "--onnx"),
        ({"checkpoint": tmp_path / "none.pt"}, "--checkpoint"),
        ({"checkpoint": tmp_path / "agent.onnx"}, "--checkpoint"),
        ({"memory_length": 0}, "--memory-length 0"),
        ({"memory_length": 9, "checkpoint": tmp_path / "lstm.pt"}, "--memory-length 9"),
        ({"env_id": "palmer/PendulumNoVelocity-v0"}, "--env-id"),
    ):
        code, text = program(**flags)
        assert code == 2 and text.count("\n") == 1 and text.startswith("error: ") and words in text, text
    for name, value, words in (
        ("LARGEST_STATE", 100, "--memory-length 6"),
        ("LARGEST_MODEL", 100, "--checkpoint"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(export, name, value)
            code, text = program()
        assert code == 2 and text.count("\n") == 1 and words in text, text
    assert set(tmp_path.iterdir()) == before and (tmp_path / "agent.onnx").read_text() == "an earlier one"


def test_what_goes_wrong_leaves_the_file_as_it_was(program, tmp_path, monkeypatch):
    (tmp_path / "agent.onnx").write_text("an earlier one")
    before = set(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(export, "TOLERANCE", 0.0)
        code, text = program()
    assert code == 1 and "differ from PyTorch's" in text and text.count("\n") == 1

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        code, text = program()
    assert code == 2 and "--onnx" in text and "No space left" in text and text.count("\n") == 1
    assert set(tmp_path.iterdir()) == before and (tmp_path / "agent.onnx").read_text() == "an earlier one"


def test_a_missing_package_is_named(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, text = program()
    assert code == 2 and "--onnx" in text and "onnxruntime" in text and "requirements-export.txt" in text


def test_the_lines_in_the_readme_run_without_pytorch(tmp_path):
    """And play as the agent in PyTorch does."""
    file = ROOT / "pretrained" / "palmer__s13.pt"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"python export.py --checkpoint {file.relative_to(ROOT)} --onnx palmer.onnx" in text
    (tmp_path / "palmer.onnx").write_bytes(exported(file, {})[2])
    (lines,) = re.findall(r"```python\n(import gymnasium\n[^`]*onnxruntime.*?)```", text, re.DOTALL)
    lines = "import sys\nsys.modules['torch'] = None\n" + lines
    result = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    agent = evaluate.load_agent(file)
    env = agent.make_env()
    observation, done = env.reset(seed=1)[0], False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation, greedy=True))
        done = terminated or truncated
    assert result.stdout == f"return {reward:.2f}\n" and reward > 0
