"""A torch.nn.Module as a source, through torch.onnx.export (dynamo), with a free batch dimension."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import fold, read
from fewbit.sources import Source, digest

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None


def load(module: Any, observation_shape: tuple[int, ...] | None = None) -> Source:
    """module: observation [batch, ...] -> action; observation_shape without the batch, or the first Linear's width."""
    if not isinstance(module, torch.nn.Module):
        raise FewbitError(f"a {type(module).__name__} is no source; give a path, a Stable-Baselines3 model or a torch.nn.Module")
    if observation_shape is None:
        first = next((m for m in module.modules() if isinstance(m, torch.nn.Linear)), None)
        if first is None:
            raise FewbitError("the module has no Linear layer to tell its input's size; pass observation_shape=(…)")
        observation_shape = (first.in_features,)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *observations: Any) -> Any:
            return self.inner(*observations)

    model = export(Wrapped(), {"observation": torch.zeros(2, *observation_shape)})
    state = b"".join(t.detach().cpu().numpy().tobytes() for t in module.state_dict().values())
    return Source(model, type(module).__name__, digest(state), {"observation": {"observation": list(observation_shape)}})


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
        cause = str(e.__cause__ or e)  # the exporter's own message is a page of advice; what it met is one line
        raise FewbitError(f"torch.onnx.export could not follow this network: {cause.strip().splitlines()[0][:200]}") from None
    finally:
        logging.getLogger("torch").setLevel(level)
    assert program is not None
    return fold.fold(read.prepare(program.model_proto))
