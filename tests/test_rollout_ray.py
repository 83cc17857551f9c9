"""The same rollouts on Ray: the data of the processes, a worker that dies replaced, and two nodes."""

import os

import numpy as np
import pytest
from conftest import ROOT
from test_rollout import categorical, collect, counted, log_softmax_of, named, names_actor, of_bytes, same

import fewbit

ray = pytest.importorskip("ray")
PLACES = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}}


@pytest.fixture(scope="module")
def here():
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env=PLACES)
    yield
    ray.shutdown()


def test_the_data_is_that_of_the_processes(here):
    both = [collect(categorical(), "CartPole-v1", envs=2, workers=2, seed=4, steps=600, backend=b) for b in ("ray", "process")]
    same(*both)
    with fewbit.rl.rollout(categorical(), "CartPole-v1", seed=4, backend="ray") as rollout:
        assert rollout.update(categorical(seed=3)) == 1
        batch = rollout.collect(episodes=3)
        rollout.update(of_bytes())
        with pytest.raises(fewbit.FewbitError, match="another shape or type"):
            rollout.collect(10)
    assert batch.version == 1 and len(list(batch.episodes())) == 3
    np.testing.assert_allclose(batch.log_prob, log_softmax_of(categorical(seed=3), batch), atol=1e-12)


def test_a_worker_that_dies_is_replaced_and_no_transition_is_counted_twice(here, tmp_path):
    args = counted(tmp_path, "kill", 200)
    batch = collect(names_actor(), "small_envs:Counted-v0", envs=2, workers=2, env_args=args, steps=1000, backend="ray")
    (fault,) = batch.faults
    assert "died" in fault.reason and fault.discarded is None
    assert len(batch) == len(set(named(batch))) == 1000


def test_an_environment_that_fails_is_an_error_with_its_words(here, tmp_path):
    with pytest.raises(fewbit.FewbitError, match="worker 0: .*exploded"):
        collect(names_actor(), "small_envs:Counted-v0", env_args=counted(tmp_path, "fail", 5), steps=100, backend="ray")


@pytest.mark.slow
def test_two_nodes_on_one_machine():
    """Two raylets, one CPU each, so that each has a worker."""
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=PLACES)
        with fewbit.rl.rollout(categorical(), "CartPole-v1", envs=2, workers=2, seed=4, backend="ray") as rollout:
            batch = rollout.collect(600)
            nodes = {ray.get(w.__ray_call__.remote(_node)) for w in rollout.backend.workers}
        assert len(nodes) == 2
        same(batch, collect(categorical(), "CartPole-v1", envs=2, workers=2, seed=4, steps=600))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _node(worker):
    return ray.get_runtime_context().get_node_id()
