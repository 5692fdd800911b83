"""study/without.py: what it takes out is out, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import memory_aids
import palmer_policy
import ppo_lstm
from study import scorecard, without

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a part is taken out of is as before after each test."""
    for owner, name in (
        (memory_aids, "VISIT_BUDGET"),
        (memory_aids, "rarity"),
        (memory_aids, "fading"),
        (palmer_policy.TransformerLayer, "__init__"),
        (ppo_lstm, "minibatch_step"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


def layer():
    torch.manual_seed(0)
    return palmer_policy.TransformerLayer(8, 2, 16)


def test_the_scorecard_names_the_same_parts():
    assert scorecard.WITHOUT_FLAG == without.PARTS


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


def test_attention_norm():
    x, before = torch.randn(3, 8), layer()
    without.without("attention_norm", "ppo_lstm.py")
    after = layer()
    assert torch.equal(after.norm_attended(x), x) and not torch.equal(before.norm_attended(x), x)
    assert torch.equal(after.query_key_value.weight, before.query_key_value.weight), "the rest starts as before"


def test_attention_scale():
    before = layer().query_key_value.weight
    without.without("attention_scale", "ppo_lstm.py")
    after = layer().query_key_value.weight
    torch.testing.assert_close(after[:16] * palmer_policy.ATTENTION_SCALE, before[:16])
    assert torch.equal(after[16:], before[16:]), "values"


def test_priced_entropy(monkeypatch):
    prices = []
    monkeypatch.setattr(ppo_lstm, "minibatch_step", lambda *others: prices.append(others[-1]))
    without.without("priced_entropy", "ppo_lstm.py")
    ppo_lstm.minibatch_step("batch", torch.tensor(7.0))
    assert prices == [torch.tensor(0.01)]


def command(*words):
    return subprocess.run([sys.executable, "-m", "study.without", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_run_is_trained_and_resumed_and_tells_its_command(tmp_path):
    flags = ["--env-id", "palmer/Parity-v0", "--run-dir", str(tmp_path / "run"), "--width", "16", "--num-envs", "8"]
    flags += ["--num-minibatches", "2", "--final-eval-episodes", "2", "--eval-every", "0", "--no-cuda"]
    ran = command("attention_norm", "ppo_trxl.py", *flags, "--total-timesteps", "256")
    assert ran.returncode == 0, ran.stderr
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["policy"]
    assert saved and not any("norm_attended" in name for name in saved)
    assert "study.without attention_norm ppo_trxl.py" in (tmp_path / "run/config.json").read_text()
    more = ["--resume", str(tmp_path / "run"), "--total-timesteps", "512"]
    assert command("attention_norm", "ppo_trxl.py", *more).returncode == 0
    refused = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", str(tmp_path / "run/checkpoint.pt"), "--episodes", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error: "), "played with a norm it would be another"


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
