"""Rollouts: every transition once, by the policy that it says, whatever happens to the workers; and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import corpus
import gymnasium as gym
import numpy as np
import pytest
from conftest import ROOT

import fewbit
from fewbit.engine import reference
from fewbit.errors import FewbitError
from fewbit.graph import read as graph
from fewbit.rl.actor import Actor, Base, read
from fewbit.rl.explore import Exploration

sys.path.append(str(ROOT / "tests"))


def network(inputs, outputs, seed=0, scale=1.0):
    """A quantized linear layer, which leaves in floats."""
    g, rng = corpus.Graph(seed), np.random.default_rng(seed)
    weight = rng.integers(-100, 100, (outputs, inputs)).astype(np.int8)
    made = g.case("net", g.gemm(g.entry("int16", inputs, 2.0**-12), 2.0**-12, weight, np.full(outputs, scale / 100), None))
    return graph.prepare(made.model)


def categorical(inputs=4, outputs=2, seed=0):
    return Actor(Base(network(inputs, outputs, seed)), Exploration("categorical"))


def collect(*args, steps=None, episodes=None, **more):
    with fewbit.rl.rollout(*args, **more) as rollout:
        return rollout.collect(steps, episodes)


def same(a, b):
    for name, column in a.columns().items():
        np.testing.assert_array_equal(column, b.columns()[name], err_msg=name)


@pytest.fixture(scope="module")
def cartpole():
    """(actor, batch of 2 workers with 3 environments each, 200 steps of each in two batches)."""
    actor = categorical()
    with fewbit.rl.rollout(actor, "CartPole-v1", envs=3, workers=2, seed=5) as rollout:
        return actor, [rollout.collect(600), rollout.collect(600)]


def test_the_same_seed_and_workers_give_the_same_data(cartpole):
    actor, batches = cartpole
    with fewbit.rl.rollout(read(actor.to_bytes()), "CartPole-v1", envs=3, workers=2, seed=5) as rollout:
        for batch in batches:
            same(batch, rollout.collect(600))
    other = collect(actor, "CartPole-v1", envs=3, workers=2, seed=6, steps=600)
    assert (other.observations != batches[0].observations).any()


def made_by_cartpole(batch):
    """Every transition is what CartPole makes of its observation and action."""
    env = gym.make("CartPole-v1").unwrapped
    env.reset()
    t = batch.transitions()
    for observation, action, after, over in zip(
        t["observations"], t["actions"], t["next_observations"], t["terminated"], strict=True
    ):
        env.state, env.steps_beyond_terminated = observation.astype(np.float64), None
        stepped = env.step(int(action))
        np.testing.assert_allclose(stepped[0], after, atol=1e-5)
        assert stepped[2] == over


def test_transitions_are_the_environments(cartpole):
    _, batches = cartpole
    for batch in batches:
        assert len(batch) == 600
        made_by_cartpole(batch)


def test_episodes_go_on_from_batch_to_batch_and_every_transition_has_a_name(cartpole):
    _, batches = cartpole
    joined = {k: np.concatenate([b.columns()[k] for b in batches]) for k in batches[0].columns()}
    names = set()
    for env in range(6):
        c = {k: v[:, env] for k, v in joined.items()}
        over = c["terminated"] | c["truncated"]
        assert over.any()
        np.testing.assert_array_equal(c["observations"][1:][~over[:-1]], c["next_observations"][:-1][~over[:-1]])
        np.testing.assert_array_equal(c["episode"], np.concatenate([[0], np.cumsum(over)[:-1]]))
        starts = np.flatnonzero(np.concatenate([[True], over[:-1]]))
        np.testing.assert_array_equal(c["step"], np.arange(200) - starts[np.searchsorted(starts, np.arange(200), "right") - 1])
        names |= {(env, e, s) for e, s in zip(c["episode"], c["step"], strict=True)}
    assert len(names) == 1200


def log_softmax_of(actor, batch):
    """By the reference executor, of every action."""
    flat = batch.observations.reshape(-1, batch.observations.shape[-1])
    logits = reference.run(actor.program, {next(iter(actor.program.inputs)): flat})[actor.program.outputs[0]].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return np.take_along_axis(logs, batch.actions.reshape(-1, 1), 1).reshape(batch.actions.shape)


def test_log_probabilities_are_of_the_version_that_acted(cartpole):
    actor, (first, _) = cartpole
    np.testing.assert_allclose(first.log_prob, log_softmax_of(actor, first), atol=1e-12)
    assert first.version == 0
    layer = next(s for s in actor.program.steps if hasattr(s, "layer"))
    turned = Actor(actor.base, actor.exploration, {layer.layer: (-layer.weight, layer.bias, np.float32([0.01, 0.02]))})
    with fewbit.rl.rollout(actor, "CartPole-v1", seed=1) as rollout:
        assert (rollout.collect(100).version, rollout.update(turned), rollout.update(categorical(seed=3))) == (0, 1, 2)
        batch = rollout.collect(100)
        assert batch.version == 2
        np.testing.assert_allclose(batch.log_prob, log_softmax_of(categorical(seed=3), batch), atol=1e-12)
        rollout.update(actor)
        rollout.update(turned)
        batch = rollout.collect(100)
        np.testing.assert_allclose(batch.log_prob, log_softmax_of(turned, batch), atol=1e-12)


def test_whole_episodes_as_many_of_every_environment():
    batch = collect(categorical(), "CartPole-v1", envs=2, workers=2, episodes=7)
    episodes = list(batch.episodes())
    assert len(episodes) == 7 and sum(len(e["step"]) for e in episodes) == len(batch)
    assert sorted(len(np.unique(batch.episode[batch.valid[:, k], k])) for k in range(4)) == [1, 2, 2, 2]
    for e in episodes:
        np.testing.assert_array_equal(e["step"], np.arange(len(e["step"])))
        assert e["terminated"][-1] and not e["terminated"][:-1].any()


def test_fewer_episodes_than_environments():
    assert len(list(collect(categorical(), "CartPole-v1", envs=2, workers=2, episodes=1).episodes())) == 1


@pytest.mark.parametrize("vector", ["gymnasium", "envpool"])
def test_steps_after_whole_episodes_begin_anew(vector):
    """Environments that had done their episodes were reset, or stepped, meanwhile: nothing was seen of what they are at now."""
    if vector == "envpool":
        pytest.importorskip("envpool")
    with fewbit.rl.rollout(categorical(), "CartPole-v1", envs=2, vector=vector) as rollout:
        whole, after = rollout.collect(episodes=3), rollout.collect(steps=100)
    made_by_cartpole(after)
    assert (after.step[0] == 0).all() and after.valid[0].all()
    assert (after.episode[0] > np.where(whole.valid, whole.episode, -1).max(0)).all()


def test_continuous_actions_reach_the_environment_clipped():
    exploration = Exploration("gaussian", np.float32([-2]), np.float32([2]), np.float32([3.0]), shape=(1,))
    batch = collect(Actor(Base(network(3, 1)), exploration), "Pendulum-v1", envs=2, steps=300)
    assert np.abs(batch.actions).max() > 2
    env = gym.make("Pendulum-v1").unwrapped
    env.reset()
    t = batch.transitions()
    for o, action, reward in zip(t["observations"], t["actions"], t["rewards"], strict=True):
        env.state = np.array([np.arctan2(o[1], o[0]), o[2]])
        assert env.step(np.clip(action, -2, 2))[1] == pytest.approx(reward, abs=1e-4)


def test_a_policy_of_stable_baselines3_acts_as_it_does_itself():
    torch, sb3 = pytest.importorskip("torch"), pytest.importorskip("stable_baselines3")
    policy = sb3.SAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs={"net_arch": [32, 32]}).policy
    live = fewbit.rl.Live(policy, np.random.default_rng(0).uniform(-1, 1, (500, 3)).astype(np.float32) * [1, 1, 8])
    with fewbit.rl.rollout(live.actor(), "Pendulum-v1", envs=4) as rollout:
        for _ in range(2):
            t = rollout.collect(800).transitions()
            with torch.no_grad():
                mean, log_std, _ = policy.actor.get_action_dist_params(torch.tensor(t["observations"]))
                log_prob = policy.actor.action_dist.proba_distribution(mean, log_std).log_prob(torch.tensor(t["actions"]))
            inside = np.abs(t["actions"][:, 0]) < 0.99
            np.testing.assert_allclose(t["log_prob"][inside], log_prob.numpy()[inside], atol=0.05)
            with torch.no_grad():
                policy.actor.mu.bias.add_(0.5)
                policy.actor.log_std.bias.sub_(0.5)
            rollout.update(live.actor(t["observations"]))


def counted(tmp_path, doom="", at=0, **more):
    return {"log": str(tmp_path / "log"), "doom": doom, "at": at} | more


def named(batch):
    """The names that the environment gave its transitions."""
    return [tuple(map(int, row)) for row in batch.transitions()["observations"]]


def logged(tmp_path):
    return [tuple(map(int, line.split())) for line in (tmp_path / "log").read_text().splitlines()]


def names_actor():
    """For Counted, whose observations are too large to be multiplied: every code saturates, and any action will do."""
    return categorical(3)


@pytest.mark.parametrize("doom, words", [("kill", "signal 9"), ("hang", "no step")])
@pytest.mark.parametrize("at", [3, 600])  # before and after a first block of 512 steps
def test_a_worker_that_dies_or_hangs_is_replaced_and_every_transition_is_counted_once(tmp_path, doom, words, at):
    args = counted(tmp_path, doom, at)
    with fewbit.rl.rollout(names_actor(), "small_envs:Counted-v0", envs=2, workers=2, env_args=args, patience=2.0) as rollout:
        batches = [rollout.collect(3000), rollout.collect(400)]
    assert [len(b) for b in batches] == [3000, 400]
    (fault,) = batches[0].faults
    assert words in fault.reason and not batches[1].faults
    got, made = [n for b in batches for n in named(b)], logged(tmp_path)
    assert len(set(got)) == len(got) == 3400 and len(set(made)) == len(made)
    assert set(got) <= set(made)
    half = len(made) - len(got) - fault.discarded  # the first environment of the step in which it happened
    assert half in (0, 1)
    dead = batches[0].observations[..., 0] != batches[1].observations[0, :, 0]
    if at > 512:
        assert dead.any() and batches[0].truncated[dead].sum() == 2  # its two environments' last committed steps
    ended = batches[0].truncated | batches[0].terminated
    assert (batches[0].step[1:][ended[:-1]] == 0).all()


def test_whole_episodes_stay_whole_when_a_worker_dies(tmp_path):
    args = counted(tmp_path, "kill", 600)
    batch = collect(names_actor(), "small_envs:Counted-v0", envs=2, workers=2, env_args=args, episodes=400)
    (fault,) = batch.faults
    episodes = list(batch.episodes())
    assert [len(e["step"]) for e in episodes] == [7] * 400 and all(e["terminated"][-1] for e in episodes)
    assert len(set(named(batch))) == 2800
    assert len(logged(tmp_path)) - 2800 - fault.discarded in (0, 1)


def test_an_environment_that_fails_is_an_error_with_its_words(tmp_path):
    with pytest.raises(FewbitError, match="worker 0: .*RuntimeError: the simulation exploded"):
        collect(names_actor(), "small_envs:Counted-v0", env_args=counted(tmp_path, "fail", 5), steps=100)


def test_a_worker_that_dies_again_and_again_is_given_up(tmp_path, monkeypatch):
    with fewbit.rl.rollout(categorical(), "CartPole-v1") as rollout:
        monkeypatch.setattr("sys.executable", "/bin/false")
        os.kill(rollout.backend.workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(FewbitError, match="5 times in a row"):
            rollout.collect(10)


def descendants(pid):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found.append(int(entry))
    return found


def alive(pids):
    return [
        p for p in pids if os.path.exists(f"/proc/{p}") and "Z" not in Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1][:3]
    ]


SCRIPT = """
import sys, test_rollout, fewbit
with fewbit.rl.rollout(test_rollout.names_actor(), "small_envs:Counted-v0", workers=2,
                       env_args={"log": sys.argv[1], "pause": 0.002}) as rollout:
    print("ready", flush=True)
    rollout.collect(10**7)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(tmp_path, number):
    """Ctrl-C, or the death of the process that asked, in the middle of a batch."""
    before = set(os.listdir("/dev/shm"))
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    while not (tmp_path / "log").exists():
        time.sleep(0.05)
    workers = descendants(parent.pid)
    assert len(workers) == 2
    os.killpg(parent.pid, number)
    assert parent.wait(30) != 0
    parent.communicate()
    for _ in range(100):
        if not alive(workers):
            break
        time.sleep(0.05)
    assert not alive(workers) and set(os.listdir("/dev/shm")) <= before


def test_envpool():
    pytest.importorskip("envpool")
    batch = collect(categorical(), "CartPole-v1", envs=3, workers=2, vector="envpool", seed=2, steps=900)
    same(batch, collect(categorical(), "CartPole-v1", envs=3, workers=2, vector="envpool", seed=2, steps=900))
    resets = (~batch.valid).sum()
    assert len(batch) == 900 - resets and 0 < resets <= (batch.terminated.sum())
    made_by_cartpole(batch)
    for e in batch.episodes():
        np.testing.assert_array_equal(e["step"], np.arange(len(e["step"])))


def of_bytes():
    """An actor whose observations are uint8."""
    g, weight = corpus.Graph(0), np.eye(2, 4, dtype=np.int8)
    seen = g.qdq(g.op("Cast", g.input(np.zeros((1, 4))), to=1), "int16", 0.1)
    made = g.case("bytes", g.gemm(seen, 0.1, weight, np.ones(2), None)).model
    made.graph.input[0].type.tensor_type.elem_type = 2
    return Actor(Base(graph.prepare(made)), Exploration("categorical"))


def of_arrays():
    bounds = np.ones(2, np.float32)
    return Actor(Base(network(4, 2)), Exploration("gaussian", -bounds, bounds, bounds, shape=(2,)))


@pytest.mark.parametrize("new", [of_bytes, of_arrays])
def test_an_update_of_other_shapes_or_types_is_refused(new):
    """The memory of observations and actions is the first actor's."""
    with fewbit.rl.rollout(categorical(), "CartPole-v1") as rollout:
        rollout.update(new())
        with pytest.raises(FewbitError, match="another shape or type"):
            rollout.collect(10)
        with pytest.raises(FewbitError, match="closed"):
            rollout.update(categorical())


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda a: fewbit.rl.rollout(a, "CartPole-v1", env_args={"f": lambda: 0}), "can be pickled"),
        (lambda a: fewbit.rl.rollout(a, "CartPole-v1", envs=0), "at least one"),
        (lambda a: fewbit.rl.rollout(a, "CartPole-v1", vector="sync"), "choose one of gymnasium"),
        (lambda a: fewbit.rl.rollout(a, "CartPole-v1", backend="mpi"), "choose process or ray"),
        (lambda a: collect(a, "Pendulum-v1", steps=10), "observations of shape"),
        (lambda a: collect(a, "CartPole-v7", steps=10), "cannot be made"),
        (lambda a: collect(a, "CartPole-v1"), "either a number of steps"),
        (lambda a: fewbit.rl.rollout("nowhere.onnx", "CartPole-v1"), "no such file"),
        (lambda a: fewbit.rl.rollout(np.tanh, "CartPole-v1"), "is no actor"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(FewbitError, match=words):
        call(categorical())
