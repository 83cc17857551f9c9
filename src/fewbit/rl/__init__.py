"""Policies in their environments: episodes, returns, what a return proves; and training that ends in few bits."""

from typing import Any

__all__ = ["QuantizedTraining"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: measuring a policy needs neither torch nor Stable-Baselines3."""
    if name not in __all__:
        raise AttributeError(f"module fewbit.rl has no attribute {name}")
    from fewbit.rl.quantized_training import QuantizedTraining

    return QuantizedTraining
