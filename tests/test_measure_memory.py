"""study/measure_memory.py: gates, attention and recall by age are those of the agents."""

import csv
import json

import numpy as np
import pytest
import torch

import ppo_lstm
import ppo_palmer
from harness.input_error import InputError
from memory_aids import AgeHead
from palmer_policy import make_policy
from study import measure_memory, scorecard
from study.measure_memory import Looked, Options
from tasks import TaskArgs, make_real_env

SHORT = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "width": 16, "total_timesteps": 256, "eval_every": 0}
SHORT |= {"final_eval_episodes": 2, "cuda": False}


def read(file):
    return list(csv.DictReader(file.open()))


def test_all_is_measured_of_what_is_finished(tmp_path):
    source, target = tmp_path / "runs", tmp_path / "results"
    for script, agent, task in (
        (ppo_palmer, "palmer", "parity_25"),
        (ppo_lstm, "lstm", "parity_25"),
        (ppo_palmer, "palmer", "pendulum"),
    ):
        folder = source / task / agent / f"{agent}__{task}__s1001"
        script.main(script.Args(env_id=scorecard.TASKS[task].env_id, run_dir=str(folder), **SHORT))
    unfinished = source / "cartpole/palmer/palmer__cartpole__s1001"
    unfinished.mkdir(parents=True)
    measure_memory.main(Options(source, target, episodes=4, looked_into=3))
    cuts = read(target / "cuts.csv")
    assert [(row["task"], row["change"]) for row in cuts] == [
        (task, change) for task in ("parity_25", "pendulum") for change in measure_memory.CHANGES
    ]
    whole, pendulum = cuts[0], cuts[5:]
    assert {row["episodes"] for row in cuts} == {"4"} and {row["seed"] for row in cuts} == {"1001"}
    assert whole["success"] != "" and pendulum[0]["success"] == "", "Pendulum tells no success"
    assert len({row["return"] for row in pendulum}) == 5
    whole = json.loads((source / "pendulum/palmer/palmer__pendulum__s1001/summary.json").read_text())
    assert float(pendulum[0]["return"]) != whole["evaluation"]["mean_return"], "greedy actions count there"
    gates = read(target / "gates.csv")
    assert [row["fifth"] for row in gates] == list("12345") * 2 and {row["agent"] for row in gates} == {"palmer"}
    ages = read(target / "ages.csv")
    of_lstm = [row for row in ages if row["agent"] == "lstm"]
    assert of_lstm and all(row["attention"] == "" and row["recall"] != "" for row in of_lstm)
    assert {row["age"] for row in ages if row["task"] == "pendulum"} >= {"1", "16", "48"}
    assert all(row["recall"] == "" for row in ages if int(row["age"]) > 16), "the head was asked for 16 steps"
    # What another machine has measured stays.
    (target / "cuts.csv").write_text((target / "cuts.csv").read_text().replace(",1001,", ",1002,"))
    measure_memory.main(Options(source, target, episodes=4, looked_into=1))
    both = cuts + [row | {"seed": "1002"} for row in cuts]
    assert read(target / "cuts.csv") == sorted(both, key=lambda row: (row["task"], row["seed"]))
    lengths = read(target / "lengths.csv")
    assert [(row["agent"], row["length"]) for row in lengths] == [
        (agent, str(length)) for agent in ("lstm", "palmer") for length in measure_memory.LENGTHS
    ]


def test_a_fifth_has_its_own_steps():
    gate = np.linspace(0, 1, 10)[:, None].repeat(4, 1)  # 0 to 1 in ten steps
    rows = measure_memory.gate_rows([Looked((), torch.zeros(10, 4), gate)] * 2)
    assert [row["fifth"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["mean"] for row in rows] == pytest.approx([1 / 18 + i * 4 / 18 for i in range(5)], abs=1e-3)
    assert rows[0]["lstm"] == rows[-1]["transformer"] == 0.5 and rows[0]["transformer"] == rows[2]["lstm"] == 0


def test_attention_and_recall_are_told_by_age():
    env = make_real_env(TaskArgs("palmer/Parity-v0"))
    settings = vars(ppo_palmer.Args(width=16, trxl_heads=2, memory_length=8))
    policy = make_policy("trxl", settings, env.observation_space, env.action_space)
    torch.nn.init.zeros_(policy.transformer.layers[0].query_key_value.weight)  # looks at all that it sees evenly
    T = 12
    frames = (torch.eye(3)[torch.tensor([0, 1] * 6)],)

    class Aids:
        heads = torch.nn.ModuleDict({"age": AgeHead(16, 6)})

    rows = measure_memory.age_rows(policy, Aids, [Looked(frames, torch.zeros(T, 16), None)])
    assert [row["age"] for row in rows] == [1, 2, 4], "8 is beyond the memory and beyond what the head was asked for"
    assert all(row["attention"] == pytest.approx(row["evenly"], abs=1e-3) for row in rows)
    assert all(row["guess"] == 0.5 and row["recall"] == pytest.approx(0.5, abs=0.1) for row in rows)

    class Knows(torch.nn.Module):
        """Always picks the frame that was shown at even steps."""

        age = torch.nn.Embedding(7, 16)

        def forward(self, z, age, frames):
            even = (frames - policy.encoder((torch.eye(3)[:1],))).abs().sum(1) < 1e-6
            return even.float().expand(len(z), -1)

    Aids.heads = {"age": Knows()}
    recall = {
        row["age"]: row["recall"]
        for row in measure_memory.age_rows(policy, Aids, [Looked(frames, torch.zeros(T, 16), None)])
    }
    assert recall == pytest.approx({1: 6 / 11, 2: 5 / 10, 4: 4 / 8}, abs=1e-4)


def test_where_nothing_is_finished_nothing_is_measured(tmp_path):
    with pytest.raises(InputError, match="holds no finished one"):
        measure_memory.main(Options(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
