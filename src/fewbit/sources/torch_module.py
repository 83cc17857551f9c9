"""A torch.nn.Module as a source, through torch.onnx.export (dynamo), with a free batch dimension."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.graph import fold, read
from fewbit.sources import Declared, Source, digest, original

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None


def load(
    module: Any,
    observation_shape: tuple[int, ...] | None = None,
    state: Declared | None = None,
    likely: Sequence[tuple[int, ...]] = (),
) -> Source:
    """module: observation [batch, ...] -> action; observation_shape without the batch, or the first Linear's width where that is
    among `likely` or those are none.

    One that remembers is module(observation, *states) -> (action, *next states), each [batch, ...], state the names of both and
    what an episode starts with, without the batch, in that order: {"h": ("h_next", zeros(16))}. Written with sources.recurrent's
    lstm and gru it is quantized as a TorchScript or RecurrentPPO policy is.
    """
    if not isinstance(module, torch.nn.Module):
        raise FewbitError(f"a {type(module).__name__} is no source; give a path, a Stable-Baselines3 model or a torch.nn.Module")
    if observation_shape is None:
        first = next(((m.in_features,) for m in module.modules() if isinstance(m, torch.nn.Linear)), None)
        observation_shape = first if not likely or first in likely else likely[0]
    if observation_shape is None:
        raise FewbitError("the module has no Linear layer to tell its input's size; pass observation_shape=(…)")
    held = _held(state or {})

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *observations: Any) -> Any:
            return self.inner(*observations)

    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    examples = {"observation": torch.zeros(2, *observation_shape, dtype=kind)}
    examples |= {name: torch.tensor(start, dtype=kind).expand(2, *start.shape).clone() for name, _, start in held}
    outputs = ["action", *(output for _, output, _ in held)]
    model = export(Wrapped(), examples, outputs)
    contract: dict[str, Any] = {"observation": {"observation": list(observation_shape)}}
    records = tuple({"input": i, "output": o} | ({"initial": v.tolist()} if v.any() else {}) for i, o, v in held)
    if held:
        contract["recurrent_state"] = [name for name, _, _ in held]
    weights = b"".join(t.detach().cpu().numpy().tobytes() for t in module.state_dict().values())
    run = original.of_module(module, examples, outputs)
    return Source(model, type(module).__name__, digest(weights), contract, records, run)


def _held(state: Declared) -> list[tuple[str, str, np.ndarray]]:
    """(input, output, what an episode starts with) of each."""
    found = []
    for name, (output, initial) in state.items():
        start = None if initial is None else np.asarray(initial, np.float32)
        if start is None or not start.size or not np.isfinite(start).all():
            raise FewbitError(f"state {name}: give what an episode starts with, an array of finite numbers without the batch")
        found.append((name, output, start))
    return found


def export(module: torch.nn.Module, examples: dict[str, torch.Tensor], outputs: Sequence[str] = ("action",)) -> ir.Model:
    """The straightened float graph of module(*examples.values()); input names are the keys."""
    module.eval()
    batch = torch.export.Dim("batch", min=1)
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: batch} for _ in examples),),
                dynamo=True,
                verbose=False,
            )
    except Exception as e:
        cause = e.__cause__ or e  # the exporter's own message is a page of advice; what it met is one line
        raise FewbitError(f"torch.onnx.export could not follow this network: {first_line(cause)}") from None
    finally:
        logging.getLogger("torch").setLevel(level)
    assert program is not None
    return fold.fold(read.prepare(program.model_proto))
