"""The quadrotor policy of PyPI's foundation-policy (a GRU of 16): its own forward pass, quantized, in C. Skipped without it."""

import executors
import numpy as np
import pytest
import torch

import fewbit
from fewbit import sources
from fewbit.engine.load import load
from fewbit.sources import recurrent

foundation_policy = pytest.importorskip("foundation_policy", reason="needs the package foundation-policy")


INERTIA = np.array([0.003, 0.003, 0.006])


class Quadrotor(torch.nn.Module):
    """(observation [n, 22], h [n, 16]) -> (action [n, 4] in [-1, 1], the next h), of the pretrained weights."""

    def __init__(self, policy):
        super().__init__()
        first, memory, last = policy.layers[:3]
        assert (first.activation_function_name, last.activation_function_name) == ("RELU", "IDENTITY")
        gates = [memory.weights_input, memory.weights_hidden, memory.biases_input, memory.biases_hidden]
        kept = [first.weights, first.biases[0], *gates, last.weights, last.biases[0]]
        self.tensors = torch.nn.ParameterList(torch.nn.Parameter(torch.tensor(np.asarray(a, np.float32))) for a in kept)
        self.squashes = len(policy.layers) > 3

    def forward(self, observation, h):
        w, b, *gates, v, d = self.tensors
        h = recurrent.gru(torch.relu(torch.nn.functional.linear(observation, w, b)), h, gates)
        action = torch.nn.functional.linear(h, v, d)
        return (torch.tanh(action) if self.squashes else action), h


class Own:
    """The package's policy as a callable."""

    def __init__(self, policy):
        self.reset, self.policy = policy.reset, policy

    def __call__(self, observations):
        return self.policy.evaluate_step(observations)


@pytest.fixture(scope="module")
def policy():
    return foundation_policy.QuadrotorPolicy()


def flights(act, episodes: int, steps: int, seed: int) -> np.ndarray:
    """Observations [episodes, steps, 22]: position, rotation matrix, velocity, angular velocity, action before, as the policy is
    told them while act flies a rigid body whose four rotors push in proportion to its actions; disturbed at the start."""
    rng, dt = np.random.default_rng(seed), 0.01
    place, speed, spin = (rng.normal(0, s, (episodes, 3)) for s in (0.3, 0.3, 0.5))
    turned, before = np.tile(np.eye(3), (episodes, 1, 1)), np.zeros((episodes, 4))
    arms = np.array([[1, -1, 0], [-1, -1, 0], [-1, 1, 0], [1, 1, 0]]) * 0.03
    act.reset()
    seen = []
    for _ in range(steps):
        seen.append(np.concatenate([place, turned.reshape(episodes, 9), speed, spin, before], 1).astype(np.float32))
        before = np.asarray(act(seen[-1]))
        thrust = 9.81 / 4 * (1 + before)  # of a kilogram: hover at zero
        torque = np.stack([thrust @ arms[:, 1], -thrust @ arms[:, 0], thrust @ np.array([-1, 1, -1, 1]) * 0.006], 1)
        spin = spin + dt * torque / INERTIA
        speed = speed + dt * (turned[:, :, 2] * thrust.sum(1)[:, None] - [0, 0, 9.81])
        place = place + dt * speed
        x, y, z = (spin * dt).T
        zero = np.zeros(episodes)
        skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(episodes, 3, 3)
        turned, _ = np.linalg.qr(turned @ (np.eye(3) + skew))
        turned *= np.sign(np.einsum("nii->ni", turned))[:, None]
    return np.stack(seen, 1)


@pytest.fixture(scope="module")
def state(policy):
    return {"h": ("h_next", policy.layers[1].initial_hidden_state)}


def test_captured_it_is_its_own_forward_pass(policy, state):
    source = sources.load(Quadrotor(policy), observation_shape=(22,), state=state)
    assert source.contract["recurrent_state"] == ["h"]
    act, own = load(source.model, "onnxruntime"), Own(policy)
    seen = flights(own, 4, 200, 0)
    own.reset()
    for k in range(seen.shape[1]):
        assert np.abs(act(seen[:, k]) - own(seen[:, k])).max() < 1e-5, k


def test_quantized(policy, state, tmp_path, record_property):
    """The same bits by all; near the float actions on flights that it was not calibrated on; and it flies itself."""
    own, scheme = Own(policy), fewbit.Scheme(method="smooth+gptq")
    seen, unseen = flights(own, 8, 300, 1), flights(own, 8, 300, 2)
    artifact = fewbit.quantize(Quadrotor(policy), None, seen, scheme, observation_shape=(22,), state=state)
    actions = executors.agree(artifact.model, unseen, tmp_path, episodes=1)[0]
    own.reset()
    want = np.stack([own(unseen[:, k]) for k in range(unseen.shape[1])])
    rmse = float(np.sqrt(((actions - want) ** 2).mean()) / 2)  # of the range -1 to 1
    away = [float(np.linalg.norm(f[:, -1, :3], axis=1).mean()) for f in (unseen, flights(load(artifact.model), 8, 300, 2))]
    flown = f"after 3 s {100 * away[0]:.1f} cm from its place, quantized {100 * away[1]:.1f}"
    record_property("measured", f"foundation-policy, GRU of 16: action RMSE {rmse:.3%} of the range on 8 flights; {flown}")
    assert rmse < 0.01 and away[1] < away[0] + 0.02
