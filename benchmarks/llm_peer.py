"""llm-compressor's GPTQ, W4A16 or W3A16 asymmetric in groups of 64, on given samples: one JSON object. Run by benchmarks/llm.py.

    PYTHON benchmarks/llm_peer.py MODEL OUT CALIBRATION.txt int4

PYTHON: an environment with llmcompressor==0.14.*, transformers==5.17.* and torch. OUT holds the model with its weights rounded
to what the codes stand for, in float32: measured by the same code as every other row (its own packed file says the size).
"""

import json
import resource
import sys
import time
from pathlib import Path


def main(model: str, out: Path, calibration: Path, weights: str) -> dict:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = tokenizer(calibration.read_text(), add_special_tokens=False, verbose=False)["input_ids"]
    starts = [k * (len(ids) - 512) // 63 for k in range(64)]
    data = Dataset.from_dict({"input_ids": [ids[s : s + 512] for s in starts], "attention_mask": [[1] * 512] * 64})
    scheme = {"num_bits": int(weights[3:]), "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": scheme | {"actorder": "static"}}}, ignore=["lm_head"]
    )
    began = time.perf_counter()
    oneshot(model=loaded, dataset=data, recipe=recipe, max_seq_length=512, num_calibration_samples=64)
    seconds = time.perf_counter() - began
    state = {n: p for n, p in loaded.state_dict().items() if not n.endswith(("_scale", "_zero_point", "_g_idx"))}
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain.load_state_dict(state)
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"artifact": str(out), "peak_bytes": peak, "quantize_seconds": seconds, "forecast": None}


if __name__ == "__main__":
    found = main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    print(json.dumps(found))
