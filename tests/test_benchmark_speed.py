"""study/benchmark_speed.py: it counts, times and separates what it says, and writes all its files."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.checkpoint import load_checkpoint
from harness.flags import check_args
from harness.input_error import InputError
from study import benchmark_speed
from study.benchmark_speed import Configuration, Options

TINY = {
    "num_envs": 16,
    "num_steps": 8,
    "num_minibatches": 2,
    "width": 8,
    "obs_mode": "symbolic",
    "lstm_layers": 2,
    "trxl_layers": 2,
    "trxl_heads": 2,
    "memory_length": 6,
}


SCRIPTS = {"palmer": ppo_palmer, "lstm": ppo_lstm, "trxl": ppo_trxl}


def tiny(algo: str, **flags) -> Configuration:
    known = vars(SCRIPTS[algo].Args())
    return Configuration(algo, "default", {name: v for name, v in (TINY | flags).items() if name in known})


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def one_thread_in_processes_started(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def in_this_process(monkeypatch):
    """A process of its own for each measurement takes seconds to start, and only memory needs it."""
    monkeypatch.setattr(benchmark_speed, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(benchmark_speed, "MATRIX_SIZE", 64)


def flops_by_hand(
    algo: str, N: int, T: int, D: int, M: int, K: int, layers: int, epochs: int, frames: tuple[list[int], list[int]]
) -> tuple[int, int]:
    """Multiplications and additions of matrix products in a first rollout and its update, from the equations.

    3x3 symbolic views, no episode ending. frames: those that the encoder gets, once in the rollout, then once in
    each minibatch of an epoch, and the candidates of recall by age in each of these.
    """
    encoded, candidates = frames
    convolution = 2 * 9 * 32 * (9 * (11 + 6 + 4))  # cells, maps, and 3x3 cells of one-hot object, colour, state
    encoder_output = 2 * (9 * 32) * D

    lstm = layers * (2 * D * 4 * D + 2 * D * 4 * D)  # of the input, of h
    transformer = layers * (2 * D * 3 * D + 2 * D * D + 2 * 2 * D * 2 * D)  # q k v, output, feed-forward of 2 D
    gate = 2 * 2 * D * D
    heads = 2 * D * 2 * D + 2 * D * 7 + 2 * D  # hidden layer of products, 7 actions, value
    step = heads
    step += lstm if algo != "trxl" else 0
    step += transformer if algo != "lstm" else 0
    step += gate if algo == "palmer" else 0
    product = 2 * D if algo != "lstm" else 0  # a query with a key, or a weight with a value, over all heads

    # The step after the last one gives the value to look ahead to. At step t the memory holds min(t + 1, M) steps.
    attended = sum(min(t + 1, M) for t in range(T + 1))
    rollout = encoded[0] * (convolution + encoder_output) + N * ((T + 1) * step + layers * attended * 2 * product)

    # Backwards there are two products for each one: for the weights and for the input, which frames do not need.
    # Attention makes 2 products forward and 4 backward.
    recall = 2 * D * K
    encoding = sum(encoded[1:]) * (2 * convolution + 3 * encoder_output)
    attention = layers * T * T * 6 * product
    # Recall by age: three layers of a query, a key of each candidate, and their products in each of the minibatches.
    age = 3 * (N * T * 3 * 2 * D * D + sum(candidates) * 2 * D * D)
    age += 3 * sum(candidates) * N * T // len(candidates) * 2 * D
    update = epochs * (encoding + age + N * (T * 3 * (step + recall) + attention))
    return rollout, update


@pytest.mark.parametrize("algo", ["palmer", "lstm", "trxl"])
def test_counted_operations_are_those_of_the_equations(algo):
    agent = benchmark_speed.make_agent(tiny(algo))
    carry = agent.script.first_carry(agent.policy, agent.envs, agent.aids)
    encoded, candidates = [], []
    agent.policy.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0][0])))
    agent.aids.heads["age"].key.register_forward_pre_hook(lambda _, inputs: candidates.append(len(inputs[0])))
    flops, _ = benchmark_speed.count_flops(agent, carry)
    N, T = TINY["num_envs"], TINY["num_steps"]
    K, epochs = agent.envs.observations.count, agent.args.update_epochs
    sizes = TINY["width"], TINY["memory_length"], K, 2
    rollout, update = flops_by_hand(algo, N, T, *sizes, epochs, (encoded, candidates))
    assert len(encoded) == 1 + TINY["num_minibatches"]
    assert flops["rollout"] * N * T == rollout
    assert flops["update"] * N * T == update


def test_each_phase_gets_its_own_time(monkeypatch):
    """On a clock that only the named functions move, each by its own amount, every phase has an exact time."""
    now = 0.0

    def takes(owner, name, seconds):
        original = getattr(owner, name)

        def slow(*args, **kwargs):
            nonlocal now
            now += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    agent = benchmark_speed.make_agent(tiny("palmer"))
    carry = benchmark_speed.fill_memory(agent)
    takes(agent.envs, "step", 1)
    takes(agent.policy.encoder, "forward", 10)
    takes(agent.policy, "act", 100)
    takes(agent.script, "timeout_values", 7)
    takes(agent.scale, "learn", 0.5)
    takes(agent.aids, "first_visits", 50)
    takes(agent.script, "advantages", 3)
    takes(agent.envs.observations, "distinct_frames", 1000)
    takes(agent.aids, "losses", 20_000)
    monkeypatch.setattr(benchmark_speed, "time", SimpleNamespace(perf_counter=lambda: now))
    phases, _, _ = benchmark_speed.timed_iteration(agent, carry)
    T, minibatches = TINY["num_steps"], 2 * agent.args.update_epochs
    assert phases == {
        "environment": T,
        "policy in the rollout": 10 + 100 * (T + 1),
        "rest of the rollout": 7 * T + 0.5,
        "memory aids": 50,
        "advantages": 3,
        "update": minibatches * (1000 + 100 + 10 + 20_000),
    }
    assert tuple(phases) == benchmark_speed.PHASES


def test_the_memory_is_full_before_anything_is_measured():
    agent = benchmark_speed.make_agent(tiny("trxl", memory_length=20))
    carry = benchmark_speed.fill_memory(agent)
    assert len(carry.state.cache[0]) == 19
    assert carry.state.clock.max() >= 20


def test_nothing_stays_wrapped():
    agent = benchmark_speed.make_agent(tiny("lstm"))
    advantages = agent.script.advantages
    benchmark_speed.timed_iteration(agent, benchmark_speed.fill_memory(agent))
    assert "step" not in vars(agent.envs) and "act" not in vars(agent.policy)
    assert "forward" not in vars(agent.policy.encoder) and "first_visits" not in vars(agent.aids)
    assert agent.script.advantages is advantages


def test_a_whole_run_writes_figures_and_the_machine(monkeypatch, tmp_path, capsys):
    held = torch.ones(200_000_000)  # what the process that starts the measured ones holds is not counted
    large = tiny("lstm", num_envs=1024, num_steps=16, width=128, num_minibatches=1)._replace(preset="report")
    monkeypatch.setattr(benchmark_speed, "CONFIGURATIONS", [large, tiny("palmer", lstm_layers=1)])
    monkeypatch.setattr(benchmark_speed, "ENVIRONMENTS", [("table", 64)])
    benchmark_speed.main(Options(out=tmp_path / "new", seconds=0.0))
    del held
    results = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert {"date", "cpu", "cores", "threads", "versions", "command"} <= results["machine"].keys()
    assert results["machine"]["threads"] == 1
    assert (tmp_path / "new" / "speed.png").stat().st_size > 10_000
    assert results["environments"][0]["steps_per_second"] > 0

    first, second = results["agents"]
    assert [first["algo"], second["algo"]] == ["lstm", "palmer"]
    assert second["flags"]["lstm_layers"] == 1
    assert second["peak_memory_mb"] < first["peak_memory_mb"] - 150  # memory of one is not counted for the next
    printed = capsys.readouterr().out
    for row in (first, second):
        assert row["peak_memory_mb"] >= row["memory_before_mb"] > 50
        flops = sum(row["flops_per_step"].values())
        assert row["utilisation"] * row["matrix_flops_per_second"] == pytest.approx(flops * row["steps_per_second"])
        assert sum(row["microseconds_per_step"].values()) == pytest.approx(1e6 / row["steps_per_second"])
        assert f"{row['steps_per_second']:,.0f}" in printed


def test_tables_are_faster_than_the_package():
    table, package = (
        benchmark_speed.measure_environments(backend, num_envs, 0.0)["steps_per_second"]
        for backend, num_envs in (("table", 1024), ("gymnasium", 2))
    )
    assert table > 20 * package


def test_growth_writes_a_figure_for_each_series(in_this_process, monkeypatch, tmp_path):
    series = {
        "width": [tiny("trxl", width=16)],
        "memory_length": [tiny("palmer", memory_length=9)],
    }
    monkeypatch.setattr(benchmark_speed, "growth_configurations", lambda: series)
    benchmark_speed.main(Options(out=tmp_path, growth=True, seconds=0.0))
    results = json.loads((tmp_path / "growth.json").read_text())
    assert [row["cached_steps"] for row in results["memory_length"]] == [8]
    assert {row["episode_limit"] for row in results["width"]} == {96}
    for name in series:
        assert (tmp_path / f"growth_{name}.png").stat().st_size > 10_000
    assert not (tmp_path / "speed.json").exists()


def test_the_real_configurations_are_legal_and_of_like_size():
    growth = benchmark_speed.growth_configurations()
    for configuration in sum(growth.values(), benchmark_speed.CONFIGURATIONS):
        script = SCRIPTS[configuration.algo]
        args = script.Args(**(script.PRESETS[configuration.preset] | configuration.flags))
        check_args(args)
        assert args.num_envs % args.num_minibatches == 0
    for flags in [configuration.flags for configuration in growth["num_envs"]]:
        assert flags["num_envs"] * flags["num_steps"] == 8192 or flags["num_steps"] == 8
    lengths = [configuration.flags["memory_length"] for configuration in growth["memory_length"]]
    assert (min(lengths), max(lengths)) == (32, 2048)


def test_a_folder_that_cannot_be_written_is_told_before_measuring(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="--out"):
        benchmark_speed.main(Options(out=file))


def test_the_time_of_a_minibatch_is_split_by_kind_of_operation():
    agent = benchmark_speed.make_agent(tiny("palmer"))
    batch, _ = agent.play(agent.script.first_carry(agent.policy, agent.envs, agent.aids))
    minibatch_step = agent.script.minibatch_step
    began = time.perf_counter()
    milliseconds = benchmark_speed.profile_minibatch(agent, batch)
    whole = 1e3 * (time.perf_counter() - began)
    assert set(milliseconds) == {*benchmark_speed.KINDS, "element by element", "between operations"}
    assert all(value > 0 for value in milliseconds.values())
    assert sum(milliseconds.values()) < whole
    assert agent.script.minibatch_step is minibatch_step


@pytest.mark.parametrize("algo", ["palmer", "lstm", "trxl"])
def test_what_is_timed_is_what_the_script_does(algo, tmp_path):
    """An iteration here and one of the script's `main` leave the same parameters, bit for bit."""
    configuration = tiny(algo, max_episode_steps=5)
    agent = benchmark_speed.make_agent(configuration)
    batch, _ = agent.play(agent.script.first_carry(agent.policy, agent.envs, agent.aids))
    agent.learn(batch)
    flags = {"env_id": benchmark_speed.ENV_ID, "total_timesteps": 1, "run_dir": str(tmp_path), "cuda": False}
    flags |= {"eval_every": 0, "final_eval_episodes": 1}
    SCRIPTS[algo].main(SCRIPTS[algo].Args(**configuration.flags | flags))
    trained = load_checkpoint(tmp_path / "checkpoint.pt")
    for part in ("policy", "aids", "scale"):
        mine = getattr(agent, part).state_dict()
        torch.testing.assert_close(mine, trained[part], rtol=0, atol=0)


@pytest.mark.parametrize("growth", [False, True])
def test_a_figure_stays_until_the_next_one_is_drawn(growth, in_this_process, monkeypatch, tmp_path):
    series = {"width": [tiny("trxl", width=16)], "memory_length": [tiny("trxl", memory_length=9)]}
    monkeypatch.setattr(benchmark_speed, "growth_configurations", lambda: series)
    monkeypatch.setattr(benchmark_speed, "CONFIGURATIONS", series["width"])
    monkeypatch.setattr(benchmark_speed, "ENVIRONMENTS", [])
    table, figure = ("growth.json", "growth_width.png") if growth else ("speed.json", "speed.png")
    for name in (table, figure):
        (tmp_path / name).write_text("earlier")

    def fails(figure, file, **_):
        Path(file).write_text("half a fig")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        benchmark_speed.main(Options(out=tmp_path, growth=growth, seconds=0.0))
    assert {file.name for file in tmp_path.iterdir()} == {table, figure}
    assert (tmp_path / figure).read_text() == "earlier"
    assert "machine" in json.loads((tmp_path / table).read_text()), "what was measured is lost with the figure"


def test_results_of_growth_wait_for_the_last_series(monkeypatch, tmp_path):
    series = {"width": [tiny("trxl", width=16)], "memory_length": [tiny("trxl", memory_length=9)]}
    monkeypatch.setattr(benchmark_speed, "growth_configurations", lambda: series)

    def measure_all(configurations, seconds):
        if configurations is series["memory_length"]:
            raise RuntimeError("cut off")
        row, _ = benchmark_speed.measure_agent(configurations[0], seconds, [1.0])
        return [row]

    monkeypatch.setattr(benchmark_speed, "measure_all", measure_all)
    with pytest.raises(RuntimeError, match="cut off"):
        benchmark_speed.main(Options(out=tmp_path, growth=True, seconds=0.0))
    assert not list(tmp_path.iterdir())


def test_growth_and_tasks_are_measured_one_after_the_other(tmp_path):
    with pytest.raises(InputError, match="--growth: must not be given with --tasks"):
        benchmark_speed.main(Options(out=tmp_path / "out", growth=True, tasks=True))
    assert not (tmp_path / "out").exists()


def test_wrong_seconds_are_refused(tmp_path):
    with pytest.raises(InputError, match="--seconds -1.0: must be from 0 to 3,600"):
        benchmark_speed.main(Options(out=tmp_path / "new", seconds=-1.0))
    assert not (tmp_path / "new").exists()


CARTPOLE = {"env_id": "palmer/CartPoleNoVelocity-v0", "num_envs": 4, "num_steps": 8, "width": 8}
WIDER = CARTPOLE | {"num_envs": 64, "num_steps": 32}  # few rollouts are enough to see that nothing repeats


def test_tasks_are_measured_beside_recurrent_ppo(in_this_process, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_speed.importlib.util, "find_spec", lambda package: package)
    monkeypatch.setattr(benchmark_speed, "TASKS", {"CartPole": WIDER, "S17Random": WIDER})
    phases = dict.fromkeys(benchmark_speed.PHASES, 0.5)
    args = ppo_lstm.Args(**WIDER)

    def theirs(flags, shared_lstm, seconds):
        return {"algo": f"theirs {shared_lstm}", "flags": flags, **benchmark_speed.speed_of([phases], args)}

    monkeypatch.setattr(benchmark_speed, "measure_recurrent_ppo", theirs)
    benchmark_speed.main(Options(out=tmp_path, tasks=True, seconds=0.0))
    rows = json.loads((tmp_path / "tasks.json").read_text())["agents"]
    ours, beside = ["palmer", "lstm"], ["theirs False", "theirs True"]
    assert [row["algo"] for row in rows] == [*ours, *beside, *ours], "a table has nothing beside it"
    # In six phases of half a second each, of which the environment is one.
    assert rows[2]["steps_per_second"] == 2048 / 3 and rows[2]["learner_steps_per_second"] == 2048 / 2.5
    assert "CartPole: PPO-LSTM" in capsys.readouterr().out
    for row in rows[:2]:
        learner = 1e6 / row["steps_per_second"] - row["microseconds_per_step"]["environment"]
        assert 1e6 / row["learner_steps_per_second"] == pytest.approx(learner)


def test_observations_are_known_not_to_repeat_before_anything_is_timed():
    agent = benchmark_speed.make_agent(Configuration("lstm", "default", CARTPOLE))
    agent.envs.observations.capacity = 100
    agent.envs.max_episode_steps = None  # where it is not known, as in POPGym
    benchmark_speed.fill_memory(agent)
    assert not agent.envs.observations.distinct


def test_without_the_packages_of_others_tasks_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_speed.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        InputError, match=r"--tasks: needs the package sb3_contrib, which pip install -e '.\[compare\]'"
    ):
        benchmark_speed.main(Options(out=tmp_path, tasks=True))


@pytest.mark.parametrize("shared_lstm", [False, True])
def test_recurrent_ppo_is_timed_with_the_settings_of_ppo_lstm(shared_lstm):
    pytest.importorskip("sb3_contrib")
    from study.recurrent_ppo import make_recurrent_ppo

    args = ppo_lstm.Args(**CARTPOLE)
    model = make_recurrent_ppo(args, shared_lstm)
    assert (model.n_envs, model.n_steps, model.batch_size, model.n_epochs) == (4, 8, 8, 3)
    assert model.policy.lstm_actor.hidden_size == 8
    assert (model.policy.lstm_critic is None) == shared_lstm
    row = benchmark_speed.measure_recurrent_ppo(CARTPOLE, shared_lstm, 0.0)
    assert row["steps_per_second"] > 0 and min(row["microseconds_per_step"].values()) >= 0
    for phase in ("environment", "policy in the rollout", "advantages", "update"):
        assert row["microseconds_per_step"][phase] > 0, phase
