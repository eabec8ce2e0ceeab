"""A piece of work that is the same in every step, done once and then replayed by the GPU without Python."""

import warnings
from collections.abc import Callable, Sequence

import torch

from sfumato.errors import SfumatoWarning, first_line

__all__ = ["Replay"]

_WARM_UP = 3  # libraries choose their algorithms and optimizers make their state in the first steps


class Replay:
    """Calls `work()`, or replays a CUDA graph of it.

    A graph repeats the kernels of the step that was captured, with the numbers and addresses it had then. `work` must
    therefore read whatever changes from step to step (indices, rates, weights) from tensors that stay where they are,
    leave its results in such tensors, draw from `generators` alone, and never wait for the device. The first three
    calls, those after `forget`, and all calls on a CPU run `work` itself: they are steps like any other.

    Where the capture fails, work goes on without it, and a warning says so once.

    Args:
        work: one step.
        device: where it computes.
        generators: all sources of randomness in it; they may be seeded anew before every call.
        enabled: False never captures.

    Attributes:
        replays: how many calls were replayed.
    """

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
        *,
        enabled: bool = True,
    ) -> None:
        self._work = work
        self._device = device
        self._generators = tuple(generators)
        self._enabled = enabled and device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = 0
        self.replays = 0

    def __call__(self) -> None:
        """One step."""
        if self._graph is not None:
            self._graph.replay()
            self.replays += 1
            return
        if not self._enabled:
            self._work()
            return
        if self._warm < _WARM_UP:
            self._warm += 1
            self._on_a_side_stream()
            return
        if self._capture():
            self._graph.replay()  # type: ignore[attr-defined]
            self.replays += 1
        else:
            self._work()

    def forget(self) -> None:
        """Tensors have moved, or parameters were replaced: the next calls run `work` and capture it anew."""
        self._graph = None
        self._warm = 0

    def _on_a_side_stream(self) -> None:
        """Warm up where the capture will happen, so that what autograd remembers about streams fits it."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._work()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def _capture(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            for generator in self._generators:
                graph.register_generator_state(generator)
            # Other threads may train on other streams meanwhile; only what this one does must be capturable.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._work()
        except torch.OutOfMemoryError:
            reason = "there is no memory left for it"
        except RuntimeError as error:
            reason = first_line(error)
        else:
            self._graph = graph
            return True
        self._enabled = False
        torch.cuda.synchronize(self._device)
        warnings.warn(
            f"a step cannot be captured as a CUDA graph ({reason}); going on without, which is slower",
            SfumatoWarning,
            stacklevel=3,
        )
        return False
