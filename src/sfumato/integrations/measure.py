"""The figures of one epoch, from a few hundred samples, in a fraction of a second."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.linear import STRENGTHS, dual_path, primal_path
from sfumato.cem import CEM, Health
from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.mixture import held_out_information
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["FEWEST", "MOST", "EpochFigures", "Pair", "RidgeError", "ridge_error"]

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
        line: dict[str, float | None] = _utility(answers, self._held_out[1])
        line |= self._information(z_hat_new)
        if self.cem is None and self.model.channel.noise_std > 0:
            variances = z_hat.var(0, unbiased=False)
            for message in self._health.check(variances, self.model.channel.noise_std**2, torch.tensor([len(z_hat)])):
                warnings.warn(message, SfumatoWarning, stacklevel=3)
        attacked = ridge_error(z, self._train[0], z_new, self._held_out[0], seed=self.seed)
        return line | {"ridge_mse": attacked.mse, "ridge_share": attacked.share}

    def _outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        like = next(self.model.parameters(), x)
        out = self.model.outputs(x.to(like.device), generator(self.seed, "watch", device=like.device))
        return out.features.flatten(1).float(), out.released.flatten(1).float(), out.logits.float()

    def _information(self, z_hat: Tensor) -> dict[str, float | None]:
        noise = self.model.channel.noise
        if noise.singular:
            return {"information": None, "information_error": None, "information_per_dimension": None}
        y = self._held_out[1]
        labels = y if y is not None and _are_classes(y) else None
        found = held_out_information(z_hat, labels, noise, self.seed, quick=True)
        return {
            "information": found.value,
            "information_error": found.standard_error,
            "information_per_dimension": found.value / z_hat.shape[1],
        }


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
    if z.shape[1] <= len(learn_z):
        path = primal_path([(learn_z, learn_x)], strengths)
    else:
        path = dual_path(learn_z, learn_x, strengths)
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
