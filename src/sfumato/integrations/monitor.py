"""Live figures for a loop of your own: one call per epoch, told to standard error, a file and TensorBoard."""

import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.files import append_line, json_line
from sfumato.integrations.measure import EpochFigures
from sfumato.split import SplitModel

__all__ = ["Monitor", "TensorBoard", "told"]


class Monitor(EpochFigures):
    """Measures a split model once per epoch and tells it to standard error, a file and TensorBoard.

        monitor = sfumato.Monitor(model, train=(x, y), held_out=(x_new, y_new), cem=cem, folder="runs/own", epochs=20)
        for epoch in range(20):
            ...
            monitor.epoch(loss=running_loss)

    A measurement takes a few forward passes of at most 512 samples, and mixtures and a system of equations of that
    size; it leaves mode, weights and random numbers alone.

    Args:
        model: the split model, as it is trained.
        folder: gets `metrics.jsonl`, one line per epoch, appended; what is not finite becomes null.
        tensorboard: also write event files to `folder/tensorboard`.
        epochs: how many there will be, for the lines on the screen.
        show: False prints nothing.
        **measured: `train`, `held_out`, `cem`, `most` and `seed` of `EpochFigures`.

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
        folder: str | Path | None = None,
        tensorboard: bool = False,
        epochs: int | None = None,
        show: bool = True,
        **measured: Any,
    ) -> None:
        super().__init__(model, **measured)
        self.history: list[dict[str, Any]] = []
        place = Path("runs/own" if folder is None else folder)
        self._lines = None if folder is None else place / "metrics.jsonl"
        self._board = TensorBoard(place / "tensorboard") if tensorboard else None
        self._epochs, self._show = epochs, show
        self._began = time.monotonic()

    def epoch(self, **figures: Any) -> dict[str, Any]:
        """Measure now, and tell it together with figures of the loop's own (numbers, also as tensors of one value).

        Returns:
            The line: `epoch` (from 0), the loop's figures, those of `measure`, with a plug-in `cem_fit`
            and `cem_competence` of the epoch (see `CEM.mixture_fit`), `seconds` since the last line.
        """
        now = time.monotonic()
        own = {name: _plain(name, value) for name, value in figures.items()}
        line = {"epoch": len(self.history), **own, **self.measure()}
        if (cem := self.cem) is not None:
            line |= {"cem_fit": cem.mixture_fit, "cem_competence": cem.competence}
            cem.begin_period()
        line["seconds"] = round(now - self._began, 3)
        self.history.append(line)
        if self._lines is not None:
            append_line(self._lines, json_line(line))
        if self._board is not None:
            self._board.write(line)
        if self._show:
            print(told(line, self._epochs), file=sys.stderr, flush=True)  # noqa: T201
        self._began = time.monotonic()
        return line

    def close(self) -> None:
        """Close the event files."""
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(name: str, value: Any) -> Any:
    """What JSON can hold of a figure, which a loop has as a tensor or a number of numpy's as often as not."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if not isinstance(value, bool | int | float | str | None):
        raise ConfigError(f"the figure {name!r} is a {type(value).__name__}; give one number")
    return value


class TensorBoard:
    """Every number of a line as a scalar, with the epoch as its step.

    Args:
        folder: of the event files.

    Raises:
        ConfigError: the package `tensorboard` is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"writing for TensorBoard needs it ({error}): pip install 'sfumato[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def write(self, line: dict[str, Any]) -> None:
        """Write the scalars of an epoch's line and flush."""
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
                self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def told(line: dict[str, Any], epochs: int | None = None) -> str:
    """An epoch's figures in one line of text; `epoch` counts from 0.

    >>> told({"epoch": 0, "loss": 1.5, "accuracy": 0.25}, 20)
    'epoch 1/20  loss 1.500  accuracy 25.0%'
    """
    shown = (
        ("loss", "loss {loss:.3f}"),
        ("accuracy", "accuracy {accuracy:.1%}"),
        ("error", "error {error:.4g}"),
        (
            "information",
            "information {information:.1f} ± {information_error:.1f} nats held out, "
            "{information_per_dimension:.3f} per dimension",
        ),
        ("ridge_mse", "ridge attacker {ridge_mse:.4f}, {ridge_share:.0%} of a guess"),
    )
    parts = [f"epoch {line['epoch'] + 1}" + (f"/{epochs}" if epochs is not None else "")]
    return "  ".join(parts + [text.format(**line) for name, text in shown if line.get(name) is not None])
