"""The page of an evaluation: complete or absent, showing what was played and remembered, and usable in a browser."""

import base64
import json
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
import small_envs  # noqa: F401  (importing it registers its ids)
import torch
from gymnasium import spaces

import evaluate
import palmer_policy
import ppo_lstm
import ppo_palmer
import ppo_trxl
from evaluate import evaluate_policy, load_policy
from harness.checkpoint import save_checkpoint
from harness.input_error import InputError
from palmer_policy import make_policy
from replay.aids import load_aids
from replay.page import PAGED_EPISODES, Page, rounded
from tasks import TaskArgs, make_real_env

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CHROMIUM_FLAGS += ["--disable-sync", "--no-first-run"]
TINY = {"env_id": "MiniGrid-MemoryS7-v0", "obs_mode": "symbolic", "max_episode_steps": 24, "total_timesteps": 128}
TINY |= {"num_envs": 4, "num_steps": 16, "num_minibatches": 2, "width": 16, "eval_every": 0, "cuda": False}
TINY |= {"final_eval_episodes": 1}
EVIL = "</script><script>document.title='broken'</script><b>&"


class Hostile(small_envs.Plain):
    """Names its actions so as to break out of a page."""

    actions = (EVIL, "<img src=x onerror=\"document.title='broken'\">", "\u2028")


class Symbols(small_envs.Plain):
    """Observations as symbols, as in POPGym; cannot draw itself."""

    metadata = {"render_modes": []}
    observation_space = spaces.Tuple((spaces.Discrete(4), spaces.Discrete(3)))

    def observe(self):
        return int(self.np_random.integers(4)), int(self.np_random.integers(3))


gym.register("Case/Hostile-v0", entry_point=Hostile, max_episode_steps=50)
gym.register("Case/Symbols-v0", entry_point=Symbols, max_episode_steps=50)


def data_of(file):
    """What stands in the page."""
    text = file.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def unpacked(text):
    return np.frombuffer(base64.b64decode(text), np.uint8) / 255


def attention_of(agent, episode):
    """(T, L H, T) from the page's bytes."""
    T, rows, at = len(episode["action"]), agent["layers"] * agent["heads"], 0
    values, most = unpacked(episode["attention"]["weights"]), np.reshape(episode["attention"]["most"], (-1, rows, 1))
    weights = np.zeros((T, rows, T))
    for t in range(T):
        n = min(t + 1, agent["memory_length"])
        weights[t, :, t + 1 - n : t + 1] = values[at : at + rows * n].reshape(rows, n) * most[t]
        at += rows * n
    assert at == len(values)
    return weights


def policy_for(task, script=ppo_palmer, **flags):
    env = make_real_env(task)
    torch.manual_seed(0)
    settings = vars(script.Args(**{"width": 16, **flags}))
    policy = make_policy(script.ALGO, settings, env.observation_space, env.action_space)
    torch.nn.init.normal_(policy.actor.weight, std=0.3)
    return policy


def page_of(file, task, script=ppo_palmer, aids=None, episodes=2, flags=None, **settings):
    """A page of an agent that has learned nothing."""
    with Page(file) as page:
        policy = policy_for(task, script, **(flags or {}))
        about = {"algo": script.ALGO, "file": "checkpoint.pt", "steps_trained": 0, "env_id": task.env_id}
        track = page.track(policy, aids, **about, trained_on=task.env_id, seed=1, greedy=False)
        evaluate_policy(policy, task, script.ALGO, 0, episodes=episodes, seed=1, track=track, **settings)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints of agents that have hardly learned anything, by name of the algorithm."""
    files = {}
    for script in (ppo_palmer, ppo_lstm, ppo_trxl):
        folder = tmp_path_factory.mktemp(script.ALGO)
        layers = {"trxl_layers": 2, "memory_length": 7} if script is not ppo_lstm else {}
        script.main(script.Args(**TINY, **layers, run_dir=str(folder)))
        files[script.ALGO] = str(folder / "checkpoint.pt")
    return files


@pytest.fixture(scope="module")
def paged(trained, tmp_path_factory):
    """Evaluation's result and the page of its three episodes."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    return evaluate.main(evaluate.Args(checkpoint=trained["palmer"], page=str(file), seed=5)), file


# ------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("name", ["page.htm", "page", "page.html.txt"])
def test_other_suffixes_are_refused_at_once(tmp_path, name):
    with pytest.raises(InputError, match=r"--page .*page.*\.html"):
        Page(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused_before_an_episode_is_played(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evaluate, "play", lambda *a, **k: pytest.fail("it was played"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    for place in (tmp_path / "missing" / "p.html", tmp_path / "file" / "p.html", tmp_path / "folder.html"):
        with pytest.raises(InputError, match="--page .*folder"):
            evaluate.main(evaluate.Args(checkpoint=trained["palmer"], page=str(place)))


def test_what_cannot_stand_beside_is_refused_before_an_episode_is_played(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evaluate, "play", lambda *a, **k: pytest.fail("it was played"))
    payload = torch.load(trained["lstm"], weights_only=True)
    other = tmp_path / "other.pt"
    save_checkpoint(other, payload | {"args": payload["args"] | {"env_id": "MiniGrid-MemoryS9-v0"}})
    page = str(tmp_path / "p.html")
    for flags, sentence in (
        ({"beside": trained["lstm"]}, "--beside .*: must be given with --page"),
        ({"beside": str(other), "page": page}, "--beside .*--env-id MiniGrid-MemoryS9-v0.*MiniGrid-MemoryS7-v0"),
        ({"beside": str(tmp_path / "none.pt"), "page": page}, "--beside .*none.pt: there is no such file"),
    ):
        with pytest.raises(InputError, match=sentence):
            evaluate.main(evaluate.Args(checkpoint=trained["palmer"], **flags))
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_a_page_left_by_an_exception_leaves_an_older_one_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("an older page")
    with pytest.raises(ZeroDivisionError), Page(file):
        raise ZeroDivisionError

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("replay.page.os.replace", fail)
    with pytest.raises(OSError, match="disk full"), Page(file):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and file.read_text() == "an older page"


def test_aids_that_do_not_fit_are_refused(trained, tmp_path):
    payload = torch.load(trained["palmer"], weights_only=True)
    payload["aids"]["heads"]["age.age.weight"] = torch.zeros(3, 16)
    save_checkpoint(tmp_path / "odd.pt", payload)
    with pytest.raises(InputError, match=r"--checkpoint .*odd\.pt: its memory aids do not fit"):
        evaluate.main(evaluate.Args(checkpoint=str(tmp_path / "odd.pt"), page=str(tmp_path / "p.html")))
    assert not (tmp_path / "p.html").exists()


def test_the_page_asks_for_nothing_outside_of_it(paged):
    text = paged[1].read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link|fetch\(|XMLHttp|WebSocket|import\(", text)
    assert "default-src 'none'" in text


def test_three_maze_episodes_take_less_than_five_megabytes(tmp_path):
    """Of an agent that walks about until its time is out."""
    task = TaskArgs("MiniGrid-MemoryS17Random-v0")
    file = page_of(tmp_path / "page.html", task, episodes=3, flags={"width": 128, "trxl_layers": 3})
    assert sum(episode["steps"] for episode in data_of(file)["agents"][0]["episodes"]) > 100
    assert file.stat().st_size < 5e6


def test_names_from_outside_cannot_break_out_of_the_data(tmp_path):
    file = page_of(tmp_path / "page.html", TaskArgs("Case/Hostile-v0"))
    text = file.read_text(encoding="utf-8")
    assert EVIL not in text and text.count("<script") == 2 and "<img src=x" not in text
    chances = data_of(file)["agents"][0]["episodes"][0]["chances"][0][0]
    assert [name for _, name, _, _ in chances] == list(Hostile.actions)


# ------------------------------------------------------------------------------------------ what was played


def test_three_episodes_are_played_unless_told_and_ten_are_shown(trained, tmp_path, paged):
    assert paged[0]["episodes"] == len(data_of(paged[1])["agents"][0]["episodes"]) == 3
    file = tmp_path / "page.html"
    args = evaluate.Args(checkpoint=trained["palmer"], page=str(file), episodes=14, max_episode_steps=3)
    assert evaluate.main(args)["episodes"] == 14
    (agent,) = data_of(file)["agents"]
    assert [episode["number"] for episode in agent["episodes"]] == list(range(PAGED_EPISODES))
    assert evaluate.main(evaluate.Args(checkpoint=trained["lstm"], max_episode_steps=1))["episodes"] == 1000


def test_the_page_has_the_numbers_of_the_evaluation(trained, paged):
    result, file = paged
    data = data_of(file)
    (agent,) = data["agents"]
    ends = agent["episodes"]
    assert result["mean_length"] == pytest.approx(np.mean([end["steps"] for end in ends]))
    assert result["mean_return"] == pytest.approx(np.mean([end["return"] for end in ends]), rel=1e-4)
    assert result["success_rate"] == np.mean([end["success"] for end in ends])

    policy, task, _ = load_policy(trained["palmer"])
    envs = [make_real_env(task, "rgb_array") for _ in range(3)]
    for moment in evaluate.play(policy, envs, 3, seed=5):
        shown = ends[moment.episode]
        assert shown["reward"][moment.step] == rounded(moment.reward)
        assert shown["total"][moment.step] == rounded(moment.total_reward)
        assert 0 <= shown["scene"][moment.step] < len(data["pictures"])
        if moment.end:
            assert shown["end"] == moment.end and shown["steps"] == moment.step == len(shown["action"])
            continue
        t, D = moment.step, shown["width"]
        assert shown["value"][t] == rounded(moment.value)
        assert shown["gate_mean"][t] == rounded(moment.gate.mean())
        np.testing.assert_allclose(unpacked(shown["gate"])[t * D : (t + 1) * D], moment.gate, atol=0.5 / 255 + 1e-6)
        probs = moment.outputs.logits[0, moment.row].softmax(-1).numpy()
        (component,) = shown["chances"][t]
        assert [p for _, _, p, _ in component] == pytest.approx(probs.tolist(), rel=1e-4)
        assert [number for number, _, _, chosen in component if chosen] == [moment.action]


def test_the_lstm_moves_as_its_state_does(trained, paged):
    policy, task, _ = load_policy(trained["palmer"])
    (agent,) = data_of(paged[1])["agents"]
    before = {}
    for moment in evaluate.play(policy, [make_real_env(task) for _ in range(3)], 3, seed=5):
        if not moment.end:
            h = moment.states.h[:, moment.row]
            moved = (h - before.get(moment.episode, 0 * h)).square().mean().sqrt().item()
            assert agent["episodes"][moment.episode]["moved_mean"][moment.step] == pytest.approx(moved, rel=1e-3)
            before[moment.episode] = h


def test_equal_pictures_and_observations_stand_once(paged):
    data = data_of(paged[1])
    shown = {number for episode in data["agents"][0]["episodes"] for number in episode["scene"]}
    assert len(set(data["pictures"])) == len(data["pictures"]) > len(shown)
    texts = [json.dumps(look) for look in data["looks"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("script", [ppo_palmer, ppo_lstm, ppo_trxl])
@pytest.mark.parametrize(
    "task",
    [
        TaskArgs("Case/Symbols-v0"),
        TaskArgs("Case/Continuous-v0"),
        TaskArgs("Case/Switches-v0", last_action=True, last_reward=True),
        TaskArgs("Case/TinyPicture-v0"),
        TaskArgs("palmer/TMazePassive-v0", env_kwargs='{"length": 5}'),
        TaskArgs("MiniGrid-GoToObject-6x6-N2-v0", obs_mode="symbolic", max_episode_steps=5),
    ],
    ids=lambda task: task.env_id,
)
def test_every_kind_of_task_and_agent_has_a_page(tmp_path, task, script):
    data = data_of(page_of(tmp_path / "page.html", task, script))
    (agent,) = data["agents"]
    episode = agent["episodes"][0]
    assert (agent["lstm"], agent["gate"], agent["layers"] > 0) == {
        "palmer": (True, True, True),
        "lstm": (True, False, False),
        "trxl": (False, False, True),
    }[script.ALGO]
    assert ("attention" in episode, "moved" in episode, "gate" in episode) == (
        agent["layers"] > 0,
        agent["lstm"],
        agent["gate"],
    )
    assert len(episode["obs"]) == len(episode["reward"]) == episode["steps"] + 1
    look, component = data["looks"][0], episode["chances"][0]
    kind = {"Case/Symbols-v0": "symbols", "Case/TinyPicture-v0": "picture"}.get(task.env_id)
    if kind:
        assert set(look[0]) == {kind}
    if task.env_id == "Case/Symbols-v0":
        assert [size for _, size in look[0]["symbols"]] == [4, 3] and episode["scene"][0] is None
    elif task.env_id == "Case/Continuous-v0":
        assert len(component) == 2 and all(len(part) == 3 for part in component)
    elif task.env_id == "Case/Switches-v0":
        assert [len(part) for part in component] == [2] * 4
        assert len(look) == 2 and len(look[1]["last"]) == 9  # a bit one-hot each, and the reward
    elif "GoToObject" in task.env_id:
        assert "go to the" in look[1]["words"]


def test_of_a_long_episode_the_first_steps_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "UNLIMITED_STEPS", 57)
    monkeypatch.setattr("replay.page.PAGED_STEPS", 50)
    file = page_of(tmp_path / "page.html", TaskArgs("Case/Endless-v0"), ppo_trxl, episodes=1)
    (episode,) = data_of(file)["agents"][0]["episodes"]
    assert (episode["steps"], len(episode["obs"]), len(episode["action"])) == (57, 50, 50)


# ------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("script", [ppo_palmer, ppo_trxl])
def test_attention_is_that_with_which_the_policy_acts(tmp_path, monkeypatch, script):
    """Caught where the policy attends, step by step while it plays."""
    caught = []
    attend = palmer_policy.AttentionWeights.apply

    def watched(q, k, hidden):
        if q.shape[2] == 1:  # of a step; the page runs over the whole episode
            caught.append((q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf).softmax(-1)[0, :, 0])
        return attend(q, k, hidden)

    monkeypatch.setattr(palmer_policy.AttentionWeights, "apply", watched)
    flags = {"trxl_layers": 2, "trxl_heads": 4, "memory_length": 6}
    task = TaskArgs("MiniGrid-MemoryS9-v0", obs_mode="symbolic", max_episode_steps=20)
    (agent,) = data_of(page_of(tmp_path / "p.html", task, script, episodes=1, flags=flags))["agents"]
    (episode,) = agent["episodes"]
    weights = attention_of(agent, episode)
    np.testing.assert_allclose(weights.sum(2), 1, atol=6 / 255)
    for t in range(len(weights)):
        expected = torch.cat(caught[2 * t : 2 * t + 2]).numpy()  # (L H, seen)
        n = expected.shape[1]
        assert n == min(t + 1, 6)
        np.testing.assert_allclose(weights[t, :, t + 1 - n : t + 1], expected, atol=0.6 / 255)


def test_attention_stays_within_episode_memory_and_past():
    policy = policy_for(TaskArgs("Case/Bit-v0"), memory_length=4)
    T, B = 150, 2  # more than one block of queries
    frames = (torch.rand(T, B, *policy.observation_space[0].shape),)
    start = torch.zeros(T, B, dtype=torch.bool)
    start[0], start[70, 0], start[9, 1] = True, True, True
    weights = policy.attention(frames, policy.initial_state(B), start)
    assert weights.shape == (1, B, 4, T, T)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, B, 4, T))
    query, key = torch.arange(T)[:, None], torch.arange(T)
    episode = start.cumsum(0)
    for b in range(B):
        seen = (key <= query) & (key > query - 4) & (episode[:, b][None] == episode[:, b][:, None])
        assert ((weights[0, b] > 0) == seen).all()
    policy.forget = True
    assert (policy.attention(frames, policy.initial_state(B), start).diagonal(dim1=-2, dim2=-1) == 1).all()


def test_attention_reaches_into_the_memory_that_a_step_starts_with():
    policy = policy_for(TaskArgs("Case/Bit-v0"), trxl_layers=2, memory_length=8)
    frames = (torch.rand(12, 1, 2),)
    start = torch.arange(12)[:, None] == 0
    whole = policy.attention(frames, policy.initial_state(1), start)
    state = policy.initial_state(1)
    with torch.no_grad():
        for t in range(12):
            now = (frames[0][t : t + 1],), state, start[t : t + 1]
            weights = policy.attention(*now)
            n = weights.shape[-1]
            torch.testing.assert_close(weights[..., 0, :], whole[..., t, t + 1 - n : t + 1], atol=1e-6, rtol=1e-5)
            state = policy(*now)[1]
    assert policy_for(TaskArgs("Case/Bit-v0"), ppo_lstm).attention(*now) is None


# --------------------------------------------------------------------------------------------------- recall


def test_recall_is_what_the_heads_answer(trained, paged):
    policy, task, checkpoint = load_policy(trained["palmer"])
    aids = load_aids(checkpoint, task, "--checkpoint")
    (agent,) = data_of(paged[1])["agents"]
    C, table = aids.codes.count, aids.table.frames[0].numpy()
    seen = {}
    with torch.no_grad():
        for moment in evaluate.play(policy, [make_real_env(task) for _ in range(3)], 3, seed=5):
            if moment.end:
                continue
            shown, t = agent["episodes"][moment.episode], moment.step
            (code,) = [c for c in range(C) if (table[c] == moment.obs[0]).all()]
            met = seen.setdefault(moment.episode, {})
            met.setdefault(code, t)
            logits = aids.heads["seen"](moment.outputs.memory[0, moment.row], C)
            believed = {c for c in range(C) if logits[c] > 0}
            recall = shown["recall"]
            assert recall["seen"][t] == len(met) and recall["codes"] == C
            assert recall["missed"][t] == len(met.keys() - believed)
            assert recall["invented"][t] == len(believed - met.keys())
            K = len(recall["look"])
            beliefs = unpacked(recall["belief"])[t * K : (t + 1) * K]
            for i, first in enumerate(recall["first"]):
                if first is not None and first <= t:
                    (code,) = [c for c in met if met[c] == first]
                    assert beliefs[i] == pytest.approx(logits[c := code].sigmoid().item(), abs=0.6 / 255)
                    read = sum(part[t][i] for part in recall["parts"]) + aids.heads["seen"].bias[c].item()
                    assert read == pytest.approx(logits[c].item(), abs=0.05)
                    assert shown["obs"][first] == recall["look"][i]


def test_recall_by_age_is_what_the_head_picks(trained, paged):
    policy, task, checkpoint = load_policy(trained["palmer"])
    aids = load_aids(checkpoint, task, "--checkpoint")
    (agent,) = data_of(paged[1])["agents"]
    shown = agent["episodes"][1]
    moments = [m for m in evaluate.play(policy, [make_real_env(task) for _ in range(3)], 3, seed=5) if m.episode == 1]
    frames = {shown["obs"][m.step]: torch.from_numpy(m.obs[0]) for m in moments[:-1]}
    assert shown["age"]["among"] == len(frames)
    with torch.no_grad():
        encoded = policy.encoder((torch.stack(list(frames.values())),))
        for t, moment in enumerate(moments[:-1]):
            picked = shown["age"]["picked"][t]
            assert len(picked) == min(t, 16)
            for age, look in enumerate(picked, 1):
                z = moment.outputs.memory[:, moment.row]
                logits = aids.heads["age"](z, torch.tensor([age]), encoded)
                assert look == list(frames)[logits.argmax()]


def test_an_agent_without_recall_has_none_to_show(trained, tmp_path):
    payload = torch.load(trained["trxl"], weights_only=True)
    del payload["aids"]
    save_checkpoint(tmp_path / "bare.pt", payload)
    evaluate.main(evaluate.Args(checkpoint=str(tmp_path / "bare.pt"), page=str(tmp_path / "p.html"), episodes=1))
    (agent,) = data_of(tmp_path / "p.html")["agents"]
    assert not agent["aids"] and not {"recall", "age"} & agent["episodes"][0].keys()


def test_what_training_never_met_is_no_code(trained):
    """An agent can play another maze than that it learned in."""
    _, task, checkpoint = load_policy(trained["palmer"])
    codes = load_aids(checkpoint, task, "--checkpoint").codes
    known = codes.table.frames[0][:3]
    assert codes.of((torch.cat((known, torch.zeros_like(known[:1]))),)).tolist() == [0, 1, 2, -1]
    assert codes.count == len(codes.table.frames[0]), "asking teaches nothing"


# ------------------------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on PATH; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS, timeout=0)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a page: opened(file, **context) -> the tab; at the end there must have been no error and no request.

    Nothing depends on how fast it is: no wait has an end, and the tab's clock goes on by `tab.clock.run_for` alone.
    """
    troubles, contexts = [], []

    def open_page(file, **context):
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}))
        contexts[-1].set_default_timeout(0)
        tab = contexts[-1].new_page()
        tab.clock.install(time=0)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda message: troubles.append(message.text) if message.type != "log" else None)
        tab.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        tab.goto(file.as_uri())
        tab.clock.pause_at(1000)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def figure(tab, name, agent=0):
    text = tab.locator(".agent").nth(agent).locator(f"[data-figure='{name}'] b").inner_text()
    return float(text.replace("−", "-"))


def step_of(tab):
    return int(tab.locator("#slider").input_value())


def test_it_opens_and_shows_the_numbers_of_the_evaluation(opened, paged):
    tab, data = opened(paged[1]), data_of(paged[1])
    assert tab.title() == "PALMER on MemoryS7"
    for number, episode in enumerate(data["agents"][0]["episodes"]):
        tab.locator("#episodes button").nth(number).click()
        for t in (0, len(episode["action"]) // 2, len(episode["action"]) - 1):
            tab.locator("#slider").fill(str(t))
            assert figure(tab, "value") == pytest.approx(episode["value"][t], abs=0.0051)
            assert figure(tab, "gate") == pytest.approx(episode["gate_mean"][t], abs=0.0051)
            assert figure(tab, "return so far") == pytest.approx(episode["total"][t], abs=0.0051)
            assert tab.locator(".bars .chosen").first.inner_text().startswith(episode["action"][t])
            assert tab.locator(".scene img").get_attribute("src") == data["pictures"][episode["scene"][t]]
            picture = data["looks"][episode["obs"][t]][0]["picture"]
            assert tab.locator(".view img").get_attribute("src") == data["pictures"][picture]
        tab.locator("#slider").fill(str(episode["steps"]))
        assert tab.locator(".end").inner_text().startswith("success" if episode["success"] else ("fail", "out of"))


def test_it_plays_pauses_and_stops_at_the_end(opened, paged):
    tab = opened(paged[1])
    last = int(tab.locator("#slider").get_attribute("max"))
    assert step_of(tab) == 0 and last > 5
    tab.get_by_role("button", name="Play").click()
    tab.clock.run_for(760)  # of four steps a second
    assert step_of(tab) == 3
    tab.locator("#speed").select_option("32")
    tab.clock.run_for(300)  # the fourth step at 1,000 ms, from there on 32 a second
    assert step_of(tab) == 5
    tab.get_by_role("button", name="Pause").click()
    paused = step_of(tab)
    tab.clock.run_for(1000)
    assert step_of(tab) == paused
    tab.locator("#slider").fill(str(last))
    tab.get_by_role("button", name="Play").click()  # from the start again
    tab.clock.run_for(10)
    assert step_of(tab) == 0
    tab.clock.run_for(32 * (last + 2))
    assert step_of(tab) == last and tab.locator("#play").inner_text() == "Play"


def test_it_is_used_by_keyboard_and_screen_reader(opened, paged):
    tab = opened(paged[1])
    last = int(tab.locator("#slider").get_attribute("max"))
    for key, step in (("End", last), ("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        tab.keyboard.press(key)
        assert step_of(tab) == step
    assert tab.locator("#status").inner_text().startswith("Step 1. sees a picture; action ")
    tab.keyboard.press("Shift+ArrowRight")
    assert step_of(tab) == min(11, last)
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#episodes [aria-pressed=true]").inner_text().startswith("Episode 2")
    tab.locator("#slider").focus()
    tab.keyboard.press("ArrowRight")
    assert step_of(tab) == 1, "once, not by the slider and the page"
    tab.keyboard.press("Space")
    assert tab.locator("#play").inner_text() == "Pause"
    tab.keyboard.press("Space")
    unnamed = (
        "[...document.querySelectorAll('button, input, select, canvas, [role=img]')].filter(x => !("
        "x.textContent.trim() || x.ariaLabel || x.closest('label') || x.title)).length"
    )
    assert tab.evaluate(unnamed) == 0


def test_the_timeline_is_a_place_to_click_and_to_look(opened, paged):
    tab, (agent,) = opened(paged[1]), data_of(paged[1])["agents"]
    tab.locator("#slider").fill("6")
    lane = tab.locator("[data-lane=heads] canvas")
    lane.scroll_into_view_if_needed()
    box, positions = lane.bounding_box(), len(agent["episodes"][0]["obs"])
    place = {"x": box["width"] * 3.5 / positions, "y": box["height"] / 2}
    lane.hover(position=place)
    tip = tab.locator("#tip")
    assert tip.is_visible() and "step 3: " in tip.inner_text() and tip.locator("img").count() == 1
    weight = attention_of(agent, agent["episodes"][0])[6, 4:, 3].mean()  # of the last layer
    told = int(re.search(r"gets <?(\d+)% of step 6", tip.inner_text())[1])
    assert told == pytest.approx(max(1, 100 * weight), abs=0.51)
    lane.click(position=place)
    assert step_of(tab) == 3
    tab.get_by_role("button", name="pin what is seen now").click()
    assert tab.locator(".memory").inner_text().count("step ") >= 1


@pytest.fixture(scope="module")
def beside(trained, tmp_path_factory):
    """The page of two agents."""
    file = tmp_path_factory.mktemp("beside") / "page.html"
    args = evaluate.Args(checkpoint=trained["palmer"], beside=trained["lstm"], page=str(file), episodes=2)
    assert evaluate.main(args)["beside"]["algo"] == "lstm"
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(opened, beside, scheme):
    tab = opened(beside, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.locator(".agent").count() == 2
    tab.locator("#slider").fill("2")
    agents = data_of(beside)["agents"]
    for i, agent in enumerate(agents):
        assert figure(tab, "value", i) == pytest.approx(agent["episodes"][0]["value"][2], abs=0.0051)
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    dark = tab.evaluate(brightness) < 128
    assert dark == (scheme == "dark")
    tab.locator("#theme").click()
    assert (tab.evaluate(brightness) < 128) != dark


@pytest.mark.parametrize(
    "task, script",
    [
        (TaskArgs("Case/Symbols-v0"), ppo_palmer),
        (TaskArgs("Case/Continuous-v0", last_reward=True), ppo_trxl),
        (TaskArgs("Case/Switches-v0"), ppo_lstm),
        (TaskArgs("MiniGrid-GoToObject-6x6-N2-v0", obs_mode="symbolic", max_episode_steps=5), ppo_palmer),
        (TaskArgs("Case/Hostile-v0"), ppo_lstm),
    ],
    ids=lambda value: getattr(value, "env_id", ""),
)
def test_every_kind_of_page_opens_and_moves(opened, tmp_path, task, script):
    tab = opened(page_of(tmp_path / "page.html", task, script))
    before = tab.locator(".view").inner_html()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#where").inner_text().startswith("step 1 of ")
    tab.keyboard.press("End")
    assert tab.locator(".view").inner_html() != before or task.env_id.startswith("MiniGrid")
    words = tab.locator("body").inner_text()
    assert ("no Transformer" in words) == (script is ppo_lstm) and "no recall heads" in words
    assert tab.title() != "broken"
