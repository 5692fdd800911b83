"""The three policies: one forward for a step and a segment, and memory that sees exactly what it may."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

import palmer_policy
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.input_error import InputError
from palmer_policy import (
    AdaptiveGate,
    AttentionWeights,
    Categoricals,
    GatedLinear,
    Gaussians,
    KeyValueCache,
    LSTMMemory,
    LSTMScan,
    MemoryState,
    ObservationEncoder,
    TransformerMemory,
    episode_clock,
    make_policy,
)
from tasks.observations import grid_space, plain_observation, plain_space

SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]
WITH_TRANSFORMER = [ppo_palmer, ppo_trxl]
VECTOR = spaces.Tuple((spaces.Box(-1, 1, (5,)),))
M = 6


def small_policy(script, **flags):
    torch.manual_seed(0)
    args = script.Args(width=32)
    flags = {"memory_length": M, "trxl_layers": 2, "lstm_layers": 2} | flags
    for name, value in flags.items():
        if hasattr(args, name):
            setattr(args, name, value)
    policy = make_policy(script.ALGO, vars(args), VECTOR, spaces.Discrete(3))
    torch.nn.init.normal_(policy.actor.weight)  # its usual start is too small to show differences
    return policy


def carried_state(policy, B):
    """The state after a first segment with episode starts of its own, longer than the memory."""
    with torch.no_grad():
        return policy((torch.randn(13, B, 5),), policy.initial_state(B), torch.rand(13, B) < 0.15)[1]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("B", [1, 4])
def test_step_by_step_equals_segment(script, B):
    policy = small_policy(script)
    T = 40
    obs, start = torch.randn(T, B, 5), torch.rand(T, B) < 0.1
    start[3, 0] = True
    start[-2, 0] = True
    state = carried_state(policy, B)
    segment, after_segment = policy((obs,), state, start)
    steps = []
    for t in range(T):
        output, state = policy((obs[t : t + 1],), state, start[t : t + 1])
        steps.append(output)
    for name in ("logits", "value", "memory"):
        stepped = torch.cat([getattr(output, name) for output in steps])
        torch.testing.assert_close(stepped, getattr(segment, name), atol=1e-5, rtol=0)
    for stepped, whole in zip(state.tensors(), after_segment.tensors(), strict=True):
        torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("script", SCRIPTS)
@torch.no_grad()
def test_what_differs_between_step_and_segment_is_rounding(script):
    """In float64 the two agree nine digits further: no approximation is left that float32 would hide."""
    policy = small_policy(script).double()
    obs, start = torch.randn(40, 3, 5, dtype=torch.float64), torch.rand(40, 3) < 0.1
    state = policy((obs.flip(0),), policy.initial_state(3), start.flip(0))[1]
    segment = policy((obs,), state, start)[0]
    assert segment.logits.dtype == torch.float64
    for t in range(40):
        output, state = policy((obs[t : t + 1],), state, start[t : t + 1])
        torch.testing.assert_close(output.logits[0], segment.logits[t], atol=1e-13, rtol=0)
        torch.testing.assert_close(output.value[0], segment.value[t], atol=1e-13, rtol=0)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("learning", [True, False])
def test_state_is_never_changed_in_place(script, learning):
    policy = small_policy(script)
    state = carried_state(policy, 3)
    before = state.tensors()
    obs, start = torch.randn(4, 3, 5), torch.zeros(4, 3, dtype=torch.bool)
    with torch.set_grad_enabled(learning):
        first = policy((obs,), state, start)[0]
        second = policy((obs,), state, start)[0]
    for part, copy in zip(state.tensors(), before, strict=True):
        assert torch.equal(part, copy)
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("script", SCRIPTS)
@torch.no_grad()
def test_a_state_can_be_carried_on_along_two_branches(script):
    """Step by step, where the branches would write their keys and values into the same buffer."""
    policy = small_policy(script)
    obs, start = torch.randn(2, 30, 1, 3, 5), torch.zeros(1, 3, dtype=torch.bool)
    root = policy((obs[0, 0],), policy.initial_state(3), start)[1]
    root = policy((obs[0, 1],), root, start)[1]  # its buffer has room left
    no_start = start.expand(30, 3)
    alone = [policy((branch.flatten(0, 1),), root, no_start)[0].memory for branch in obs]
    one = two = root
    for t in range(30):  # turn by turn
        seen_by_one, one = policy((obs[0, t],), one, start)
        seen_by_two, two = policy((obs[1, t],), two, start)
        torch.testing.assert_close(seen_by_one.memory[0], alone[0][t], atol=1e-5, rtol=0)
        torch.testing.assert_close(seen_by_two.memory[0], alone[1][t], atol=1e-5, rtol=0)


def test_a_cache_appends_in_place_and_copies_only_when_branched():
    def steps(*values):
        return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1)

    def held(cache):
        return cache.window.flatten().tolist()

    root = KeyValueCache(steps(1, 2)).append(steps(3))
    longer = root.append(steps(4))
    other = root.append(steps(5, 6))
    assert (held(root), held(longer), held(other)) == ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5, 6])
    assert longer.window.data_ptr() == root.window.data_ptr() != other.window.data_ptr()
    assert held(longer.last(2).append(steps(7))) == [3, 4, 7]
    assert held(longer.append(steps(8))) == [1, 2, 3, 4, 8]
    for value in range(100):  # past the end of the buffer
        longer = longer.append(steps(value)).last(3)
    assert held(longer) == [97, 98, 99]


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_leaks_from_the_future_other_episodes_or_environments(script):
    policy = small_policy(script)
    T, B, t, reset = 24, 3, 10, 15
    state = carried_state(policy, B)
    obs, start = torch.randn(T, B, 5), torch.zeros(T, B, dtype=torch.bool)
    start[reset, 0] = True
    changed = obs.clone()
    changed[t, 0] += 1.0
    a, b = policy((obs,), state, start)[0].memory, policy((changed,), state, start)[0].memory
    difference = (a - b).abs().amax(-1)  # (T, B)
    assert difference[:t, 0].max() < 1e-6, "a step sees the future"
    assert difference[reset:, 0].max() < 1e-6, "an episode sees the one before it"
    assert difference[:, 1:].max() < 1e-6, "an environment sees another one"
    assert difference[t:reset, 0].min() > 1e-4, "the episode itself must remember the change"


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_episode_start_empties_the_carried_state(script):
    policy = small_policy(script)
    obs, start = torch.randn(5, 2, 5), torch.zeros(5, 2, dtype=torch.bool)
    start[0] = True
    fresh = policy((obs,), policy.initial_state(2), start)[0].logits
    torch.testing.assert_close(policy((obs,), carried_state(policy, 2), start)[0].logits, fresh, atol=1e-6, rtol=0)


def test_one_transformer_layer_sees_exactly_the_last_M_steps():
    policy = small_policy(ppo_trxl, trxl_layers=1)
    obs, start = torch.randn(20, 1, 5), torch.zeros(20, 1, dtype=torch.bool)
    changed = obs.clone()
    changed[4] += 1.0
    state = policy.initial_state(1)
    difference = (
        (policy((obs,), state, start)[0].memory - policy((changed,), state, start)[0].memory).abs().amax((1, 2))
    )
    assert difference[4 : 4 + M].min() > 1e-5
    assert difference[4 + M :].max() < 1e-6


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("back", [1, M - 1])
def test_gradient_reaches_the_cue(script, back):
    policy = small_policy(script)
    obs, start = torch.randn(20, 2, 5, requires_grad=True), torch.zeros(20, 2, dtype=torch.bool)
    output, _ = policy((obs,), carried_state(policy, 2), start)
    output.logits[-1, 0].sum().backward()
    assert obs.grad[-1 - back, 0].abs().max() > 1e-6
    assert obs.grad[:, 1].abs().max() == 0


@pytest.mark.parametrize("script", WITH_TRANSFORMER)
def test_blocks_of_queries_change_nothing(script, monkeypatch):
    policy = small_policy(script)
    state = carried_state(policy, 3)
    obs, start = torch.randn(23, 3, 5), torch.rand(23, 3) < 0.1
    whole = policy((obs,), state, start)[0].logits
    monkeypatch.setattr(palmer_policy, "QUERY_BLOCK", 4)
    torch.testing.assert_close(policy((obs,), state, start)[0].logits, whole, atol=2e-5, rtol=0)


def test_attention_mask_by_hand():
    """The example drawn in TransformerMemory.attention_blocks."""
    memory = TransformerMemory(width=8, layers=1, heads=2, memory_length=3, ff_width=8)
    clock, start = torch.tensor([2]), torch.tensor([[0], [0], [1], [0]]).bool()
    position, first = episode_clock(clock, start)
    assert position[:, 0].tolist() == [2, 3, 0, 1]
    ((queries, keys, hidden),) = memory.attention_blocks(first, C=2)
    assert (queries, keys) == (slice(0, 4), slice(0, 6))
    seen = [[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
    assert (~hidden[0, 0]).int().tolist() == seen


@pytest.mark.parametrize("script", WITH_TRANSFORMER)
def test_an_unused_memory_costs_nothing(script):
    """The cache is as long as the longest running episode, not as long as the memory."""
    policy = small_policy(script, memory_length=10_000)
    start = torch.zeros(9, 2, dtype=torch.bool)
    start[4], start[6, 0] = True, True
    state = policy((torch.randn(9, 2, 5),), policy.initial_state(2), start)[1]
    assert [len(kv) for kv in state.cache] == [5, 5]


def test_lstm_equals_torch_without_resets():
    torch.manual_seed(0)
    D, T, B = 8, 9, 3
    ours, theirs = LSTMMemory(D, layers=2), torch.nn.LSTM(D, D, num_layers=2)

    def their_order(weight):  # i, f, o, n -> i, f, n, o
        i, f, o, n = weight.chunk(4)
        return torch.cat((i, f, n, o))

    for layer in range(2):
        getattr(theirs, f"weight_ih_l{layer}").data = their_order(ours.input[layer].weight.data)
        getattr(theirs, f"weight_hh_l{layer}").data = their_order(ours.weight_hh[layer].data)
        getattr(theirs, f"bias_ih_l{layer}").data.zero_()
        getattr(theirs, f"bias_hh_l{layer}").data.zero_()
    x, h, c = torch.randn(T, B, D), torch.randn(2, B, D), torch.randn(2, B, D)
    y, last_h, last_c = ours(x, h, c, torch.zeros(T, B, dtype=torch.bool))
    y_theirs, (last_h_theirs, last_c_theirs) = theirs(x, (h, c))
    torch.testing.assert_close(y, ours.norm(y_theirs), atol=1e-5, rtol=0)
    torch.testing.assert_close(last_h, last_h_theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(last_c, last_c_theirs, atol=1e-6, rtol=0)


def test_lstm_gradients_with_resets():
    torch.manual_seed(0)
    T, B, D = 5, 2, 3
    shapes = [(T, B, 4 * D), (4 * D, D), (B, D), (B, D)]
    inputs = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    keep = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.double)[..., None]
    assert torch.autograd.gradcheck(LSTMScan.apply, (*inputs, keep))


def attention_case(T, S, dtype):
    """q, k of D/H = 32; hidden is the future and, of every second sequence, the first key but for query 0."""
    q, k = torch.randn(4, 2, T, 32, dtype=dtype), torch.randn(4, 2, S, 32, dtype=dtype)
    hidden = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1).repeat(4, 1, 1, 1)
    hidden[::2, :, 1:, 0] = True
    return q, k, hidden


def test_attention_weights_and_their_gradients_are_those_of_pytorch():
    torch.manual_seed(0)
    q, k, hidden = attention_case(5, 7, torch.double)
    v = torch.randn(4, 2, 7, 32, dtype=torch.double)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
    torch.testing.assert_close(AttentionWeights.apply(q, k, hidden) @ v, expected)
    inputs = (q[:, :1, :, :3].clone().requires_grad_(), k[:, :1, :, :3].clone().requires_grad_())
    assert torch.autograd.gradcheck(AttentionWeights.apply, (*inputs, hidden))


@torch.no_grad()
def test_one_query_gets_the_weights_of_many_however_sharp_attention_is():
    """With logits of 100; where they are summed in float32 the weights differ by up to 3e-6."""
    torch.manual_seed(0)
    q, k, hidden = attention_case(400, 400, torch.float32)
    q *= 100 / (q @ k.mT / 32**0.5).abs().max()
    whole = AttentionWeights.apply(q, k, hidden)
    for t in range(400):
        one = AttentionWeights.apply(q[:, :, t : t + 1], k[:, :, : t + 1], hidden[:, :, t : t + 1, : t + 1])
        torch.testing.assert_close(one, whole[:, :, t : t + 1, : t + 1], atol=1e-6, rtol=0)
    exact = AttentionWeights.apply(q.double(), k.double(), hidden)
    torch.testing.assert_close(whole.double(), exact, atol=1e-6, rtol=0)


def test_gate_blends_element_by_element():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    gate = AdaptiveGate(4)
    torch.nn.init.normal_(gate.linear.weight, std=20.0)
    z, g = gate(a, b)
    torch.testing.assert_close(z, g * a + (1 - g) * b)
    torch.testing.assert_close(g, torch.sigmoid(gate.linear(torch.cat((a, b), -1))))
    assert g.min() < 0.1 and g.max() > 0.9  # of both memories
    z, g = AdaptiveGate(4, fixed=0.5)(a, b)
    torch.testing.assert_close(z, (a + b) / 2)


def encode(space, *observations, width=16):
    """Any observations -> their encodings, and the encoder."""
    torch.manual_seed(0)
    plain = [plain_observation(space)(obs) for obs in observations]
    frames = tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*plain, strict=True))
    encoder = ObservationEncoder(plain_space(space), width, "patch", None)
    return encoder(frames), encoder, frames


@pytest.mark.parametrize(
    "space, kind",
    [
        (spaces.Box(0, 255, (84, 84, 3), "uint8"), "picture"),
        (spaces.Box(0, 255, (84, 84), "uint8"), "picture"),
        (spaces.Box(0, 255, (24, 24, 3), "uint8"), "picture"),
        (spaces.Box(0, 255, (8, 8, 3), "uint8"), "picture"),
        (spaces.Box(0, 1, (9, 40, 2)), "picture"),
        (grid_space(3), "grid"),
        (grid_space(7), "grid"),
        (spaces.Box(-1, 1, (4,)), "vector"),
        (spaces.Box(-1, 1, (4, 4)), "vector"),
        (spaces.Text(20), "words"),
    ],
)
def test_encoder_kinds(space, kind):
    observations = ["go left", "go right"]
    if kind != "words":
        observations = [np.zeros(space.shape, space.dtype), np.zeros(space.shape, space.dtype)]
        observations[1][0] = 1
    x, encoder, frames = encode(space, *observations)
    assert encoder.parts[0].kind == kind and x.shape == (2, 16)
    assert not torch.equal(x[0], x[1])
    torch.testing.assert_close(encoder.double()(frames), x.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cells", "pixels"])
def test_codes_of_cells_are_one_hot_and_pixels_are_shades(kind):
    """What tells them apart is the space's bounds, not the picture's size."""
    space = grid_space(7) if kind == "cells" else spaces.Box(0, 255, (7, 7, 3), "uint8")
    picture = np.zeros((7, 7, 3), np.uint8)
    picture[2, 2] = 3
    planes = []
    _, encoder, frames = encode(space, picture)
    encoder.parts[0].net.register_forward_pre_hook(lambda _, inputs: planes.append(inputs[0]))
    encoder(frames)
    if kind == "cells":
        assert planes[0].shape == (1, 11 + 6 + 4, 7, 7) and set(planes[0].flatten().tolist()) == {0, 1}
        assert planes[0][0, :, 2, 2].nonzero().flatten().tolist() == [3, 11 + 3, 17 + 3]
    else:
        assert planes[0].shape == (1, 3, 7, 7)
        torch.testing.assert_close(planes[0][0, :, 2, 2], torch.full((3,), 3 / 255))


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (9, 9, 3)), spaces.Box(0, 255, (9, 9, 3), "uint8")])
def test_encoding_leaves_the_frames_as_they_are(space):
    x, encoder, frames = encode(space, np.full((9, 9, 3), 200, space.dtype))
    assert (frames[0] == 200).all()
    torch.testing.assert_close(encoder(frames), x, atol=1e-6, rtol=0)


def test_every_part_of_an_observation_is_seen():
    space = spaces.Dict(see=spaces.Box(0, 255, (9, 9), "uint8"), feel=spaces.Box(-1, 1, (2,)), hear=spaces.Text(20))
    one = {"see": np.zeros((9, 9), np.uint8), "feel": np.zeros(2, np.float32), "hear": "left"}
    others = [one | {"see": np.full((9, 9), 99, np.uint8)}, one | {"feel": np.ones(2, np.float32)}]
    x, _, _ = encode(space, one, *others, one | {"hear": "right"}, one)
    assert x.shape == (5, 16)
    torch.testing.assert_close(x[4], x[0], atol=1e-6, rtol=0)
    assert (x[1:4] - x[0]).abs().amax(1).min() > 1e-3


def test_heads_must_divide_width():
    with pytest.raises(InputError, match="--trxl-heads 5"):
        small_policy(ppo_trxl, trxl_heads=5)


def test_encoding_distinct_observations_once_is_exact():
    """Values and gradients are those of encoding every step's own observation."""
    policy = small_policy(ppo_palmer)
    frames, index = torch.randn(4, 5), torch.randint(4, (12, 3))
    state, start = policy.initial_state(3), torch.rand(12, 3) < 0.2
    outputs, gradients = [], []
    for once in (False, True):
        policy.zero_grad()
        if once:
            output, _ = policy.act(F.embedding(index, policy.encoder((frames,))), state, start)
        else:
            output, _ = policy((frames[index],), state, start)
        (output.logits.square().sum() + output.value.sum()).backward()
        outputs.append(output.logits)
        gradients.append([parameter.grad.clone() for parameter in policy.encoder.parameters()])
    torch.testing.assert_close(*outputs, atol=1e-6, rtol=0)
    for plain, interned in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, interned, atol=1e-4, rtol=1e-4)


def test_action_distribution_against_torch():
    torch.manual_seed(0)
    logits = torch.randn(5, 7)
    ours = Categoricals(logits, spaces.MultiDiscrete([3, 4]))
    theirs = [torch.distributions.Categorical(logits=part) for part in logits.split([3, 4], -1)]
    action = ours.sample()
    assert action.shape == (5, 2)
    torch.testing.assert_close(
        ours.log_prob(action), sum(d.log_prob(a) for d, a in zip(theirs, action.T, strict=True))
    )
    torch.testing.assert_close(ours.entropy(), sum(d.entropy() for d in theirs))
    assert torch.equal(ours.mode(), torch.stack([d.probs.argmax(-1) for d in theirs], -1))

    one = Categoricals(logits[:1].expand(20_000, 7), spaces.Discrete(7))
    frequency = torch.bincount(one.sample(), minlength=7) / 20_000
    torch.testing.assert_close(frequency, logits[0].softmax(-1), atol=0.015, rtol=0)


def test_gaussians_against_torch():
    torch.manual_seed(0)
    mean, log_std = torch.randn(5, 2), torch.tensor([-1.0, 0.5])
    ours, theirs = Gaussians(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    action = ours.sample()
    assert action.shape == (5, 2)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), mean)
    many = Gaussians(mean[:1].expand(20_000, 2), log_std).sample()
    torch.testing.assert_close(many.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(many.std(0), log_std.exp(), atol=0.05, rtol=0)


# ------------------------------------------------------------------------------------------------ the clock


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("fixed_shapes", [False, True])
@torch.no_grad()
def test_the_clock_counts_the_steps_of_the_running_episode(script, fixed_shapes):
    policy = small_policy(script)
    policy.fix_shapes(fixed_shapes)
    state = policy.initial_state(4)
    assert state.clock.tolist() == [0] * 4 and state.clock.dtype == torch.int64
    start = torch.zeros(12, 4, dtype=torch.bool)  # environment 0: none, 1: at the first, 2: inside, 3: at the last
    start[0, 1], start[3, 2], start[9, 2], start[11, 3] = True, True, True, True
    obs = torch.randn(12, 4, 5)
    expected, count = [], [0] * 4
    for row in start.tolist():
        count = [1 if first else n + 1 for first, n in zip(row, count, strict=True)]
        expected.append(count)
    stepped = state
    for t in range(12):
        _, stepped = policy((obs[t : t + 1],), stepped, start[t : t + 1])
        assert stepped.clock.tolist() == expected[t]
    _, whole = policy((obs,), state, start)
    assert whole.clock.tolist() == expected[-1] == [12, 12, 3, 1]
    _, halves = policy((obs[:7],), state, start[:7])
    _, halves = policy((obs[7:],), halves, start[7:])
    assert halves.clock.tolist() == expected[-1]
    assert halves.select(torch.tensor([2, 0])).clock.tolist() == [3, 12]
    assert MemoryState.from_tensors(halves.tensors()).clock.tolist() == expected[-1]


@pytest.mark.parametrize("script", SCRIPTS)
@torch.no_grad()
def test_an_agent_that_forgets_is_always_at_the_start_of_its_episode(script):
    policy = small_policy(script, forget=True)
    obs, start = torch.randn(9, 2, 5), torch.zeros(9, 2, dtype=torch.bool)
    output, state = policy((obs,), carried_state(policy, 2), start)
    assert state.clock.tolist() == [1, 1]
    fresh, _ = policy((obs,), policy.initial_state(2), torch.ones_like(start))
    assert torch.equal(output.logits, fresh.logits)


@pytest.mark.parametrize("algo", ["palmer", "lstm", "trxl"])
def test_gate_metrics_are_the_gates_own(algo):
    policy = small_policy({"palmer": ppo_palmer, "lstm": ppo_lstm, "trxl": ppo_trxl}[algo])
    gate = policy((torch.randn(4, 3, 5),), policy.initial_state(3), torch.zeros(4, 3, dtype=torch.bool))[0].gate
    metrics = palmer_policy.gate_metrics(gate)
    if algo != "palmer":
        assert gate is None and metrics == {}
        return
    values = gate.detach().numpy()
    expected = [values.mean(), values.min(), values.max(), values.std(ddof=1)]
    assert list(metrics) == [
        f"gates/{name}" for name in ("agf_value", *(f"{n}_gate_value" for n in ("min", "max", "std")))
    ]
    assert list(metrics.values()) == pytest.approx([float(value) for value in expected], abs=1e-5)


def test_pictures_are_encoded_a_part_at_a_time_and_come_out_as_one_by_one():
    torch.manual_seed(0)
    encoder = ObservationEncoder(spaces.Tuple((spaces.Box(0, 255, (40, 40, 3), np.uint8),)), 16, "patch", None)
    together = []
    encoder.parts[0].net.register_forward_pre_hook(lambda _, inputs: together.append(len(inputs[0])))
    pictures = torch.randint(0, 256, (2 * palmer_policy.PICTURES_AT_ONCE + 3, 40, 40, 3), dtype=torch.uint8)
    encoded = encoder((pictures,))
    assert together == [palmer_policy.PICTURES_AT_ONCE, palmer_policy.PICTURES_AT_ONCE, 3]
    alone = torch.cat([encoder((picture[None],)) for picture in pictures])
    torch.testing.assert_close(encoded, alone)


def test_a_hidden_layer_of_products():
    """By hand: the first half of the outputs, through silu, times the second."""
    layer = GatedLinear(2)
    layer.linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    layer.linear.bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0])
    silu_2, silu_3 = 2 / (1 + np.exp(-2)), 3 / (1 + np.exp(-3))
    expected = torch.tensor([silu_2 * 4, silu_3 * 6], dtype=torch.float32)
    torch.testing.assert_close(layer(torch.tensor([2.0, 3.0])), expected)
