"""What llm-compressor writes without calibration, as hashes: the golden file of tests/test_compressed.py.

    PYTHON benchmarks/compressed_peer.py FOLDER tests/compressed_golden.json

FOLDER: what tiny_llm.fixed wrote. PYTHON: an environment with llmcompressor==0.14.* and transformers==5.17.*.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

SCHEMES = {
    "int8": "W8A16", "int4": "W4A16", "int4-asymmetric": "W4A16_ASYM", "w8a8": "W8A8", "fp8": "FP8_DYNAMIC",
    "fp8-block": "FP8_BLOCK", "nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16",
}  # fmt: skip
GROUP = 32  # of int8 and int4, whose presets take 128 and whole rows


def tensors(folder: Path) -> dict[str, list]:
    import torch
    from safetensors.torch import load_file

    found = {}
    for path in folder.glob("*.safetensors"):
        for name, t in load_file(path).items():
            data = t.contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else t.numpy().tobytes()
            found[name] = [str(t.dtype), list(t.shape), hashlib.sha256(data).hexdigest()[:16]]
    return dict(sorted(found.items()))


def main(source: str) -> dict:
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    made = {}
    for name, preset in SCHEMES.items():
        scheme = preset_name_to_scheme(preset, ["Linear"])
        if name.startswith("int"):
            scheme.weights.strategy, scheme.weights.group_size = "group", GROUP
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        with tempfile.TemporaryDirectory() as out:
            oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]))
            model.save_pretrained(out, save_compressed=True)
            config = json.loads((Path(out) / "config.json").read_text())
            group = config["quantization_config"]["config_groups"]["group_0"]
            made[name] = {"format": group["format"], "weights": group["weights"], "tensors": tensors(Path(out))}
    return made


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(made)}" for name, made in main(sys.argv[1]).items()]
    Path(sys.argv[2]).write_text("{\n" + ",\n".join(lines) + "\n}\n")
