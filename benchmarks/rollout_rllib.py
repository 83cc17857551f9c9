"""RLlib's environment runners, in a virtual environment with ray[rllib], torch and mujoco: lines of seconds in, rates out.

python benchmarks/rollout_rllib.py ENV ENVS WORKERS
"""

import sys
import time
import warnings

import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig


def main(env: str, count: int, workers: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ray.init(log_to_driver=False, include_dashboard=False, num_cpus=4)
    hidden = [256, 256] if env.startswith("HalfCheetah") else [64, 64]
    config = (
        PPOConfig()
        .environment(env)
        .env_runners(num_env_runners=workers if workers > 1 else 0, num_envs_per_env_runner=count)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=hidden))
    )
    group = config.build_algo().env_runner_group

    def sample(steps: int) -> None:
        if workers > 1:
            group.foreach_env_runner(lambda r: len(r.sample(num_timesteps=steps)), local_env_runner=False)
        else:
            group.local_env_runner.sample(num_timesteps=steps)

    piece = max(200, 20 * count)
    sample(piece)
    for line in sys.stdin:
        start, made = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < float(line):
            sample(piece)
            made += piece * workers
        print(f"rate {made / max(took, 1e-9)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
