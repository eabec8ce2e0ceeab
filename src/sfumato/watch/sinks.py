"""Where the figures of an epoch go: a line of JSON, TensorBoard, a progress bar."""

import sys
from pathlib import Path
from typing import Any, Protocol

from sfumato.errors import ConfigError
from sfumato.files import append_line, json_line

__all__ = ["Bar", "Lines", "Sink", "TensorBoard", "told"]


class Sink(Protocol):
    """Takes one line of figures per epoch."""

    def write(self, line: dict[str, Any]) -> None:
        """Take the figures of an epoch; `epoch` counts from 0."""

    def close(self) -> None:
        """Finish."""


class Lines:
    """One line of JSON per epoch, appended and flushed. What is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Append the line."""
        append_line(self.path, json_line(line))

    def close(self) -> None:
        """Nothing is open between lines."""


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
        """Write the scalars and flush."""
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
                self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Bar:
    """A progress bar over the epochs on a terminal, plain lines elsewhere; both on standard error.

    Args:
        epochs: how many there will be, if that is known.
    """

    def __init__(self, epochs: int | None) -> None:
        self._epochs = epochs
        self._progress: Any = None
        if epochs is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task("train", total=epochs)
            self._progress.start()

    def write(self, line: dict[str, Any]) -> None:
        """Show what a person watches."""
        text = told(line, self._epochs)
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)  # noqa: T201
            return
        self._progress.console.print(text, highlight=False, markup=False)
        self._progress.update(self._task, completed=line["epoch"] + 1)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def told(line: dict[str, Any], epochs: int | None = None) -> str:
    """An epoch's figures in one line of text."""
    parts = [f"epoch {line['epoch'] + 1}" + (f"/{epochs}" if epochs is not None else "")]
    if line.get("loss") is not None:
        parts.append(f"loss {line['loss']:.3f}")
    if line.get("accuracy") is not None:
        parts.append(f"accuracy {line['accuracy']:.1%}")
    if line.get("error") is not None:
        parts.append(f"error {line['error']:.4g}")
    if line.get("information") is not None:
        parts.append(
            f"information {line['information']:.1f} ± {line['information_error']:.1f} nats held out, "
            f"{line['information_per_dimension']:.3f} per dimension"
        )
    if line.get("ridge_mse") is not None:
        parts.append(f"ridge attacker {line['ridge_mse']:.4f}, {line['ridge_share']:.0%} of a guess")
    return "  ".join(parts)
