"""A small transformer and a SAC run in float32, bfloat16, and float16 with and without loss scaling: their loss curves.

Part of benchmarks/amp.py. In both something usual makes gradients small, and the row without a loss scale shows what that costs:

transformer   two blocks on the characters of Python's own reference; the loss of 512 tokens is divided by the 524288 of a
              batch that they are a share of, as trainers do that accumulate or spread it (the other shares are left out)
SAC           Stable-Baselines3's, on Pendulum-v1, its returns divided by the worst that an episode can have, 3255; the
              critics answer in Pendulum's own units, so float32 learns what it learns without the division
"""

import statistics
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional

import fewbit

SEEDS, LAST = (0, 1, 2), 5  # LAST: one of so many parts of a curve is its end
ROWS: dict[str, dict[str, Any]] = {
    "float32": {"format": "float32"},
    "float16, unscaled": {"format": "float16", "scaling": False},
    "float16, scaled": {"format": "float16"},
    "bfloat16": {"format": "bfloat16"},
}
WIDTH, CONTEXT, BATCH, TOKENS, STEPS = 48, 32, 16, 524288, 80
WORST, SAC_STEPS, WINDOW = 3255.0, 400, 30
MixedPrecision = fewbit.amp.MixedPrecision
Run = tuple[list[float], MixedPrecision]  # the loss of every step, and what it counted


def adam(parameters: Any, lr: float = 1e-3) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr, eps=1e-15)  # no gradient is small beside eps


class Characters(torch.nn.Module):
    def __init__(self, vocabulary: int):
        super().__init__()
        self.embed, self.place = torch.nn.Embedding(vocabulary, WIDTH), torch.nn.Embedding(CONTEXT, WIDTH)
        one = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = torch.nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        self.norm, self.head = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, vocabulary)
        for p in self.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes [n, time] -> logits [n, time, vocabulary]."""
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(h, mask=mask, is_causal=True)))


def text() -> tuple[torch.Tensor, int]:
    """(codes, how many there are) of the reference's ASCII characters."""
    whole = "".join(topics[k] for k in sorted(topics)).encode("ascii", "ignore")
    kinds = sorted(set(whole))
    return torch.tensor([kinds.index(c) for c in whole[:400_000]]), len(kinds)


def transformer(seed: int, options: dict[str, Any]) -> Run:
    torch.manual_seed(seed)
    codes, vocabulary = text()
    model, losses = Characters(vocabulary), []
    amp = MixedPrecision(model, adam(model.parameters(), 3e-3), clip=1.0, every=50, **options)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        start = torch.randint(len(codes) - CONTEXT - 1, (BATCH, 1), generator=draws)
        seen = codes[start + torch.arange(CONTEXT + 1)]
        with amp.autocast():
            logits = model(seen[:, :-1]).float()
            summed = functional.cross_entropy(logits.flatten(0, 1), seen[:, 1:].flatten(), reduction="sum")
        losses.append(float(summed.detach()) / (BATCH * CONTEXT))
        amp.step(summed / TOKENS)
    return losses, amp


class MixedSAC(SAC):
    """SB3's SAC.train, each loss under MixedPrecision; distributions and targets are computed in float32.

    The actor's loss samples anew, so that forward and backward of each loss belong to one step.
    """

    def mixed(self, options: dict[str, Any]) -> None:
        assert self.ent_coef_optimizer is not None
        self.asked = [self.ent_coef_optimizer, self.critic.optimizer, self.actor.optimizer]
        self.amp = MixedPrecision(torch.nn.ModuleList([self.actor, self.critic]), self.asked, every=50, **options)
        self.losses: list[float] = []

    def sampled(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        actions, log_prob = self.actor.action_dist.log_prob_from_params(mean.float(), log_std.float())
        return actions, log_prob.reshape(-1, 1)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        alpha, critic, actor = self.asked
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size)
            with self.amp.autocast():
                log_prob = self.sampled(data.observations)[1]
            ent_coef = torch.exp(self.log_ent_coef.detach())
            self.amp.step(-(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean(), alpha)
            with self.amp.autocast():
                with torch.no_grad():
                    following, log = self.sampled(data.next_observations)
                    value = least(self.critic_target(data.next_observations, following))
                    target = data.rewards + (1 - data.dones) * self.gamma * (value - ent_coef * log)
                values = self.critic(data.observations, data.actions)
                loss = 0.5 * sum(functional.mse_loss(q.float() / WORST, target) for q in values)
            self.losses.append(float(loss.detach()) * WORST**2)
            self.amp.step(loss, critic)
            with self.amp.autocast():
                actions, log_prob = self.sampled(data.observations)
                value = least(self.critic(data.observations, actions))
            self.amp.step((ent_coef * log_prob - value).mean(), actor)
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)


def least(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Critics' answers in Pendulum's units, [n, 1] each -> the smallest, in the rewards'."""
    return torch.cat(values, 1).float().min(1, keepdim=True)[0] / WORST


def sac(seed: int, options: dict[str, Any]) -> Run:
    env = gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda r: r / WORST)
    policy = {"net_arch": [32, 32], "optimizer_kwargs": {"eps": 1e-15}}
    settings = {"learning_rate": 1e-3, "batch_size": 128, "ent_coef": f"auto_{1 / WORST}", "learning_starts": 100}
    model = MixedSAC("MlpPolicy", env, seed=seed, policy_kwargs=policy, device="cpu", **settings)
    model.mixed(options)
    model.learn(SAC_STEPS)
    return model.losses, model.amp


def smooth(curve: list[float], window: int) -> torch.Tensor:
    """Means of log2 of the loss over windows: curves of losses that fall by orders of magnitude."""
    return torch.tensor(curve).clamp(min=1e-30).log2().unfold(0, window, window).mean(1)


def distance(a: list[float], b: list[float], window: int) -> float:
    """Mean absolute difference of two smoothed curves, in powers of two."""
    return float((smooth(a, window) - smooth(b, window)).abs().mean())


def section(name: str, run: Callable[[int, dict[str, Any]], Run], window: int) -> None:
    """The table of one task, as markdown."""
    what = "from float32's curve | skipped | last scale | underflowed: outputs, weights"
    print(f"| {name} | loss at the end, seeds 0 to 2 | {what} |")
    print("|---|---|---|---|---|---|", flush=True)
    floats: list[list[float]] = []
    for row, options in ROWS.items():
        runs = [run(seed, options) for seed in SEEDS]
        floats = floats or [r[0] for r in runs]
        end = ", ".join(f"{statistics.mean(r[0][-len(r[0]) // LAST :]):.3g}" for r in runs)
        far = ", ".join(f"{distance(a[0], b, window):.3f}" for a, b in zip(runs, floats, strict=True))
        reports = [r[1].report() for r in runs]
        skipped, scale = sum(sum(r.skipped) for r in reports), reports[-1].scale
        print(f"| {row} | {end} | {far} | {skipped} | {scale:g} | {lost(reports[0])} |", flush=True)
    noise = [distance(floats[a], floats[b], window) for a, b in ((0, 1), (0, 2), (1, 2))]
    print(f"\nBetween float32's own seeds the curves are {', '.join(f'{v:.3f}' for v in noise)} apart.\n", flush=True)


def lost(report: Any) -> str:
    """Shares of the gradients that were asked whether they had underflowed, and had."""
    shares = []
    for kind in ("outputs", "weights"):
        seen = [getattr(layer, kind) for layer in report.layers]
        asked = sum(s.asked for s in seen)
        shares.append(f"{sum(s.underflowed or 0 for s in seen) / asked:.1%}" if asked else "-")
    return ", ".join(shares)


def main() -> None:
    section("transformer", transformer, STEPS // 16)
    section("SAC", sac, WINDOW)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
