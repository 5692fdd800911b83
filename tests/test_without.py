"""study/without.py: what it takes out is out, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memory_aids
from study import scorecard, without

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a part is taken out of is as before after each test."""
    for name in ("VISIT_BUDGET", "rarity", "fading"):
        monkeypatch.setattr(memory_aids, name, getattr(memory_aids, name))


def test_the_scorecard_names_the_same_parts():
    assert tuple(without.PARTS) == scorecard.WITHOUT_FLAG


def test_visit_budget():
    without.without("visit_budget", "ppo_lstm.py")
    assert 1 - torch.tensor(1e9) / memory_aids.VISIT_BUDGET == 1, "all is left, however much was met"


def test_rarity_beside():
    together = torch.tensor([[1.0, 0.5, 0.4], [0.5, 0.5, 0.4], [0.4, 0.4, 0.4]])
    code, seen = torch.tensor([2]), torch.tensor([[True, True, False]])
    assert memory_aids.rarity(together, code, seen) < 0.25
    without.without("rarity_beside", "ppo_lstm.py")
    torch.testing.assert_close(memory_aids.rarity(together, code, seen), torch.tensor([0.6]))


def test_fading():
    without.without("fading", "ppo_lstm.py")
    assert [memory_aids.fading(progress, 1.0) for progress in (0, 0.5, 0.875, 1)] == [1, 1, 0.5, 0]


def command(*words):
    return subprocess.run([sys.executable, "-m", "study.without", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_run_is_trained_and_resumed_and_tells_its_command(tmp_path):
    flags = ["--env-id", "palmer/Parity-v0", "--run-dir", str(tmp_path / "run"), "--width", "16", "--num-envs", "8"]
    flags += ["--num-minibatches", "2", "--final-eval-episodes", "2", "--eval-every", "0", "--no-cuda"]
    ran = command("fading", "ppo_trxl.py", *flags, "--total-timesteps", "256")
    assert ran.returncode == 0, ran.stderr
    assert "study.without fading ppo_trxl.py" in (tmp_path / "run/config.json").read_text()
    more = ["--resume", str(tmp_path / "run"), "--total-timesteps", "512"]
    assert command("fading", "ppo_trxl.py", *more).returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "error: PART '': must be of visit_budget, rarity_beside"),
        (["gate", "ppo_palmer.py"], "error: PART 'gate': must be of"),
        (
            ["fading", "evaluate.py"],
            "error: SCRIPT 'evaluate.py': must be of ppo_palmer.py, ppo_lstm.py, ppo_trxl.py.",
        ),
    ],
)
def test_wrong_words_are_refused(words, sentence):
    result = command(*words)
    assert result.returncode == 2 and result.stderr.startswith(sentence) and result.stderr.count("\n") == 1
