"""Train the demo's policy: SAC on HalfCheetah-v5, one core, about 35 minutes; keep the actor alone (under 400 KB).

    python demo/train.py [--minutes 35] [--out demo/halfcheetah.zip]

The zip is an ordinary Stable-Baselines3 archive, less the critics, the optimizers and everything pickled. The best of the
checkpoints of the last half of the training (mean return of 5 deterministic episodes, seeds 1000-1004) is kept.
"""

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import gymnasium
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

ENV = "HalfCheetah-v5"
CHECK_EVERY = 20_000


def save_actor(model: sb3.SAC, path: Path) -> None:
    """An archive with the actor's tensors and the spaces as text: everything that an exporter needs, nothing that runs."""
    weights = io.BytesIO()
    actor = {k: v.clone() for k, v in model.policy.state_dict().items() if k.startswith("actor.")}
    torch.save(actor, weights)
    space = lambda s: {"_shape": list(s.shape), "dtype": str(s.dtype), "low": str(s.low), "high": str(s.high)}  # noqa: E731
    data = {
        "policy_class": {"__module__": "stable_baselines3.sac.policies", ":type:": "<class 'abc.ABCMeta'>"},
        "policy_kwargs": {"use_sde": False},
        "observation_space": {":type:": "<class 'gymnasium.spaces.box.Box'>", **space(model.observation_space)},
        "action_space": {":type:": "<class 'gymnasium.spaces.box.Box'>", **space(model.action_space)},
        "use_sde": False,
        "num_timesteps": model.num_timesteps,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("data", json.dumps(data, indent=1))
        z.writestr("policy.pth", weights.getvalue())
        z.writestr("_stable_baselines3_version", sb3.__version__)


class KeepBest(BaseCallback):
    def __init__(self, out: Path, minutes: float):
        super().__init__()
        self.out, self.start, self.limit, self.best = out, time.monotonic(), minutes * 60, -float("inf")

    def _on_step(self) -> bool:
        elapsed = time.monotonic() - self.start
        if self.num_timesteps % CHECK_EVERY == 0:
            env = gymnasium.make(ENV)
            env.reset(seed=1000)
            mean, _ = evaluate_policy(self.model, env, n_eval_episodes=5, warn=False)
            print(f"{elapsed:6.0f} s  {self.num_timesteps:7d} steps  return {mean:7.0f}", flush=True)
            if mean > self.best and (elapsed > self.limit / 2 or not self.out.exists()):
                self.best = mean
                save_actor(self.model, self.out)
        return elapsed < self.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "halfcheetah.zip")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = sb3.SAC("MlpPolicy", ENV, learning_starts=5000, batch_size=256, seed=0, verbose=0)
    model.learn(10**9, callback=KeepBest(options.out, options.minutes))


if __name__ == "__main__":
    main()
