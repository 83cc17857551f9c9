"""Tiny random language models of several families, saved as Hugging Face folders with a tokenizer of their own."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SHAPE = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
BOS = 255  # the id, in tokenizers that begin every text with one
FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "gemma2": ("Gemma2Config", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
}


def save(
    folder: Path, family: str = "llama", seed: int = 0, shards: bool = False, dtype: torch.dtype = torch.float32, calm: float = 1,
    bos: bool = False, **shape
) -> Path:  # fmt: skip
    """A random model whose columns and norms differ in size, as a trained one's do; bytes are its tokens.

    calm: what the last norm is divided by; from about 5 on the logits of random ids are as even as a trained model's.
    bos: the tokenizer begins every text with BOS.
    """
    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**SHAPE, **own, **shape})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_((0.0 if "gemma" in family else 1.0) + 0.3 * torch.randn_like(p))
            elif "embed" not in n:
                p.copy_(torch.randn_like(p) / p.shape[1] ** 0.5 * torch.exp(0.3 * torch.randn(p.shape[1])))
            else:
                p.copy_(0.2 * torch.randn_like(p))
        model.model.norm.weight /= calm
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    _tokenizer(bos).save_pretrained(folder)
    return folder


def _tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: k for k, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if not bos:
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    made.post_processor = processors.TemplateProcessing(single=f"{alphabet[BOS]} $A", special_tokens=[(alphabet[BOS], BOS)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=alphabet[BOS])


def text(path: Path, characters: int = 4000, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    words = ["weight", "scale", "group", "code", "zero", "the", "of", "a", "network", "few", "bits", "and"]
    picks = torch.randint(0, len(words), (characters,), generator=generator)
    path.write_text(" ".join(words[i] for i in picks)[:characters])
    return path


def fixed(folder: Path) -> Path:
    """A Llama of one block, its weights from a stream that NumPy froze: what other programs make of it can be kept as hashes."""
    shape = {
        "hidden_size": 192,
        "intermediate_size": 288,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = transformers.LlamaConfig(**{**SHAPE, **shape, "head_dim": 48}, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = np.random.RandomState(0)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            values = random.standard_normal(tuple(p.shape)) * np.exp(0.5 * random.standard_normal(p.shape[-1]))
            p.copy_(torch.from_numpy(values / 8 + (p.ndim == 1)))
        model.model.layers[0].mlp.up_proj.weight[3] = 0  # a row of zeros
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder
