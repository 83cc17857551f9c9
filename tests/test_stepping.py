"""The C++ loop over environments: whatever forms an observation, a reward or an end come in, and what it refuses."""

import gymnasium as gym
import numpy as np
import pytest
from test_rollout import categorical, network

from fewbit.errors import FewbitError
from fewbit.rl.actor import Actor, Base
from fewbit.rl.collector import Collector, Order, Spec
from fewbit.rl.experience import counters
from fewbit.rl.explore import Exploration

FORMS = {
    "float32": lambda o: o.astype(np.float32),
    "float64": lambda o: o,
    "integers": lambda o: o.astype(np.int32),
    "a list": lambda o: o.tolist(),
    "strided": lambda o: np.repeat(o, 2)[::2],
    "swapped": lambda o: o.astype(">f4"),
}


class Told(gym.Env):
    """Observations count the steps; an episode is three steps. What `form` makes of them is what is given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, form, step=None):
        self.form, self.broken, self.count = form, step, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self._seen(), {}

    def step(self, action):
        assert type(action) is type(self.action_space.sample())
        self.count, self.age = self.count + 1, self.age + 1
        if self.broken:
            return self.broken(self)
        return self._seen(), np.float32(self.count), np.bool_(self.age == 3), 0, {}

    def _seen(self):
        return self.form(np.full(4, self.count, np.float64))


gym.register("Told-v0", Told, disable_env_checker=True)


def fill(envs=2, steps=10, actor=None, **arguments):
    """(columns, collector) of one order."""
    collector = Collector(Spec("Told-v0", arguments, envs, "gymnasium", (0, 0, 0)), actor or categorical())
    buffer = bytearray(collector.layout.bytes(steps, envs))
    columns = collector.layout.columns(buffer, steps, envs)
    assert collector.fill(columns, counters(buffer), Order(steps))
    return columns, collector


@pytest.mark.parametrize("form", FORMS)
def test_observations_of_any_form_are_kept_as_the_actor_takes_them(form):
    columns, collector = fill(form=FORMS[form])
    counts = np.arange(10.0)[:, None, None] * np.ones((1, 2, 4))
    np.testing.assert_array_equal(columns["observations"], counts)
    np.testing.assert_array_equal(columns["next_observations"], counts + 1)
    np.testing.assert_array_equal(columns["rewards"], counts[..., 0] + 1)
    np.testing.assert_array_equal(columns["terminated"], counts[..., 0] % 3 == 2)
    np.testing.assert_array_equal(columns["step"], counts[..., 0] % 3)
    np.testing.assert_array_equal(columns["episode"], counts[..., 0] // 3)
    assert not columns["truncated"].any() and columns["valid"].all() and (collector.vector.current == 10).all()


def test_actions_are_those_of_a_loop_in_python():
    """From the observations that were kept, with the noise that a Collector of the same seed draws."""
    columns, _ = fill(form=FORMS["float64"])
    explorer = Collector(Spec("Told-v0", {"form": FORMS["float64"]}, 2, "gymnasium", (0, 0, 0)), categorical()).explorer
    explorer.begin()
    for t in range(10):
        logits = explorer.engine(columns["observations"][t])
        np.testing.assert_array_equal(columns["actions"][t], (logits + explorer.noise[t]).argmax(1))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"form": lambda o: o[:3] if o[0] else o}, r"shape \[3\], its space has \[4\]"),
        ({"form": lambda o: 0.0 if o[0] else o}, r"shape \[\], its space"),
        ({"form": lambda o: np.where(o == 5, np.nan, o)}, r"element \(0, 0\) is NaN"),
        ({"step": lambda e: (e._seen(), 0.0, True, {})}, "no tuple of five"),
        ({"step": lambda e: [e._seen(), 0.0, True, False, {}]}, "no tuple of five"),
    ],
)
def test_what_is_no_step_is_refused(arguments, words):
    with pytest.raises(FewbitError, match=words):
        fill(**({"form": FORMS["float64"]} | arguments))


@pytest.mark.parametrize("step", [lambda e: (e._seen(), "much", True, False, {}), lambda e: 1 / 0])
def test_an_environments_own_errors_come_through(step):
    with pytest.raises((TypeError, ZeroDivisionError)):
        fill(form=FORMS["float64"], step=step)


def test_an_engine_that_does_not_fit_its_buffers_writes_nothing():
    _, collector = fill(form=FORMS["float64"])
    columns = collector.layout.columns(bytearray(collector.layout.bytes(4, 2)), 4, 2)
    for inputs, outputs in ((5, 2), (4, 3)):
        collector.explorer.engine = categorical(inputs, outputs).engine()
        with pytest.raises(RuntimeError, match="whose input or outputs are not"):
            collector.vector.block(collector.explorer, columns, np.zeros(2, np.int64), 0, 4, None)


def test_an_actor_of_arrays_does_not_act_where_numbers_are_asked_for():
    bounds = np.ones(2, np.float32)
    actor = Actor(Base(network(4, 2)), Exploration("gaussian", -bounds, bounds, bounds, shape=(2,)))
    with pytest.raises(FewbitError, match="takes a number for an action"):
        fill(form=FORMS["float64"], actor=actor)
