"""Live figures for a loop of your own: one call per epoch, measured on a few hundred samples in a fraction of a second,
told to standard error, a file and TensorBoard.
"""

import math
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sfumato.attacks.linear import STRENGTHS, dual_path, primal_path
from sfumato.cem import CEM, Health
from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.files import append_line, json_line
from sfumato.mixture import held_out_information
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["FEWEST", "MOST", "EpochFigures", "Monitor", "RidgeError", "TensorBoard", "ridge_error", "told"]

Pair = tuple[Tensor, Tensor | None]
"""Inputs (N, ...) and labels (N,) or (N, m), or None."""

_COLUMNS = 768
_CHOOSE = 5  # every fifth sample of the attacker's chooses the regularisation
FEWEST = 2 * _CHOOSE
"""Samples of each kind below which nothing can be watched."""
MOST = 512
"""Samples of each kind that are used if nobody says otherwise."""
_CLUSTERS = 10
_PER_CLUSTER = 20


class RidgeError(NamedTuple):
    """What a linear attacker reconstructs.

    Attributes:
        mse: mean squared error per value of the input, on inputs that the attacker never saw.
        share: `mse` over the error of answering with the attacker's mean input; 1 means that nothing is reconstructed.
    """

    mse: float
    share: float


class EpochFigures:
    """Measures a split model on samples that it was trained on and on samples it was not.

    The attacker is linear (ridge regression in closed form, `ridge_error`), learns from pairs of training inputs and
    what left the device for them, and reconstructs held-out inputs. Its error is an upper bound on what a better
    attacker reaches: a large one proves nothing, a small one that the model leaks.

    The information is an upper bound, measured on the held-out samples' features (`held_out_information`, quick).
    Without a plug-in the features' health is watched too: collapse and escape by scale are warned of with a remedy. A
    plug-in does that itself when it is refreshed.

    The same model gives the same figures; no global random number is drawn.

    Args:
        model: the split model.
        train: (x, y), inputs (N, ...) and labels (N,) or (N, m); labels may be None.
        held_out: likewise, of samples that are not learned from.
        cem: the plug-in of the training, if there is one.
        most: so many samples of each are used at most.
        seed: of the choice of samples and of the noise.

    Raises:
        ConfigError: too few samples, or something else than a split model and pairs of tensors.
    """

    def __init__(
        self, model: SplitModel, train: Pair, held_out: Pair, *, cem: CEM | None = None, most: int = MOST, seed: int = 0
    ) -> None:
        if not isinstance(model, SplitModel):
            raise ConfigError(f"the model to watch is a {type(model).__name__}; give the sfumato.SplitModel itself")
        self.model = model
        self.cem = cem
        self.seed = seed
        self._train = _some(train, most, seed, "train")
        self._held_out = _some(held_out, most, seed, "held_out")
        if min(len(self._train[0]), len(self._held_out[0])) < FEWEST:
            raise ConfigError(f"at least {FEWEST} samples to learn from and held out are needed to watch a training")
        labels = self._train[1]
        classes = int(labels.max()) + 1 if labels is not None and _are_classes(labels) else None
        self._clusters = max(1, min(_CLUSTERS, len(self._train[0]) // _PER_CLUSTER))
        self._health = Health(
            math.log(max(2, classes or self._clusters)),
            what="classes" if classes is not None else "clusters",
            remedy="lower the noise, or the weight of what pulls the features together",
        )

    def measure(self) -> dict[str, float | None]:
        """The figures of now.

        Returns:
            `accuracy` (share of right classes, or of right labels) or `error` (mean squared error of the answers), on
            held-out samples through the wire, where there are labels; `information` (nats, held out; None without
            noise, where it is infinite), its standard error `information_error`, `information_per_dimension`,
            `ridge_mse` and `ridge_share`.
        """
        with evaluating(self.model):
            z_hat, z, _ = self._outputs(self._train[0])
            z_hat_new, z_new, answers = self._outputs(self._held_out[0])
        labels, noise = self._held_out[1], self.model.channel.noise
        line: dict[str, float | None] = _utility(answers, labels)
        line |= dict.fromkeys(("information", "information_error", "information_per_dimension"))
        if not noise.singular:
            classes = labels if labels is not None and _are_classes(labels) else None
            found = held_out_information(z_hat_new, classes, noise, self.seed, quick=True)
            line["information"], line["information_error"] = found.value, found.standard_error
            line["information_per_dimension"] = found.value / z_hat_new.shape[1]
        if self.cem is None and noise.rms > 0:
            for message in self._health.check(z_hat.var(0, unbiased=False), noise.rms**2, torch.tensor([len(z_hat)])):
                warnings.warn(message, SfumatoWarning, stacklevel=3)
        attacked = ridge_error(z, self._train[0], z_new, self._held_out[0], seed=self.seed)
        return line | {"ridge_mse": attacked.mse, "ridge_share": attacked.share}

    def _outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        like = next(self.model.parameters(), x)
        out = self.model.outputs(x.to(like.device), generator(self.seed, "watch", device=like.device))
        return out.features.flatten(1).float(), out.released.flatten(1).float(), out.logits.float()


@torch.no_grad()
def ridge_error(z: Tensor, x: Tensor, z_new: Tensor, x_new: Tensor, *, seed: int = 0) -> RidgeError:
    """Error of ridge regression from released features to inputs, on inputs that it did not learn from.

        x_hat = m_x + (z - m_z) W,    W = (Z^T Z + a s I)^-1 Z^T X,    s = trace(Z^T Z) / D

    with the relative regularisation a that is best on every fifth of the attacker's samples. Answers are clipped to
    the range of the attacker's inputs. Of inputs with more than 768 values so many are reconstructed, at random places:
    the mean over them is an unbiased estimate of that over all.

    Args:
        z: (n, ...) what left the device for the attacker's inputs.
        x: (n, ...) the attacker's inputs.
        z_new: (m, ...) what left the device for other inputs.
        x_new: (m, ...) those.
        seed: of the choice of values.
    """
    x, x_new = x.flatten(1).to(z.device, torch.float32), x_new.flatten(1).to(z.device, torch.float32)
    z, z_new = z.flatten(1), z_new.flatten(1)
    if x.shape[1] > _COLUMNS:
        chosen = torch.randperm(x.shape[1], generator=generator(seed, "columns"))[:_COLUMNS].to(x.device)
        x, x_new = x[:, chosen], x_new[:, chosen]
    judge = torch.arange(len(z), device=z.device) % _CHOOSE == 0
    low, high = x.min(), x.max()
    learn_z, learn_x = z[~judge], x[~judge]
    strengths = STRENGTHS[::2]
    primal = z.shape[1] <= len(learn_z)
    path = primal_path([(learn_z, learn_x)], strengths) if primal else dual_path(learn_z, learn_x, strengths)
    best, mse = math.inf, math.inf
    for linear in path:
        error = float((linear(z[judge]).clamp(low, high) - x[judge]).square().mean())
        if error < best:
            best, mse = error, float((linear(z_new).clamp(low, high) - x_new).square().mean())
    guess = float((learn_x.mean(0) - x_new).square().mean())
    return RidgeError(mse, mse / guess if guess > 0 else math.nan)


def _utility(answers: Tensor, labels: Tensor | None) -> dict[str, Any]:
    if labels is None:
        return {}
    labels = labels.to(answers.device)
    if _are_classes(labels):
        return {"accuracy": float((answers.argmax(1) == labels).double().mean())}
    if labels.dtype == torch.bool or bool(((labels == 0) | (labels == 1)).all()):
        return {"accuracy": float(((answers > 0) == labels.bool().reshape(answers.shape)).double().mean())}
    return {"error": float((answers - labels.reshape(answers.shape)).square().mean())}


def _are_classes(labels: Tensor) -> bool:
    return labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool


def _some(pair: Pair, most: int, seed: int, purpose: str) -> Pair:
    if not isinstance(pair, tuple | list) or [isinstance(part, Tensor | None) for part in pair] != [True, True]:
        raise ConfigError(
            f"{purpose} is a {type(pair).__name__}; give a pair of tensors, (inputs, labels) or (inputs, None)"
        )
    x, y = pair
    if y is not None and len(y) != len(x):
        raise ConfigError(f"{len(x)} inputs and {len(y)} labels were given to watch; give one label for each input")
    if len(x) <= most:
        return x, y
    chosen = torch.randperm(len(x), generator=generator(seed, "watch", purpose))[:most].to(x.device)
    return x[chosen], None if y is None else y[chosen.to(y.device)]


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
    """Every number of a line as a scalar, with the epoch as its step, in event files in a folder."""

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
