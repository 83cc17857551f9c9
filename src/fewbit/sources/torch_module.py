"""A torch.nn.Module as a source, through torch.onnx.export (dynamo), with a free batch dimension."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.graph import calibrate, fold, read
from fewbit.sources import Declared, Source, digest, original

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

ROWS = 3  # of the comparison with the module
CLOSE = 1e-3  # of the actions' range, or of one


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
    wrapped = Wrapped()
    model = export(wrapped, examples, outputs)
    _check(model, wrapped, examples)
    contract: dict[str, Any] = {"observation": {"observation": list(observation_shape)}}
    records = tuple({"input": i, "output": o} | ({"initial": v.tolist()} if v.any() else {}) for i, o, v in held)
    if held:
        contract["recurrent_state"] = [name for name, _, _ in held]
    weights = b"".join(t.detach().cpu().numpy().tobytes() for t in module.state_dict().values())
    run = original.of_module(wrapped, examples, outputs)
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


def export(
    module: torch.nn.Module, examples: dict[str, torch.Tensor], outputs: Sequence[str] = ("action",), fixed: bool = False
) -> ir.Model:
    """The straightened float graph of module(*examples.values()) as it acts, not as it trains; input names are the keys.

    fixed: the module holds the examples' batch itself, and graph/batch is to free it.
    """
    free = (tuple({0: torch.export.Dim("batch", min=1)} for _ in examples),)
    try:
        with original.acting(module), quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                input_names=list(examples),
                output_names=list(outputs),
                dynamic_shapes=None if fixed else free,
                dynamo=True,
                verbose=False,
            )
    except Exception as e:
        cause = e.__cause__ or e  # the exporter's own message is a page of advice; what it met is one line
        raise FewbitError(f"torch.onnx.export could not follow this network: {first_line(cause)}") from None
    assert program is not None
    return fold.fold(read.prepare(program.model_proto))


def _check(model: ir.Model, module: torch.nn.Module, examples: dict[str, torch.Tensor]) -> None:
    """Refuse a graph whose rows are not what the module makes of each observation by itself."""
    generator = torch.Generator().manual_seed(0)
    given = {k: torch.randn(ROWS, *v.shape[1:], generator=generator) for k, v in examples.items()}
    with original.acting(module), quiet(), torch.no_grad():
        try:
            rows = [module(*(v[k : k + 1].to(examples[n].dtype) for n, v in given.items())) for k in range(ROWS)]
        except Exception:  # it takes no batch of one: there is nothing to compare with
            return
    while not isinstance(rows[0], torch.Tensor):
        rows = [next(iter(r.values() if isinstance(r, dict) else r)) for r in rows]
    want = torch.cat([r.reshape(1, -1) for r in rows]).double().cpu().numpy()
    action = calibrate.run(calibrate.session(ir.to_proto(model)), None, {k: v.numpy() for k, v in given.items()})[0]
    if action.size != want.size or not np.allclose(action.reshape(want.shape), want, rtol=0, atol=CLOSE * max(1.0, np.ptp(want))):
        raise FewbitError(
            "its actions are not those of single observations: it draws random numbers or mixes the rows of a batch; "
            "give a module that is a function of each observation"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No page of warnings, progress, or the graph at which an export stopped: what went wrong is one line."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
