"""Run a block over many batches, all of them stopping at each group of Linears, so that each is computed exactly once.

GPTQ wants the inputs of `o` after q, k and v were quantized, those of `gate` after `o` was: the usual loop runs the block
again for each. Here every batch has a thread of its own that waits before a group until the group's weights are final. One
thread runs at a time, in the order of the batches, so nothing depends on timing.
"""

import threading
from collections.abc import Callable

import torch
from torch import nn

from fewbit.llm import blocks


class _Batch:
    """One batch's run of the block, as a thread that is resumed and stops again at the next group."""

    def __init__(self, work: Callable[["_Batch"], torch.Tensor]):
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.input: torch.Tensor | None = None
        self.output: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[["_Batch"], torch.Tensor]) -> None:
        self._go.acquire()
        try:
            if not self._cancelled:
                self.output = work(self)
        except BaseException as e:  # handed to the caller of resume
            self._error = e
        self._stopped.release()

    def resume(self) -> None:
        """Until the next stop or the end."""
        self.input = None
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def stop(self, x: torch.Tensor) -> None:
        """Called inside the thread: hand over a group's input and wait."""
        self.input = x
        self._stopped.release()
        self._go.acquire()
        if self._cancelled:
            raise SystemExit

    def cancel(self) -> None:
        if self._thread.is_alive():
            self._cancelled = True
            self._go.release()
            self._thread.join()


def run(
    block: nn.Module,
    states: list[torch.Tensor],
    call: blocks.Call,
    groups: list[list[str]],
    at: Callable[[int, list[torch.Tensor]], None],
) -> list[torch.Tensor]:
    """Outputs of the block for each batch; at(g, inputs of every batch) may change the weights of group g before they run."""
    local = threading.local()
    first = {names[0]: g for g, names in enumerate(groups)}

    def note(name: str, x: torch.Tensor) -> None:
        if name in first:
            local.batch.stop(x)

    def work(x: torch.Tensor) -> Callable[[_Batch], torch.Tensor]:
        def one(batch: _Batch) -> torch.Tensor:
            local.batch = batch
            with torch.inference_mode():
                return blocks.run(block, x, call)

        return one

    batches = [_Batch(work(x)) for x in states]
    try:
        with blocks.inputs_watched(block, note):
            for g in range(len(groups)):
                for b in batches:
                    b.resume()
                inputs = [b.input for b in batches if b.input is not None]
                if len(inputs) != len(batches):
                    raise RuntimeError("a batch ran past a group")
                at(g, inputs)
            for b in batches:
                b.resume()
        return [b.output for b in batches if b.output is not None]
    finally:
        for b in batches:
            b.cancel()
