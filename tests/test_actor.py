"""A policy that learns, as an actor: the quick way gives what quantizing anew would give, and the file what the engine gives."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from fewbit.engine import native, reference
from fewbit.engine.lower import lower
from fewbit.engine.program import Linear
from fewbit.engine.reweigh import Reloader
from fewbit.errors import FewbitError
from fewbit.graph import calibrate, qdq
from fewbit.graph.layers import layers
from fewbit.numerics import semantics
from fewbit.rl import actor
from fewbit.rl.explore import explorer
from fewbit.rl.live import Live
from fewbit.sources import sb3_heads

SMALL = {"net_arch": [24, 16]}
MODELS = {
    "ppo": lambda **more: PPO("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL), **more),
    "ppo discrete": lambda: PPO("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(SMALL)),
    "a2c gsde": lambda: A2C("MlpPolicy", "Pendulum-v1", seed=0, use_sde=True, policy_kwargs=dict(SMALL)),
    "sac": lambda: SAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL)),
    "sac gsde": lambda: SAC("MlpPolicy", "Pendulum-v1", seed=0, use_sde=True, policy_kwargs=dict(SMALL)),
    "td3": lambda: TD3("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(SMALL)),
    "dqn": lambda: DQN("MlpPolicy", "CartPole-v1", seed=0, policy_kwargs=dict(SMALL)),
}


def observations(model, n=300):
    return np.random.default_rng(1).standard_normal((n, *model.observation_space.shape)).astype(np.float32)


@pytest.fixture(scope="module", params=MODELS)
def live(request):
    model = MODELS[request.param]()
    with torch.no_grad():  # biases are zero before anything is learned
        for p in model.policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    made = Live(model.policy, observations(model))
    assert all(torch.equal(v, before[k]) for k, v in model.policy.state_dict().items())
    return model, made


def heads(policy, given):
    with torch.no_grad():
        made = sb3_heads.Heads(policy, None, ["observation"])(torch.tensor(given))
    return [m.numpy() for m in (made if isinstance(made, tuple) else (made,))]


def test_heads_are_the_policys(live):
    model, made = live
    given = observations(model)
    acting = made.actor()
    registers = reference.run(acting.program, {made.input: given})
    for name, want in zip(acting.program.outputs, heads(model.policy, given), strict=True):
        assert np.abs(registers[name] - want).max() < 0.05 * max(1, np.abs(want).max())


def test_the_quick_way_is_the_slow_way_at_the_same_ranges(live):
    model, made = live
    given = observations(model)
    float_graph = made.capture.graph.clone()
    set_weights(float_graph, made.weights())
    ranges, _ = calibrate.observe(float_graph, {made.input: given}, *qdq.tensors(float_graph))
    made.calibrate(given)
    kept = {k: v.detach().clone() for k, v in model.policy.named_parameters()}
    with torch.no_grad():
        for p in model.policy.parameters():
            p.mul_(0.9).add_(0.01)
    try:
        set_weights(float_graph, made.weights())
        slow = lower(qdq.write(float_graph, ranges, qdq.Scheme()))
        quick = made.actor()
        for a, b in zip(quick.program.steps, slow.steps, strict=True):
            assert type(a) is type(b)
            if isinstance(a, Linear):
                for name in ("weight", "bias", "bound", "m", "shift", "exit_scale", "zero_input", "zero_point"):
                    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        changed = actor.read(quick.to_bytes())
        for acting in (quick.engine(), changed.engine(), native.load(slow)):
            for x, y in zip(outputs(acting, given), outputs(quick.engine(), given), strict=True):
                np.testing.assert_array_equal(x, y)
        assert changed.exploration.record() == quick.exploration.record()
    finally:
        with torch.no_grad():
            for k, p in model.policy.named_parameters():
                p.copy_(kept[k])


def set_weights(graph, weights):
    import onnx_ir as ir

    for layer in layers(graph):
        for value, array in zip(layer.node.inputs[1:], weights[layer.node.outputs[0].name], strict=True):
            value.const_value = ir.tensor(array.copy(), name=value.name)


def outputs(engine, given):
    made = engine(given)
    return made if isinstance(made, tuple) else (made,)


def test_log_probability_is_of_the_quantized_policy(live):
    """Acting with the engine: the heads that a log-probability is of are the reference executor's, bit for bit."""
    model, made = live
    acting = made.actor()
    x = explorer(acting.exploration, acting.engine(), 4, 6, 0)
    given = observations(model, 24).reshape(6, 4, -1)
    x.begin()
    for t in range(6):
        x.act(t, given[t])
    registers = reference.run(acting.program, {made.input: given.reshape(24, -1)})
    for head, name in zip(x.heads, acting.program.outputs, strict=True):
        np.testing.assert_array_equal(head.reshape(24, -1), registers[name].reshape(24, -1))
    assert np.isfinite(x.log_prob(6)).all()


def test_ranges_that_no_longer_hold_are_found_again():
    model = MODELS["sac"]()
    given = observations(model)
    made = Live(model.policy, given)
    made.actor(given)
    assert made.recalibrated == 0
    with torch.no_grad():
        model.policy.actor.latent_pi[0].weight.mul_(3)
    made.actor()
    assert made.recalibrated == 0
    made.actor(given)
    assert made.recalibrated == 1
    registers = reference.run(made.actor().program, {made.input: given})
    want = heads(model.policy, given)[0]
    assert np.abs(registers["mean"] - want).max() < 0.05 * np.abs(want).max()


def test_multipliers_are_the_single_ones():
    rng = np.random.default_rng(0)
    ratios = np.concatenate([2.0 ** rng.uniform(-70, -8, 500), [0.0, 0.5, 2.0**-45, 1 - 2.0**-23, 1.0]])
    for bound in (1 << 15, 1 << 29, 1 << 36):
        m, shift = semantics.multipliers(ratios, bound)
        assert [*zip(m.tolist(), shift.tolist(), strict=True)] == [semantics.multiplier(float(r), bound) for r in ratios]


def test_a_program_whose_columns_were_moved_is_made_flat_again():
    model = MODELS["ppo"]()
    made = Live(model.policy, observations(model))
    reloader = made.base.reloader
    assert reloader.plain
    other = Reloader(reloader.program, reloader.flat, False)
    given = observations(model)
    np.testing.assert_array_equal(other.load(made.actor().program)(given), made.actor().engine()(given))


def test_weights_that_diverged_are_refused():
    model = MODELS["ppo"]()
    made = Live(model.policy, observations(model))
    with torch.no_grad():
        model.policy.action_net.bias.fill_(torch.nan)
    with pytest.raises(FewbitError, match="diverged"):
        made.actor()


class Normalised(torch.nn.Module):
    """A LayerNorm in the place of an activation: parameters that belong to no Linear layer."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(24)

    def forward(self, x):
        return self.norm(x)


def test_a_policy_with_other_parameters_than_layers_is_refused():
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [24], "activation_fn": Normalised})
    with torch.no_grad():
        model.policy.mlp_extractor.policy_net[1].norm.weight.fill_(2.0)
    with pytest.raises(FewbitError):
        Live(model.policy, observations(model))


def test_a_scheme_that_takes_too_long_is_refused():
    model = MODELS["ppo"]()
    with pytest.raises(FewbitError, match="too long"):
        Live(model.policy, observations(model), qdq.Scheme(method="gptq"))
