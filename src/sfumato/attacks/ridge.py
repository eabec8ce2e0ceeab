"""Linear inversion in closed form: the baseline that says, within seconds, whether a trained attack has converged."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Fit, Job, Observer, hold_out
from sfumato.attacks.linear import STRENGTHS, Linear, best_linear, dual_path, learned_from, part_of
from sfumato.attacks.settings import AttackConfig
from sfumato.attacks.whitening import whiten

__all__ = ["Reading", "RidgeAttack", "RidgeConfig", "rank_activations"]


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(AttackConfig):
    """Settings of the linear attack.

    Attributes:
        draws: Releases of every image to learn from. The noise is then in the moments and not in the
            coefficients.
        size: Largest system of equations. With more features and more rows than this, rows are left out.
    """

    draws: int = 4
    size: int = 4096


class RidgeAttack(Attack):
    """Ridge regression from what leaves the device to the pixels.

        x_hat = m_x + (z - m_z) W,    W = (Z^T Z + a s I)^-1 Z^T X,    s = trace(Z^T Z) / D

    with the rows of Z (whitened) and X centred at their means m and a the relative regularisation with the smallest
    error on held-out images, down to machine precision. Solved in float64 through singular values, or, with many rows,
    through an eigendecomposition, D x D or n x n. Values outside [0, 1] are clipped. It is the best attack of all where
    feature and image are jointly Gaussian, and its error is an upper bound on what any converged attack should reach.
    """

    name: ClassVar[str] = "ridge"
    settings: ClassVar[type[Any]] = RidgeConfig

    def __init__(self, config: RidgeConfig | None = None) -> None:
        super().__init__(config)
        self.linear: Linear | None = None
        self.strength = float("nan")
        self._shape: tuple[int, ...] = ()

    def learn(self, observer: Observer, job: Job) -> None:
        """Solve. Takes seconds, so there is no state to resume from."""
        cfg: RidgeConfig = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self.linear, error, self.strength = best_linear(
            observer, learn, judge, draws=cfg.draws, size=cfg.size, seed=cfg.seed
        )
        self._shape = observer.image_shape
        used = len(judge) + learned_from(observer, len(learn), cfg.size)
        reason = f"closed form, regularisation {self.strength:g} chosen on {len(judge)} images"
        self.outcome = Fit(True, reason + part_of(used, observer), error)
        job.tell(1, 1, mse=error, held_out_mse=error)

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]."""
        assert self.linear is not None
        return self.linear(seen).clamp(0, 1).reshape(len(seen), *self._shape)

    def tensors(self) -> dict[str, Tensor]:
        """The factors of the linear map."""
        assert self.linear is not None
        return self.linear._asdict()


class Reading(NamedTuple):
    """How much of an image a linear attack reads from one activation of the cloud.

    Attributes:
        name: of the activation, for `Observer.inside`.
        dimension: of it.
        mse: on held-out images, from few images to learn from: a rank, and no figure for a report.
    """

    name: str
    dimension: int
    mse: float


_TRIED = 384  # images
_VALUES = 2**24  # of all activations that are held at once
_LONGEST = 2**16  # values of an activation that is tried


def rank_activations(observer: Observer) -> list[Reading]:
    """Every activation of the cloud by what it gives away, the one that gives most first, in one pass over few images.

    A cloud that undoes a scrambling computes the image on the way. Attack the first few in full, and all together:
    `RidgeAttack().fit(observer.inside(name))`.

    >>> from torch import nn
    >>> from sfumato import Channel, SplitModel
    >>> from sfumato.data import ImageSet
    >>> pixels = torch.randint(0, 256, (200, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    >>> model = SplitModel(nn.Flatten(), Channel(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    >>> seen = Observer(model, ImageSet(pixels, torch.zeros(200, dtype=torch.long), ("any",)))
    >>> print(*(reading.dimension for reading in rank_activations(seen)))
    4 1
    """
    count = min(len(observer), _TRIED)
    judge, learn = hold_out(count, 0.25, 0)
    x = observer.pixels(torch.arange(count)).flatten(1)
    known = [one for one in observer.activations() if one.dimension <= _LONGEST]
    found = []
    while known:
        names: list[str] = []
        room = _VALUES
        while known and (not names or known[0].dimension * count <= room):
            room -= known[0].dimension * count
            names.append(known.pop(0).name)
        batches = [observer.activated(part, names) for part in torch.arange(count).split(32)]
        for name in names:
            rows = torch.cat([batch.pop(name) for batch in batches])
            rows = whiten(rows, None, None)(rows)
            paths = dual_path(rows[learn], x[learn], STRENGTHS)
            errors = [float((one(rows[judge]).clamp(0, 1) - x[judge]).square().mean()) for one in paths]
            found.append(Reading(name, rows.shape[1], min(errors)))
    return sorted(found, key=lambda one: one.mse)
