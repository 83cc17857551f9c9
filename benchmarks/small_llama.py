"""A small Llama whose Linears all have a multiple of 256 columns, trained here: for the super-block types in benchmarks/gguf.py.

    python benchmarks/small_llama.py OUT [--steps 1000] [--seed 0]

10 million parameters: 4 blocks, 512 wide, 1024 inside, 8 heads over 4 of keys and values, a byte-level vocabulary of 2048 that is
trained too. The text is benchmarks/llm.py's, of which it sees the first half (66,000 tokens, 8 times); the second is measured
on. One sample of 512 tokens a step; 1000 steps are about ten minutes of one core. OUT is a Hugging Face folder.
"""

import argparse
import math
import pydoc_data.topics
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHAPE = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "tie_word_embeddings": True,
}  # fmt: skip
LENGTH, RATE, WARM = 512, 1e-3, 50


def vocabulary(text: str) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE that splits as SmolLM's does."""
    level, tokenizer = pre_tokenizers.ByteLevel, Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SHAPE["vocab_size"], initial_alphabet=level.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def rate(step: int, steps: int) -> float:
    """Share of RATE: linear warm-up, then a cosine to nothing."""
    return min(1.0, (step + 1) / WARM) * (1 + math.cos(math.pi * step / steps)) / 2


def train(model: transformers.PreTrainedModel, ids: torch.Tensor, steps: int) -> None:
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    for step in range(steps):
        start = int(torch.randint(len(ids) - LENGTH, (1,)))
        batch = ids[None, start : start + LENGTH]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step} {float(loss.detach()):.3f} {time.process_time():.0f} CPU seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[k] for k in sorted(topics))
    tokenizer = vocabulary(text[: len(text) // 2])
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters", flush=True)
    train(model, ids[: len(ids) // 2], a.steps)
    model.save_pretrained(a.out)
    tokenizer.save_pretrained(a.out)


if __name__ == "__main__":
    main()
