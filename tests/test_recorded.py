"""Recorded observations: files and arrays of every kind, for policies of one input and of several."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fewbit
from fewbit import recorded

RNG = np.random.default_rng(0)
OBS, GOAL = RNG.normal(size=(40, 5)).astype(np.float32), RNG.normal(size=(40, 3)).astype(np.float32)


def network(path: Path, kind: int = 1) -> Path:
    """obs [n, 5] and goal [n, 3], side by side -> 8 ReLUs -> 2 actions; kind: ONNX's number of goal's element type."""
    from onnx import TensorProto, helper, numpy_helper, save

    ends = [("obs", TensorProto.FLOAT, 5), ("goal", kind, 3), ("act", TensorProto.FLOAT, 2)]
    obs, goal, act = (helper.make_tensor_value_info(n, t, ("n", d)) for n, t, d in ends)
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(8, 8)), "b": rng.normal(size=8), "v": rng.normal(size=(8, 2)), "c": rng.normal(size=2)}
    nodes = [
        helper.make_node("Cast", ["goal"], ["goal_float"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["obs", "goal_float"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w", "b"], ["x"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Gemm", ["y", "v", "c"], ["act"]),
    ]
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", [obs, goal], [act], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_of_two_inputs_calibrates_as_a_dictionary_does(tmp_path):
    policy = network(tmp_path / "policy.onnx")
    np.savez(tmp_path / "x.npz", goal=GOAL, obs=OBS, rewards=np.zeros(40))
    scheme = fewbit.Scheme(method="smooth+gptq")
    given = {"obs": OBS, "goal": GOAL}
    from_dict = fewbit.quantize(policy, observations=given, scheme=scheme)
    from_file = fewbit.quantize(policy, observations=tmp_path / "x.npz", scheme=scheme)
    batches = [{k: v[i : i + 7] for k, v in given.items()} for i in range(0, 40, 7)]
    from_loader = fewbit.quantize(policy, observations=[(b, "labels") for b in batches], scheme=scheme)
    assert from_dict.to_bytes() == from_file.to_bytes() == from_loader.to_bytes()
    from_dict.save(tmp_path / "q.onnx")
    floats = fewbit.load(policy, executor="onnxruntime")(given)
    actions = fewbit.load(tmp_path / "q.onnx")(given)
    assert np.abs(actions - floats).max() < 0.05 * np.ptp(floats)


def test_the_command_line_takes_a_file_of_two_inputs(tmp_path):
    network(tmp_path / "policy.onnx")
    np.savez(tmp_path / "x.npz", obs=OBS, goal=GOAL)
    go = [sys.executable, "-m", "fewbit", "quantize", "policy.onnx", "-o", "q.onnx", "--observations", "x.npz"]
    done = subprocess.run(go, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "q.onnx").exists(), done.stderr


@pytest.mark.parametrize(
    "given, says",
    [
        (OBS, r"takes obs, goal, one array is not enough; give a .npz .*savez\(FILE, obs=..., goal=...\)"),
        ({"obs": OBS}, "hold obs; the policy takes obs, goal: goal is missing"),
        ({"obs": OBS, "goal": GOAL[:, :2]}, r"observations \(goal\) have shape \[40, 2\], the policy takes \[n, 3\]"),
        ({"obs": OBS, "goal": GOAL[:9]}, "there are 9 observations goal and 40 obs; give as many of each"),
        ({"obs": OBS, "goal": GOAL * 1j}, "observations of goal are complex64; give real numbers"),
        ({"obs": OBS, "goal": np.array([{}] * 40)}, "observations of goal are object"),
        ({"obs": OBS.astype(np.float64) * 1e300, "goal": GOAL}, "observations obs hold .*, which float32 cannot"),
        ({"obs": OBS[:0], "goal": GOAL[:0]}, r"have shape \[0, 5\], the policy takes \[n, 5\]"),
    ],
)
def test_what_does_not_fit_two_inputs_is_said(tmp_path, given, says):
    with pytest.raises(fewbit.FewbitError, match=says):
        fewbit.quantize(network(tmp_path / "policy.onnx"), observations=given)


def test_integers_are_not_made_of_fractions(tmp_path):
    policy = network(tmp_path / "policy.onnx", kind=2)  # uint8
    fewbit.quantize(policy, observations={"obs": OBS, "goal": np.full((40, 3), 255.0)})
    for value in (0.5, 256.0, -1.0):
        with pytest.raises(fewbit.FewbitError, match="observations goal hold .*, the policy takes whole numbers .uint8."):
            fewbit.quantize(policy, observations={"obs": OBS, "goal": np.full((40, 3), value)})


def test_every_kind_of_file_holds_the_same_numbers(tmp_path):
    np.save(tmp_path / "a.npy", OBS)
    np.savez(tmp_path / "a.npz", OBS)
    np.savetxt(tmp_path / "a.csv", OBS, delimiter=",")
    np.savetxt(tmp_path / "named.csv", OBS, delimiter=",", header="x,y,z,vx,vy", comments="\ufeff", encoding="utf-8")
    np.savetxt(tmp_path / "one.csv", OBS[:1], delimiter=", ")
    for name, rows in (("a.npy", 40), ("a.npz", 40), ("a.csv", 40), ("named.csv", 40), ("one.csv", 1)):
        np.testing.assert_array_equal(recorded.named(tmp_path / name, ["obs"])["obs"].astype(np.float32), OBS[:rows])


def test_a_tensor_of_torch_is_an_array():
    import torch

    found = recorded.named(torch.from_numpy(OBS.copy()).requires_grad_(), ["obs"])
    np.testing.assert_array_equal(found["obs"], OBS)


def test_files_that_hold_no_observations(tmp_path):
    (tmp_path / "words.csv").write_text("a,b\n1,2\n3,x\n")
    (tmp_path / "empty.csv").write_text("")
    np.savez(tmp_path / "objects.npz", obs=np.array([{}], object))
    np.savez(tmp_path / "none.npz")
    for name, says in (
        ("words.csv", "not a table of numbers"),
        ("empty.csv", "not a table of numbers"),
        ("objects.npz", "not a .npy array of numbers"),
        ("none.npz", "not a .npy array of numbers"),
        ("no.npz", "no such file"),
    ):
        with pytest.raises(fewbit.FewbitError, match=says):
            recorded.read(tmp_path / name)
