"""Every real policy: captured = Stable-Baselines3's predict; artifact = ONNX Runtime layer by layer; returns as published."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from c_policy import CPolicy
from conftest import ROBOTS, ZOO
from onnx.utils import Extractor

import fewbit
from fewbit import pipeline, sources
from fewbit.engine import native, reference
from fewbit.engine.load import load, quickest
from fewbit.engine.lower import lower
from fewbit.engine.program import Linear
from fewbit.graph import calibrate, qdq
from fewbit.graph.quantize import quantize
from fewbit.rl import returns

RUN_IN = {
    "LunarLander-v2": "LunarLander-v3",
    "LunarLanderContinuous-v2": "LunarLanderContinuous-v3",
    "HalfCheetah-v3": "HalfCheetah-v5",
    "Walker2d-v3": "Walker2d-v4",
    "Hopper-v3": "Hopper-v5",
    "Humanoid-v3": "Humanoid-v4",
    "CartPole-v1": "CartPole-v1",
    "Pendulum-v1": "Pendulum-v1",
    "BipedalWalker-v3": "BipedalWalker-v3",
}
AGENTS = sorted(p.relative_to(ZOO).as_posix() for p in ZOO.glob("*/*/*.zip"))


def observations(source: sources.Source, name: str) -> dict[str, np.ndarray]:
    """1000 real observations where the environment runs, seeded normal ones otherwise."""
    policy, env = load(source.model, "onnxruntime"), RUN_IN.get(name)
    if env is None:
        rng = np.random.default_rng(0)
        return {k: rng.normal(size=(1000, *shape)).astype(np.float32) for k, shape in policy.inputs.items()}
    states = returns.episodes(policy, env, range(20), record=1000, inputs=policy.inputs)[1]
    return {next(iter(policy.inputs)): states[:1000].astype(np.float32)}


@pytest.mark.parametrize("agent", AGENTS or [pytest.param("none", marks=pytest.mark.skip(reason=f"no policy zoo at {ZOO}"))])
def test_captured_and_quantized(agent, record_property):
    from fewbit.sources import sb3
    from fewbit.sources.normalizer import read

    path = ZOO / agent
    source = sources.load(path)
    feeds = observations(source, path.parent.name)
    beside = path.with_name("vecnormalize.pkl")
    normalizer = read(beside) if beside.exists() else None
    single = len(feeds) == 1
    seen = {k: v if normalizer is None else normalizer.apply("" if single else k, v).astype(np.float32) for k, v in feeds.items()}
    policy = sb3.build(path)
    want, _ = policy.predict(next(iter(seen.values())) if single else seen, deterministic=True)
    got = load(source.model, "onnxruntime")(feeds)
    if want.dtype.kind == "i":
        assert (got == want).all()
    else:
        # Humanoid's unsquashed actions reach 27 and float32 itself ends there: then we must be as near to float64 as predict is.
        exact = in_float64(policy, seen)
        assert np.abs(got - want).max() <= 1e-5 or np.abs(got - exact).max() <= np.abs(want - exact).max()
    equal, apart = layer_by_layer(source, feeds)
    error = np.abs(got - want).max()
    codes = "no hidden codes" if np.isnan(equal) else f"layer codes as ONNX Runtime's {equal:8.3%}"
    row = f"{agent:62} captured within {error:.1e} of predict; {codes}; end to end {apart:.1e}"
    record_property("measured", row)


def in_float64(policy, seen: dict[str, np.ndarray]) -> np.ndarray:
    """predict's own action with every weight and activation in float64."""
    import torch

    double = {k: torch.tensor(v, dtype=torch.float64) for k, v in seen.items()}
    preprocess = policy.extract_features.__globals__["preprocess_obs"]
    policy.extract_features.__globals__["preprocess_obs"] = lambda obs, space, normalize_images=True: obs
    try:
        with torch.no_grad():
            action = (
                policy.double()._predict(next(iter(double.values())) if len(double) == 1 else double, deterministic=True).numpy()
            )
    finally:
        policy.extract_features.__globals__["preprocess_obs"] = preprocess
        policy.float()
    return (
        policy.unscale_action(action)
        if policy.squash_output
        else np.clip(action, policy.action_space.low, policy.action_space.high)
    )


def layer_by_layer(source: sources.Source, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """Assert at most one code from unoptimised ONNX Runtime, fed the reference's codes.

    (share equal, end-to-end gap of default ONNX Runtime); the share of a policy of one layer, which has no codes, is nan.
    """
    quantized, _ = quantize(source.model, feeds, qdq.Scheme())
    program = lower(quantized)
    registers = reference.run(program, feeds)
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(quantized))
    same = total = 0
    for step in program.steps:
        if isinstance(step, Linear) and step.format is not None:
            one = Extractor(proto).extract_model([step.x], [step.out])
            theirs = calibrate.session(one, optimise=False).run(None, {step.x: registers[step.x]})[0]
            difference = np.abs(theirs.astype(np.int64) - registers[step.out])
            assert difference.max() <= 1, step.out
            same, total = same + int((difference == 0).sum()), total + difference.size
    actions = [load(quantized, executor)(feeds).astype(np.float64) for executor in ("reference", "onnxruntime")]
    return same / total if total else float("nan"), float(np.abs(actions[0] - actions[1]).max())


def agree(model: ir.Model, feeds: dict[str, np.ndarray], folder) -> None:
    """10,000 observations, real ones and their neighbours: native on every instruction set, and C, give the reference's bits."""
    from fewbit import _native

    program, rng = lower(quantize(model, feeds, qdq.Scheme())[0]), np.random.default_rng(0)
    many = {}
    for k, v in feeds.items():
        more = v[rng.integers(0, len(v), 9000)]
        more = more + rng.normal(size=more.shape) * v.std(0) if v.dtype.kind == "f" else more
        many[k] = np.concatenate([v, more]).astype(program.input_dtypes[k])
    wanted = reference.run(program, many)[program.outputs[0]]
    for name in _native.available():
        assert np.array_equal(native.load(program, name)(many), wanted), name
    if program.exact:
        assert np.array_equal(CPolicy(program, folder)(many), wanted)


@pytest.mark.parametrize("agent", AGENTS or [pytest.param("none", marks=pytest.mark.skip(reason=f"no policy zoo at {ZOO}"))])
def test_every_executor_agrees(agent, tmp_path):
    source = sources.load(ZOO / agent)
    agree(source.model, observations(source, (ZOO / agent).parent.name), tmp_path)


def test_every_executor_agrees_on_go1(robots, tmp_path):
    source = sources.load(robots / "go1/policy.onnx")
    policy = load(source.model, "onnxruntime")
    states = returns.episodes(policy, "robots:UnitreeGo1-v0", range(2), record=1000, inputs=policy.inputs)[1]
    agree(source.model, {next(iter(policy.inputs)): states[:1000].astype(np.float32)}, tmp_path)


LOOPS = [("sac/HalfCheetah-v3", "HalfCheetah-v5"), ("ppo/LunarLander-v2", "LunarLander-v3"), ("go1", "")]


@pytest.mark.parametrize("agent, env", LOOPS)
def test_compiled_c_closes_the_loop(zoo, robots, agent, env, tmp_path):
    """The same actions, so the same episodes to the last bit of their returns."""
    path = robots / "go1/policy.onnx" if agent == "go1" else next((zoo / agent).glob("*.zip"))
    artifact = fewbit.quantize(path, env or "robots:UnitreeGo1-v0", scheme=qdq.Scheme(method="rtn"), episodes=2)
    program, engine = lower(artifact.model), quickest(artifact.model)
    for policy in (compiled := CPolicy(program, tmp_path), engine):
        found = returns.episodes(policy, env or "robots:UnitreeGo1-v0", range(2), inputs=policy.inputs)[0]
        assert np.array_equal(found, returns.episodes(engine, env or "robots:UnitreeGo1-v0", range(2), inputs=engine.inputs)[0])
    assert compiled.library.policy_self_test() == 0


def test_the_humanoids_memory(robots, tmp_path):
    """TorchScript with its state in buffers, captured as its own calls are; every executor's episodes equal to the last bit."""
    import torch

    path = robots / "g1/motion.pt"
    with pytest.raises(fewbit.FewbitError, match="can execute code when loaded; if you trust it, add --trust-torchscript"):
        sources.load(path)
    source, original = sources.load(path, trust_torchscript=True), torch.jit.load(path)
    policy, rng = load(source.model, "onnxruntime"), np.random.default_rng(0)
    assert policy.inputs == {"observation": (47,)} and [s.input for s in policy.states] == ["hidden_state", "cell_state"]
    with torch.no_grad():
        for _ in range(30):
            x = rng.normal(size=(1, 47)).astype(np.float32)
            assert np.abs(policy(x) - original(torch.tensor(x)).numpy()).max() < 1e-5
    scheme = qdq.Scheme(method="smooth+gptq")
    artifact = fewbit.quantize(path, "robots:UnitreeG1-v0", scheme=scheme, episodes=4, trust_torchscript=True)
    record = artifact.record["evidence"]
    assert record["exact"] and record["kept"] > 0.99 and record["return_float"]["mean"] > 900
    program = lower(artifact.model)
    compiled = CPolicy(program, tmp_path)
    assert compiled.library.policy_self_test() == 0 and compiled.sizes["state_bytes"] == 2 * 128  # 16-bit codes
    executors = [compiled, load(artifact.model, "reference"), load(artifact.model)]
    found = [returns.episodes(e, "robots:UnitreeG1-v0", range(3), inputs=e.inputs)[0] for e in executors]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2]) and found[0].min() > 850


def test_go1_runs_and_is_exact(robots):
    artifact = fewbit.quantize(robots / "go1/policy.onnx", "robots:UnitreeGo1-v0", scheme=fewbit.Scheme(), episodes=4)
    record = artifact.record["evidence"]
    assert 900 < record["return_float"]["mean"] < 960 and record["return_quantized"]["mean"] > 850 and record["exact"]


@pytest.mark.parametrize("agent, published, worse", [("sac/HalfCheetah-v3", 9400, True), ("tqc/HalfCheetah-v3", 12100, True)])
def test_returns_reproduce_the_published_and_round_to_nearest_costs_some(zoo, agent, published, worse, tmp_path):
    scheme = fewbit.Scheme(method="rtn")
    artifact = fewbit.quantize(zoo / agent / "HalfCheetah-v3.zip", env="HalfCheetah-v5", episodes=20, scheme=scheme)
    artifact.save(tmp_path / "a.onnx")
    record = fewbit.evaluate(tmp_path / "a.onnx", "HalfCheetah-v5", zoo / agent / "HalfCheetah-v3.zip", episodes=10)
    assert abs(record["return_float"]["mean"] - published) < 0.03 * published
    assert record["kept"] < 0.99 and record["verdict"] != "pass"  # 10 episodes leave room for failures of the float policy
    assert record["size_bytes"] == (tmp_path / "a.onnx").stat().st_size < record["size_float_bytes"] / 2


def test_a_pendulum_that_acts_worse_keeps_less(zoo):
    """Its returns are negative: a ratio of returns would reward the worse copy."""
    path = zoo / "sac/Pendulum-v1/Pendulum-v1.zip"
    kept = []
    for weights in ("int8", "int3"):
        artifact = fewbit.quantize(path, env="Pendulum-v1", episodes=20, scheme=fewbit.Scheme(weights))
        kept.append(artifact.record["evidence"]["kept"])
        assert artifact.record["evidence"]["return_float"]["mean"] < 0
    assert kept[1] < kept[0] - 0.05


def test_the_same_recipe_writes_the_same_bytes(zoo):
    one, two = (pipeline.quantize(zoo / "ppo/CartPole-v1/CartPole-v1.zip", "CartPole-v1", episodes=2) for _ in range(2))
    for a in (one, two):
        a.record.pop("evidence")  # holds a latency
    assert one.to_bytes() == two.to_bytes()


def test_a_torch_module_and_an_artifact_without_environment():
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.ELU(), torch.nn.Linear(33, 5), torch.nn.Sigmoid())
    x = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    artifact = fewbit.quantize(net, observations=x)
    assert np.abs(load(artifact.model)(x) - net(torch.tensor(x)).detach().numpy()).max() < 0.02
    assert lower(artifact.model).exact and not lower(sources.load(net).model).exact


def test_robots_folder_is_where_it_should_be():
    assert ROBOTS.is_dir() or not ZOO.is_dir()
