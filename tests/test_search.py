"""The search stops at the first rung that is shown to keep enough, reports on other seeds, and says when none does."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import fewbit
from fewbit import ladder
from fewbit.graph.qdq import Scheme

PASS = {"verdict": "pass", "kept": 0.99}
FAIL = {"verdict": "fail", "kept": 0.5}
LADDER = [(name, replace(Scheme(), weights=name)) for name in ("int4", "int6", "int8")]


def measured(table):
    calls = []

    def measure(scheme):
        calls.append(scheme.weights)
        return table[scheme.weights]

    return measure, calls


def test_stops_at_the_first_that_passes_on_both_rows_of_seeds():
    choose, chosen = measured({"int4": FAIL, "int6": PASS, "int8": PASS})
    report, reported = measured({"int6": PASS})
    best, tried = ladder.climb(iter(LADDER), choose, report)
    assert best.what == "int6" and chosen == ["int4", "int6"] and reported == ["int6"] and len(tried) == 2


def test_luck_where_it_was_chosen_is_not_enough():
    choose, _ = measured({"int4": PASS, "int6": PASS, "int8": PASS})
    report, reported = measured({"int4": FAIL, "int6": FAIL, "int8": PASS})
    assert ladder.climb(iter(LADDER), choose, report)[0].what == "int8" and reported == ["int4", "int6", "int8"]


def test_when_none_reaches_it_the_best_is_kept_and_reported():
    choose, _ = measured({"int4": FAIL, "int6": FAIL | {"kept": 0.8}, "int8": FAIL | {"kept": None}})
    report, reported = measured({"int6": FAIL})
    best, tried = ladder.climb(iter(LADDER), choose, report)
    assert best.what == "int6" and reported == ["int6"] and len(tried) == 3 and not ladder.reached(best.reported)


def test_undecided_is_judged_by_the_actions():
    assert ladder.reached({"verdict": "undecided", "fidelity_met": True})
    assert not ladder.reached({"verdict": "undecided", "fidelity_met": False})
    assert not ladder.reached({"verdict": "fail", "fidelity_met": True})


def test_rungs_never_get_finer_without_getting_dearer():
    names = [what for what, _ in ladder.rungs(Scheme(method="auto", weights="auto"), "head")]
    assert len(names) == len(set(names)) and "int4" in names[0] and "float16" in names[-1]


@pytest.mark.parametrize("weights", ["auto", "int4", "int2", "int8"])
def test_what_was_trained_at_a_width_is_found_before_anything_else(weights):
    """Rounding alone gives a policy of rl.QuantizedTraining the codes that it was trained with."""
    _, first = next(ladder.rungs(Scheme(method="auto", weights=weights), "head"))
    assert first.method == "rtn" and first.weights == ("int4" if weights == "auto" else weights)


@pytest.mark.parametrize("seed", range(20))
def test_allocation_against_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    layers, formats = ["a", "b", "c"], ["int4", "int6", "int8", "int16"]
    size = {k: int(rng.integers(50, 3000)) for k in layers}
    sizes = {k: {f: size[k] * int(f[3:]) // 8 for f in formats} for k in layers}
    errors = {k: {f: float(rng.uniform(0.1, 10) * 4.0 ** -int(f[3:])) for f in formats} for k in layers}
    budget = sum(s["int4"] for s in sizes.values()) * 2
    chosen = dict(ladder.allocate(errors, sizes, budget))
    assert sum(sizes[k][f] for k, f in chosen.items()) <= budget
    every = [dict(zip(layers, c, strict=True)) for c in itertools.product(formats, repeat=3)]
    allowed = [c for c in every if sum(sizes[k][f] for k, f in c.items()) <= budget]
    best = min(sum(errors[k][f] for k, f in c.items()) for c in allowed)
    got = sum(errors[k][f] for k, f in chosen.items())
    assert got <= sum(errors[k]["int4"] for k in layers) and got <= 40 * best


@pytest.mark.parametrize("agent", ["sac/HalfCheetah-v3", "tqc/HalfCheetah-v3"])
def test_int8_keeps_99_percent_where_rounding_to_nearest_loses_more(agent, zoo, tmp_path):
    scheme = fewbit.Scheme(method="auto")
    artifact = fewbit.quantize(zoo / agent / "HalfCheetah-v3.zip", env="HalfCheetah-v5", scheme=scheme, episodes=20)
    first, *_, last = artifact.record["search"]
    assert not ladder.reached(first["chosen_on"]) and first["reported"] is None
    assert first["chosen_on"]["kept"] < 0.99  # what the name says; 0.963 of one agent since coarse columns are scaled
    assert last["reported"]["kept"] > 0.99 and last["reported"]["kept_ci95"][0] > 0.8 and ladder.reached(last["reported"])
    assert last["chosen_on"]["seeds"][0] > last["reported"]["seeds"][1]
    assert artifact.record["recipe"]["weights"] == "int8" and artifact.record["recipe"]["method"] == "smooth+gptq"
    artifact.save(tmp_path / "a.onnx")
    observations = np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32)
    np.testing.assert_allclose(fewbit.load(tmp_path / "a.onnx", "onnxruntime")(observations),
                               fewbit.load(tmp_path / "a.onnx")(observations), atol=0.1)  # fmt: skip


@pytest.mark.parametrize("trials", [1, 100])
def test_any_measure_can_be_given(trials):
    """A regression network and its own score: the search stops where the score is kept."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    x = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    want = net(torch.tensor(x)).detach().numpy()
    asked = []

    def score(policy, seed):
        asked.append(seed)
        part = slice(seed * 1000, seed * 1000 + 1000)
        error = ((policy(x[part]) - want[part]) ** 2).mean(axis=1)
        return 1 - np.array([e.mean() for e in np.array_split(error, trials)]) / want.var()

    loose = fewbit.search(net, score, x, keep=0.9, scheme=fewbit.Scheme("auto"))
    strict = fewbit.search(net, score, x, keep=0.9999, scheme=fewbit.Scheme("auto"))
    assert loose.record["evidence"]["verdict"] == "pass"
    assert strict.record["evidence"]["verdict"] == ("pass" if trials == 1 else "undecided")  # 100 trials cannot show 99.99%
    assert loose.record["recipe"]["weights"] == "int4" and strict.record["recipe"]["weights"] != "int4"
    assert loose.record["evidence"]["packed_bytes"] < strict.record["evidence"]["packed_bytes"] and {0, 1} == set(asked)


def test_a_budget_is_kept_and_spent_where_it_matters(zoo):
    path = zoo / "sac/HalfCheetah-v3/HalfCheetah-v3.zip"
    artifact = fewbit.quantize(path, env="HalfCheetah-v5", scheme=fewbit.Scheme(method="auto"), budget=55_000, episodes=2)
    formats = dict(artifact.record["recipe"]["layers"])
    assert len(set(formats.values())) > 1 and artifact.record["evidence"]["packed_bytes"] <= 55_000 + 4 * (256 + 256 + 6) + 320
    with pytest.raises(fewbit.FewbitError, match="even int4 weights take"):
        fewbit.quantize(path, env="HalfCheetah-v5", budget=1000, episodes=2)


def test_half_precision_is_a_cast_and_no_search(zoo):
    path = zoo / "ppo/CartPole-v1/CartPole-v1.zip"
    artifact = fewbit.quantize(path, env="CartPole-v1", scheme=fewbit.Scheme("bfloat16", method="auto"), episodes=2)
    assert artifact.record["recipe"]["method"] == "rtn" and "search" not in artifact.record
    with pytest.raises(fewbit.FewbitError, match="nothing to solve"):
        fewbit.quantize(path, env="CartPole-v1", scheme=fewbit.Scheme("float16", method="gptq"), episodes=2)


def test_half_precision_reaches_convolutions(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "v": rng.normal(size=(64, 2))}
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ("n", 3, 6, 6)), ("y", ("n", 2)))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["y"]),
    ]
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "conv.onnx")
    x = rng.normal(size=(50, 3, 6, 6)).astype(np.float32)
    made = fewbit.quantize(tmp_path / "conv.onnx", observations=x, scheme=fewbit.Scheme("float16"))
    made.save(tmp_path / "half.onnx")
    kinds = [i.data_type for i in onnx.load(tmp_path / "half.onnx").graph.initializer if len(i.dims) > 1]
    assert kinds == [TensorProto.FLOAT16] * 2
    rounded = {k: v.astype(np.float16).astype(np.float32) for k, v in weights.items()}
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in rounded.items())
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "rounded.onnx")
    want = fewbit.load(tmp_path / "rounded.onnx", "onnxruntime")(x)
    np.testing.assert_allclose(fewbit.load(tmp_path / "half.onnx", "onnxruntime")(x), want, atol=1e-4)
