"""NNCF's post-training quantization of one ONNX policy, run in an environment of its own by benchmarks/policies.py.

    python -m venv peers && peers/bin/pip install nncf openvino onnx onnxruntime "gymnasium[mujoco,box2d]"
    python nncf_peer.py float.onnx observations.npz out.onnx [ENV ENV_ARGS_JSON]

With an environment: quantize_with_accuracy_control, whose metric is the mean return of 5 episodes and whose allowed drop is 5%.
"""

import json
import sys

import numpy as np
import onnx


def main() -> None:
    import nncf

    source, observations, out, *env = sys.argv[1:]
    model = onnx.load(source)
    arrays = dict(np.load(observations))
    rows = [{k: v[i : i + 1] for k, v in arrays.items()} for i in range(min(300, len(next(iter(arrays.values())))))]
    dataset = nncf.Dataset(rows)
    if not env:
        quantized = nncf.quantize(model, dataset, subset_size=len(rows))
    else:
        control = {"max_drop": 0.05, "drop_type": nncf.DropType.RELATIVE}
        quantized = nncf.quantize_with_accuracy_control(
            model, dataset, nncf.Dataset([0]), validation_fn=lambda m, _: returns(m, *env), subset_size=len(rows), **control
        )
    onnx.save(quantized, out)


def returns(model: object, env: str, arguments: str) -> tuple[float, list[float]]:
    """Mean return of 5 episodes; NNCF hands over an onnx.ModelProto, or a session-like object that it prepared."""
    import gymnasium
    import onnxruntime

    proto = model if isinstance(model, onnx.ModelProto) else getattr(model, "model", model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    e = gymnasium.make(env, **json.loads(arguments))
    found = []
    for seed in range(400_000, 400_005):
        o, total, done = e.reset(seed=seed)[0], 0.0, False
        while not done:
            action = session.run(None, {name: o[None].astype(np.float32)})[0][0]
            o, reward, terminated, truncated, _ = e.step(int(action) if np.ndim(action) == 0 else action)
            total, done = total + float(reward), terminated or truncated
        found.append(total)
    return float(np.mean(found)), found


if __name__ == "__main__":
    main()
