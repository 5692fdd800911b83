"""Recording steps as CUDA graphs: everything but the recording itself, which needs a GPU, runs here on the CPU."""

import cuda_graphs
import pytest
import torch
from cuda_graphs import GraphedStep, graph_rollout
from input_error import InputError
from memory_envs import make_envs

import ppo_lstm
import ppo_palmer
import ppo_trxl

SCRIPTS = [ppo_palmer, ppo_lstm, ppo_trxl]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class StepOnCPU(GraphedStep):
    """A GraphedStep whose replay is a call.

    As a graph does, it works on the tensors of the recording only, whatever is passed later, and recording computes
    nothing.
    """

    def _on_side_stream(self, inputs):
        return self.step(*inputs)

    def _record(self, inputs):
        return self, None

    def replay(self):
        results = self.step(*self.inputs)
        if self.outputs is None:
            self.outputs = results
        for own, new in zip(tensors(self.outputs), tensors(results), strict=True):
            own.copy_(new)


def tensors(tree):
    return [leaf for leaf in cuda_graphs.pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def test_results_are_those_of_the_step_and_may_be_kept():
    graphed = StepOnCPU(lambda x, pair, name: {"sum": x + pair[0], "product": x * pair[1], "name": name})
    kept = []
    for i in range(8):
        x = torch.full((3,), float(i))
        kept.append(graphed(x, (x + 1, torch.tensor(2.0)), "same"))
    for i, result in enumerate(kept):
        assert result["sum"].tolist() == [2 * i + 1] * 3
        assert result["product"].tolist() == [2 * i] * 3
        assert result["name"] == "same"


def test_other_shapes_or_values_than_recorded_are_refused():
    graphed = StepOnCPU(lambda x, factor: x * factor)
    for _ in range(5):
        graphed(torch.ones(3), 2)
    with pytest.raises(ValueError, match=r"recorded with \(3,\), called with \(1,\)"):
        graphed(torch.ones(1), 2)
    with pytest.raises(ValueError, match="recorded with 2, called with 3"):
        graphed(torch.ones(3), 3)


def train(script, device, step=None):
    """Four iterations on fixed shapes -> last losses and the parameters."""
    args = script.Args(width=16, num_envs=6, num_steps=20, num_minibatches=2)
    for name, value in {"memory_length": 7, "trxl_heads": 2}.items():
        if hasattr(args, name):
            setattr(args, name, value)
    torch.manual_seed(0)
    envs = make_envs("MiniGrid-MemoryS7-v0", 6, obs_mode="symbolic", max_episode_steps=9, seed=1, device=device)
    table = envs.observations
    policy = script.make_agent(args, table.space, envs.action_space, table.capacity).to(device)
    policy.fix_shapes()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    carry = script.first_carry(policy, envs)
    minibatch_step = None
    if step:
        graph_rollout(policy, 6, step)
        minibatch_step = step(script.minibatch_step)
    for iteration in range(4):
        graph_device = torch.device(device) if step and device == "cuda" else None
        script.set_learning_rate(optimizer, 1e-3 / (iteration + 1), graph_device)
        batch, carry = script.rollout(args, policy, envs, carry, 0.03)
        losses = script.update(args, policy, optimizer, table, batch, 0.01 / (iteration + 1), minibatch_step)
    return losses, torch.nn.utils.parameters_to_vector(policy.parameters()).detach().cpu()


@pytest.mark.parametrize("script", SCRIPTS)
def test_training_by_replay_is_training(script):
    (plain_losses, plain), (losses, parameters) = train(script, "cpu"), train(script, "cpu", StepOnCPU)
    assert losses == plain_losses
    assert torch.equal(parameters, plain)


def test_graphs_without_a_gpu_are_refused_before_training(tmp_path):
    args = ppo_lstm.Args(cuda=False, cuda_graphs=True, run_dir=str(tmp_path / "run"), obs_mode="symbolic")
    with pytest.raises(InputError, match="--cuda-graphs: needs a GPU"):
        ppo_lstm.main(args)
    assert not (tmp_path / "run").exists()


@needs_gpu
@pytest.mark.parametrize("script", SCRIPTS)
def test_training_by_replay_is_training_on_a_gpu(script):
    (plain_losses, plain), (losses, parameters) = train(script, "cuda"), train(script, "cuda", GraphedStep)
    assert losses == pytest.approx(plain_losses, abs=1e-4)
    torch.testing.assert_close(parameters, plain, atol=1e-4, rtol=0)


def test_only_steps_of_the_rollout_are_replayed():
    """Segments, other numbers of environments and steps with gradients go the usual way."""
    recorded = []

    class Counting(GraphedStep):
        def __call__(self, *inputs):
            recorded.append(inputs[0].shape)
            return self.step(*inputs)

    envs = make_envs("MiniGrid-MemoryS7-v0", 4, obs_mode="symbolic", seed=1)
    table = envs.observations
    policy = ppo_palmer.make_agent(ppo_palmer.Args(width=16), table.space, envs.action_space, table.capacity)
    graph_rollout(policy, 4, Counting)

    def act(T, B):
        policy.act(torch.randn(T, B, 16), policy.initial_state(B), torch.zeros(T, B, dtype=torch.bool))

    act(1, 4)
    with torch.no_grad():
        act(3, 4)
        act(1, 5)
        assert recorded == []
        act(1, 4)
    assert recorded == [(1, 4, 16)]
