"""Tiny language models of many families with random shapes, biases, heads, tied or not, dtypes and tokenizers, as folders."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_llm
import torch
import transformers

Shape = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model: family and configuration, and how it is saved."""

    family: str
    config: Shape
    dtype: torch.dtype
    bos: bool
    shards: bool


def _common(random: np.random.Generator) -> Shape:
    """What most families' configurations know; head_dim times heads need not be the hidden size."""
    heads = int(random.choice([2, 4]))
    head_dim = int(random.choice([16, 32]))
    return {
        "vocab_size": 256, "hidden_size": heads * head_dim, "num_hidden_layers": int(random.integers(1, 4)),
        "intermediate_size": int(random.choice([96, 128, 160])), "num_attention_heads": heads, "head_dim": head_dim,
        "num_key_value_heads": int(random.choice([k for k in (1, 2, 4) if heads % k == 0])),
        "max_position_embeddings": 256, "tie_word_embeddings": bool(random.integers(2)), "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip


def _apart(random: np.random.Generator) -> Shape:
    """Of families whose heads may be wider together than the hidden state."""
    return {"hidden_size": int(random.choice([32, 64]))}


def _biased(*names: str) -> Callable[[np.random.Generator], Shape]:
    return lambda random: {name: bool(random.integers(2)) for name in names}


def _without_head_dim(random: np.random.Generator) -> Shape:
    return {"head_dim": None}


def _one_head_size(random: np.random.Generator) -> Shape:
    return {"head_dim": None, "num_key_value_heads": None}


def _gemma(random: np.random.Generator) -> Shape:
    return {"sliding_window": 16, "query_pre_attn_scalar": int(random.choice([16, 32]))}


def _experts(random: np.random.Generator) -> Shape:
    return {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _deepseek(random: np.random.Generator) -> Shape:
    """All layers dense, or all but the first of experts."""
    return {
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
        "head_dim": None, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": int(random.choice([1, 8])), "num_hidden_layers": 2,
        "num_key_value_heads": None,
    }  # fmt: skip


def _granite(random: np.random.Generator) -> Shape:
    return {"embedding_multiplier": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0,
            "head_dim": None, **_biased("attention_bias", "mlp_bias")(random)}  # fmt: skip


def _falcon(random: np.random.Generator) -> Shape:
    new, parallel = (bool(random.integers(2)) for _ in range(2))
    return {"head_dim": None, "new_decoder_architecture": new, "num_kv_heads": 2, "parallel_attn": parallel,
            "multi_query": bool(random.integers(2)), "alibi": False, **_biased("bias")(random)}  # fmt: skip


def _opt(random: np.random.Generator) -> Shape:
    return {"head_dim": None, "ffn_dim": 128, "word_embed_proj_dim": None, "do_layer_norm_before": bool(random.integers(2)),
            **_biased("enable_bias")(random)}  # fmt: skip


FAMILIES: dict[str, tuple[str, Callable[[np.random.Generator], Shape]]] = {
    "llama": ("LlamaConfig", _biased("attention_bias", "mlp_bias")),
    "qwen2": ("Qwen2Config", _without_head_dim),
    "qwen3": ("Qwen3Config", lambda r: _apart(r) | _biased("attention_bias")(r)),
    "mistral": ("MistralConfig", lambda r: _apart(r) | {"sliding_window": 16}),
    "gemma": ("GemmaConfig", _apart),
    "gemma2": ("Gemma2Config", _gemma),
    "gemma3": ("Gemma3TextConfig", _gemma),
    "phi": ("PhiConfig", _without_head_dim),
    "phi3": ("Phi3Config", _without_head_dim),
    "olmo2": ("Olmo2Config", lambda r: _without_head_dim(r) | _biased("attention_bias")(r)),
    "granite": ("GraniteConfig", _granite),
    "cohere": ("CohereConfig", _without_head_dim),
    "stablelm": ("StableLmConfig", lambda r: _without_head_dim(r) | _biased("use_qkv_bias", "use_parallel_residual")(r)),
    "starcoder2": ("Starcoder2Config", lambda r: _without_head_dim(r) | _biased("use_bias")(r)),
    "gpt_neox": ("GPTNeoXConfig", lambda r: _one_head_size(r) | _biased("attention_bias", "use_parallel_residual")(r)),
    "gpt2": ("GPT2Config", _one_head_size),
    "opt": ("OPTConfig", _opt),
    "falcon": ("FalconConfig", _falcon),
    "bloom": ("BloomConfig", _one_head_size),
    "mixtral": ("MixtralConfig", _experts),
    "qwen2_moe": ("Qwen2MoeConfig", lambda r: _experts(r) | _without_head_dim(r) | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", _experts),
    "gpt_oss": ("GptOssConfig", _experts),
    "deepseek_v3": ("DeepseekV3Config", _deepseek),
}


def draw(family: str, seed: int) -> Case:
    """A random model of the family; equal seeds give equal ones."""
    random = np.random.default_rng([seed, *family.encode()])
    config = _common(random) | FAMILIES[family][1](random)
    config = {name: value for name, value in config.items() if value is not None or name.endswith("_token_id")}
    dtype = (torch.float32, torch.bfloat16, torch.float16)[int(random.integers(3))]
    return Case(family, config, dtype, bool(random.integers(2)), bool(random.integers(2)))


def save(folder: Path, case: Case, seed: int = 0) -> Path:
    """The model with random weights whose columns differ in size, and norms and biases that are not ones and zeros."""
    config = getattr(transformers, FAMILIES[case.family][0])(**case.config)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_((0.1 if "bias" in name else 0.3) * torch.randn_like(weight))
            elif any(word in name for word in ("embed", "wte", "wpe", "lm_head")):
                weight.copy_(0.2 * torch.randn_like(weight))
            else:
                size = weight.shape[-1]
                weight.copy_(torch.randn_like(weight) / size**0.5 * torch.exp(0.3 * torch.randn(size)))
    model.to(case.dtype).save_pretrained(folder, max_shard_size="100KB" if case.shards else "5GB")
    tiny_llm._tokenizer(case.bos).save_pretrained(folder)
    return folder
