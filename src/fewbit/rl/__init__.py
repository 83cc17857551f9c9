"""Policies in their environments: episodes, returns, what a return proves; rollouts; and training that ends in few bits."""

import importlib
from typing import Any

from fewbit.errors import extras

_WHERE = {
    "Live": "fewbit.rl.live",
    "QuantizedTraining": "fewbit.rl.quantized_training",
    "accelerate": "fewbit.rl.acceleration",
    "rollout": "fewbit.rl.rollouts",
}
_MODULES = {"correct": "fewbit.rl.correct"}
__all__ = ["Live", "QuantizedTraining", "accelerate", "correct", "rollout"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: measuring a policy needs neither torch nor Stable-Baselines3."""
    if name in _MODULES:
        with extras():
            return importlib.import_module(_MODULES[name])
    if name not in _WHERE:
        raise AttributeError(f"module fewbit.rl has no attribute {name}")
    with extras():
        return getattr(importlib.import_module(_WHERE[name]), name)
