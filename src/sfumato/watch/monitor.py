"""Live figures for a loop of your own: one call per epoch."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from sfumato.cem import CEM
from sfumato.split import SplitModel
from sfumato.watch.measure import Watcher
from sfumato.watch.sinks import Bar, Lines, Sink, TensorBoard

__all__ = ["Monitor"]


class Monitor:
    """Measures a split model once per epoch and tells it to a progress bar, a file and TensorBoard.

        monitor = sfumato.Monitor(model, train=(x, y), held_out=(x_new, y_new), cem=cem, folder="runs/own", epochs=20)
        for epoch in range(20):
            ...
            monitor.epoch(loss=running_loss)

    What is measured, and the warnings, are those of `sfumato.watch.Watcher`: accuracy on held-out samples through the
    wire, held-out information in nats with its standard error, and the held-out error of a linear attacker. A
    measurement takes a few forward passes of at most 512 samples, and mixtures and a system of equations of that size;
    it leaves mode, weights and random numbers alone.

    Args:
        model: the split model, as it is trained.
        train: (x, y) to learn from; y may be None.
        held_out: (x, y) that is not learned from.
        cem: the plug-in, if the loop has one.
        folder: gets `metrics.jsonl`, one line per epoch, appended.
        tensorboard: also write event files to `folder/tensorboard`.
        epochs: length of the progress bar.
        show: False prints nothing.
        most: samples that are used at most.
        seed: of the choice of samples and of the noise.

    Raises:
        ConfigError: too few samples, or TensorBoard is wanted and missing.

    >>> import torch, sfumato
    >>> x = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    >>> model = sfumato.SplitModel(torch.nn.Sigmoid(), sfumato.Channel(noise_std=0.1), torch.nn.Flatten())
    >>> monitor = sfumato.Monitor(model, train=(x[:32], None), held_out=(x[32:], None), show=False)
    >>> monitor.epoch(loss=1.0)["loss"]
    1.0
    """

    def __init__(
        self,
        model: SplitModel,
        *,
        train: tuple[Tensor, Tensor | None],
        held_out: tuple[Tensor, Tensor | None],
        cem: CEM | None = None,
        folder: str | Path | None = None,
        tensorboard: bool = False,
        epochs: int | None = None,
        show: bool = True,
        most: int = 512,
        seed: int = 0,
    ) -> None:
        self.watcher = Watcher(model, train, held_out, cem=cem, most=most, seed=seed)
        self.history: list[dict[str, Any]] = []
        self.sinks: list[Sink] = []
        place = Path("runs/own" if folder is None else folder)
        if folder is not None:
            self.sinks.append(Lines(place / "metrics.jsonl"))
        if tensorboard:
            self.sinks.append(TensorBoard(place / "tensorboard"))
        if show:
            self.sinks.append(Bar(epochs))
        self._began = time.monotonic()

    def epoch(self, **figures: Any) -> dict[str, Any]:
        """Measure now, and tell it together with figures of the loop's own (plain numbers).

        Returns:
            The line: `epoch` (from 0), the loop's figures, those of `Watcher.measure`, with a plug-in `cem_fit` and
            `cem_competence` of the epoch (see `CEM.mixture_fit`), `seconds` since the last line.
        """
        now = time.monotonic()
        line = {"epoch": len(self.history), **figures, **self.watcher.measure()}
        if (cem := self.watcher.cem) is not None:
            line |= {"cem_fit": cem.mixture_fit, "cem_competence": cem.competence}
            cem.begin_period()
        line["seconds"] = round(now - self._began, 3)
        self.history.append(line)
        for sink in self.sinks:
            sink.write(line)
        self._began = time.monotonic()
        return line

    def close(self) -> None:
        """Close files and take the bar away."""
        for sink in self.sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
