"""Exploration: draws have the distribution that they claim, log-probabilities are torch's, everything comes from the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch.distributions import Categorical, Independent, Normal, TanhTransform, TransformedDistribution

from fewbit.errors import FewbitError
from fewbit.rl import explore
from fewbit.rl.explore import Exploration, explorer

LOW, HIGH = np.array([-1.0, -2.0], np.float32), np.array([1.0, 4.0], np.float32)
ROWS, STEPS = 5, 40
KINDS = {
    "gaussian": Exploration("gaussian", LOW, HIGH, np.array([0.5, 1.5], np.float32), shape=(2,)),
    "squashed": Exploration("squashed", LOW, HIGH, shape=(2,)),
    "categorical": Exploration("categorical"),
    "epsilon": Exploration("epsilon", epsilon=0.3),
    "gsde": Exploration("gsde", LOW, HIGH, np.full((3, 2), 0.4, np.float32), shape=(2,)),
    "gsde squashed": Exploration("gsde", LOW, HIGH, np.full((3, 2), 0.4, np.float32), squash=True, every=4, shape=(2,)),
    "deterministic": Exploration("deterministic"),
}


class Network:
    """Stands in for the engine: each output a fixed linear map of the observation."""

    def __init__(self, *widths: int):
        rng = np.random.default_rng(0)
        self.inputs, self.maps = {"observation": (4,)}, [rng.standard_normal((4, w)).astype(np.float32) for w in widths]

    def __call__(self, observations, out=None):
        made = tuple(observations @ m for m in self.maps)
        for to, value in zip(out if isinstance(out, tuple) else (out,), made, strict=out is not None):
            if out is not None:
                to[...] = value
        return made if len(made) > 1 else made[0]


def network(kind):
    widths = {"squashed": (2, 2), "gsde": (2, 3), "categorical": (3,), "epsilon": (3,)}
    return Network(*widths.get(kind.split()[0], (2,)))


def run(kind, seed=0, rows=ROWS, steps=STEPS, same=False):
    """(the explorer after a block, what the environments were given)."""
    x = explorer(KINDS[kind], network(kind), rows, steps, seed)
    observations = np.random.default_rng(7).standard_normal((steps, rows, 4)).astype(np.float32)
    observations[...] = observations[0, 0] if same else observations
    x.begin()
    return x, np.stack([x.act(t, observations[t]).copy() for t in range(steps)])


def oracle(kind, x):
    """torch's log-probability of the block's actions."""
    heads = [torch.tensor(h, dtype=torch.float64) for h in x.heads]
    actions = torch.tensor(x.actions)
    if kind == "categorical":
        return Categorical(logits=heads[0]).log_prob(actions)
    if kind == "epsilon":
        share = torch.full_like(heads[0], 0.1) + 0.7 * torch.nn.functional.one_hot(heads[0].argmax(-1), 3).double()
        return Categorical(probs=share).log_prob(actions)
    if kind.startswith("gsde"):
        variance = heads[1] ** 2 @ torch.tensor(KINDS[kind].std, dtype=torch.float64) ** 2
        std = (variance + 1e-6).sqrt()
    else:
        std = torch.tensor(KINDS[kind].std, dtype=torch.float64) if kind == "gaussian" else heads[1].exp()
    normal = Independent(Normal(heads[0], std.expand_as(heads[0])), 1)
    if kind in ("gaussian", "gsde"):
        return normal.log_prob(actions.double())
    u = torch.tensor(x.before, dtype=torch.float64)
    squashed = TransformedDistribution(normal, [TanhTransform(cache_size=1)])
    return squashed.log_prob(squashed.transforms[0](u))  # the cache keeps u: no digit is lost in atanh


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "deterministic"])
def test_log_probability_is_torchs(kind):
    x, _ = run(kind)
    np.testing.assert_allclose(x.log_prob(STEPS), oracle(kind, x).numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(x.log_prob(3), x.log_prob(STEPS)[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind):
    a, b, c = run(kind, 1)[1], run(kind, 1)[1], run(kind, 2)[1]
    np.testing.assert_array_equal(a, b)
    assert kind == "deterministic" or (a != c).any()


@pytest.mark.parametrize("kind", ["gaussian", "gsde"])
def test_what_is_not_squashed_is_clipped_for_the_environment_alone(kind):
    x, given = run(kind)
    np.testing.assert_array_equal(given, np.clip(x.actions, LOW, HIGH))
    assert (given != x.actions).any()


@pytest.mark.parametrize("kind", ["squashed", "gsde squashed"])
def test_what_is_squashed_is_stretched_to_the_bounds(kind):
    x, given = run(kind)
    assert np.abs(x.actions).max() <= 1
    np.testing.assert_allclose(given, LOW + (x.actions + 1) / 2 * (HIGH - LOW), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "epsilon"])
def test_numbers_are_drawn_as_often_as_their_probability_says(kind):
    x, given = run(kind, rows=100, steps=400, same=True)
    share = np.bincount(given.reshape(-1), minlength=3) / given.size
    probability = np.array([np.exp(x.log_prob(400)[given == a][0]) for a in range(3)])
    assert probability.sum() == pytest.approx(1)
    np.testing.assert_allclose(share, probability, atol=4 * 0.5 / np.sqrt(given.size))


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "gsde"])
def test_noise_is_standard_normal(kind):
    x, _ = run(kind, rows=200, steps=100)
    if kind == "gsde":
        std = np.sqrt(x.heads[1] ** 2 @ KINDS[kind].std ** 2)
    else:
        std = KINDS[kind].std if kind == "gaussian" else np.exp(x.heads[1])
    z = (x.before - x.heads[0]) / std
    samples = 200 if kind == "gsde" else z.size / 2  # a matrix an environment
    assert np.abs(z.mean((0, 1))).max() < 4 / np.sqrt(samples)
    assert z.var() == pytest.approx(1, abs=6 / np.sqrt(samples))


def test_gsde_keeps_a_matrix_for_as_many_steps_as_asked_and_gives_each_environment_its_own():
    x, _ = run("gsde squashed", same=True)
    change = [(x.before[t] != x.before[t - 1]).any() for t in range(1, STEPS)]
    assert change == [t % 4 == 0 for t in range(1, STEPS)]
    assert len(np.unique(x.before[0], axis=0)) == ROWS


def test_gsde_is_stable_baselines3s():
    x, _ = run("gsde squashed")
    theirs = StateDependentNoiseDistribution(2, squash_output=True)
    theirs.latent_sde_dim = 3
    for t in (0, 9):
        d = theirs.proba_distribution(*(torch.tensor(v) for v in (x.heads[0][t], np.log(KINDS["gsde"].std), x.heads[1][t])))
        want = d.log_prob(torch.tensor(x.actions[t])).numpy()
        near = np.abs(x.actions[t]).max(1) < 0.99  # where its atanh and its 1e-6 lose nothing
        np.testing.assert_allclose(x.log_prob(STEPS)[t][near], want[near], rtol=1e-3, atol=1e-3)


def test_a_squashed_action_at_the_end_of_its_range_keeps_a_finite_density():
    x, _ = run("squashed")
    x.before[...], x.heads[0][...] = 30.0, 30.0
    want = -0.5 * np.log(2 * np.pi) * 2 - x.heads[1].sum(-1) - 2 * (2 * np.log(2) - 60)
    np.testing.assert_allclose(x.log_prob(STEPS), want, rtol=1e-5)


def test_epsilon_may_change_within_a_block():
    x = explorer(KINDS["epsilon"], network("epsilon"), ROWS, 2, 0)
    x.begin()
    for t, x.epsilon in enumerate((1.0, 0.0)):
        x.act(t, np.ones((ROWS, 4), np.float32))
    np.testing.assert_allclose(x.log_prob(2), np.repeat([[np.log(1 / 3)], [0.0]], ROWS, 1))


def test_the_record_comes_back():
    for e in KINDS.values():
        again = explore.read(e.record())
        assert again.record() == e.record() and again.kind == e.kind
    with pytest.raises(FewbitError, match="damaged"):
        explore.read({"kind": "gaussian"})


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Exploration("boltzmann"), "choose one of deterministic"),
        (lambda: Exploration("gaussian", LOW, HIGH), "these need one"),
        (lambda: Exploration("epsilon", epsilon=2.0), "probability"),
        (lambda: Exploration("gsde", LOW, HIGH, np.ones((3, 2)), every=-1), "number of steps"),
        (lambda: explore.read(KINDS["gaussian"].record() | {"low": [10**400, 1]}), "damaged"),
        (lambda: explorer(replace(KINDS["gaussian"], low=LOW[:1]), network("gaussian"), 1, 1, 0), "those of 2 actions"),
        (lambda: explorer(replace(KINDS["gaussian"], std=np.ones(3)), network("gaussian"), 1, 1, 0), "those of 2 actions"),
        (lambda: explorer(replace(KINDS["gsde"], shape=(7,)), network("gsde"), 1, 1, 0), "those of 2 actions"),
        (lambda: explorer(KINDS["squashed"], network("gaussian"), 1, 1, 0), "mean, log_std"),
        (lambda: explorer(Exploration("squashed"), network("squashed"), 1, 1, 0), "bounds"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(FewbitError, match=words):
        call()
