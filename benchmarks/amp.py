"""One small network in float32, float16 and bfloat16: python benchmarks/amp.py > benchmarks/results/amp.md

A policy-sized network whose answers are lengths in metres, a few millimetres each: its gradients lie about 1e-10, below float16.
Every row runs the same steps from the same weights, three seeds; the time is of plain steps, ours and torch's own loop in turn.
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import amp_learning
import torch

import fewbit

SEEDS, STEPS, BATCH, MILLIMETRES = 3, 500, 256, 0.003
TIMED, ROUNDS = 50, 7
ROWS = {
    "float32": {"format": "float32"},
    "float16, unscaled": {"format": "float16", "scaling": False},
    "float16, scaled": {"format": "float16"},
    "float16, scaled, growing every 10 steps": {"format": "float16", "growth_interval": 10},
    "bfloat16": {"format": "bfloat16"},
}


def network(seed: int, width: int = 64) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(17, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 6)
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 17, generator=generator)
    hidden = torch.tanh(x @ torch.randn(17, 16, generator=generator) / 4)
    return x, MILLIMETRES * hidden @ torch.randn(16, 6, generator=generator) / 4


def loss_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((MILLIMETRES * model(x).float() - y) ** 2).mean()


def adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-15)  # no gradient is small beside eps


def ours(seed: int, options: dict) -> tuple[torch.nn.Module, fewbit.amp.MixedPrecision, Callable[[], None]]:
    model, (x, y) = network(seed), data()
    amp = fewbit.amp.MixedPrecision(model, adam(model), clip=1.0, **options)

    def step() -> None:
        with amp.autocast():
            loss = loss_of(model, x, y)
        amp.step(loss)

    return model, amp, step


def torchs(options: dict) -> Callable[[], None]:
    """The same loop as torch's documentation writes it."""
    model, (x, y) = network(0), data()
    optimizer, dtype = adam(model), getattr(torch, options["format"])
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16 and options.get("scaling", True))

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_of(model, x, y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def microseconds(steps: list[Callable[[], None]]) -> list[float]:
    """The median of rounds, each of TIMED steps, of every loop in turn."""
    found: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, times in zip(steps, found, strict=True):
            step()
            start = time.perf_counter()
            for _ in range(TIMED):
                step()
            times.append((time.perf_counter() - start) / TIMED * 1e6)
    return [statistics.median(times) for times in found]


def row(name: str, options: dict) -> str:
    left, skipped, scale = [], 0, 1.0
    for seed in range(SEEDS):
        model, amp, step = ours(seed, options)
        for _ in range(STEPS):
            step()
        with torch.no_grad():
            x, y = data()
            left.append(float(loss_of(model, x, y) / (y**2).mean()))
        skipped, scale = skipped + amp.report().skipped[0], amp.scale
    once, never, theirs = microseconds([ours(0, options | {"every": n})[2] for n in (1, 0)] + [torchs(options)])
    usual = never + (once - never) / 100
    losses = ", ".join(f"{v:.2%}" for v in left)
    times = f"{usual / 1e6:.6f} | {theirs / 1e6:.6f} | {usual / theirs:.2f} | {(once - never) / 1e6:.6f}"
    return f"| {name} | {losses} | {skipped} | 2^{round(torch.tensor(scale).log2().item())} | {times} |"


def cpu() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    able = torch.cpu.get_capabilities()
    names = [n for n in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16") if able.get(n)]
    return f"{found[0].split(': ')[1] if found else platform.processor()}, 16-bit instructions: {', '.join(names) or 'none'}"


def main() -> None:
    torch.set_num_threads(1)
    print(f"CPU: {cpu()}; torch {torch.__version__}, one thread. No GPU: CUDA was not run.\n")
    print(f"17-64-64-6 tanh, batch {BATCH}, Adam, {STEPS} steps, clip 1.0; loss: the share left of the targets' mean square.\n")
    print("| | final loss, seeds 0 to 2 | skipped, of all | last scale | s/step, ours | torch's own loop | ratio | a sample |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, options in ROWS.items():
        print(row(name, options), flush=True)
    model, amp, step = ours(0, ROWS["float16, unscaled"])
    for _ in range(STEPS):
        step()
    print(f"\nWhat the unscaled float16 run reports:\n\n```text\n{amp.report()}\n```\n\n{NOTES}\n\n{LEARNING}\n")
    amp_learning.main()


NOTES = f"""\
Not like for like: torch's own loop counts nothing, and skips nothing where the loss is not scaled (ours does, in every format,
for one pass over the gradients). "s/step, ours" is a plain step and a hundredth of what a sampled step costs more (the last
column), as every=100 has it; medians of {ROUNDS} rounds of {TIMED} steps that alternate, on cores that did other work too.
float16 on this CPU is emulated, so its time says nothing of a GPU; nor does bfloat16's: in a network this small calls cost more
than products."""
LEARNING = f"""\
## A transformer and a SAC run

`benchmarks/amp_learning.py`. Both make their gradients small as such things are, and float16 without a loss scale fails by it:

- **transformer**: two blocks, width {amp_learning.WIDTH}, on characters, {amp_learning.STEPS} steps. The loss is the sum over
  {amp_learning.BATCH * amp_learning.CONTEXT} tokens divided by the {amp_learning.TOKENS} of a batch that they are a share of, as
  trainers do that accumulate a batch or spread it. The gradient of a logit is then at most 2e-6.
- **SAC**: Stable-Baselines3's, three optimizers, on Pendulum-v1, {amp_learning.SAC_STEPS} steps, its returns divided by the worst
  that an episode can have, {amp_learning.WORST:g}. The square of that is in the critics' loss and in its gradients: 1e-9 for an
  error of one.

"From float32's curve": mean absolute difference of log2 of the loss, smoothed, from float32's run of that seed. "Underflowed":
of the gradients in the sampled steps of seed 0, those of layers' outputs, and those of weights. SAC's loss is the critics', in
Pendulum's own units; two episodes, too few to balance the pendulum: what is compared are curves, not returns."""


if __name__ == "__main__":
    main()
