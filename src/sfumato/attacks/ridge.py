"""Linear inversion in closed form: the baseline that says, within seconds, whether a trained attack has converged."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Fit, Observer, Progress, hold_out
from sfumato.attacks.linear import Linear, best_linear, learned_from, part_of
from sfumato.attacks.settings import check_attack
from sfumato.errors import NotFittedError

__all__ = ["RidgeAttack", "RidgeConfig"]


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of the linear attack.

    Attributes:
        draws: Releases of every image to learn from. The noise is then in the moments and not in the
            coefficients.
        size: Largest system of equations. With more features and more rows than this, rows are left out.
        hold_out: Fraction of the attacker's images that only choose the regularisation.
        seed: Random seed of the noise and of what is held out.
    """

    draws: int = 4
    size: int = 4096
    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_attack(self)


class RidgeAttack(Attack):
    """Ridge regression from what leaves the device to the pixels.

        x_hat = m_x + (z - m_z) W,    W = (Z^T Z + a s I)^-1 Z^T X,    s = trace(Z^T Z) / D

    with the rows of Z and X centred at their means m and a the relative regularisation with the smallest error on
    held-out images. Solved in float64 through an eigendecomposition, D x D or, with fewer rows than features, in the
    dual form n x n. Values outside [0, 1] are clipped. It is the best attack of all where feature and image are jointly
    Gaussian, and its error is an upper bound on what any converged attack should reach.
    """

    name: ClassVar[str] = "ridge"

    def __init__(self, config: RidgeConfig | None = None) -> None:
        super().__init__(config or RidgeConfig())
        self.linear: Linear | None = None
        self.strength = float("nan")
        self._shape: tuple[int, ...] = ()

    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Self:
        """Solve. Takes seconds, so there is no state to resume from."""
        cfg: RidgeConfig = self.config
        began = time.monotonic()
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        self.linear, error, strength = best_linear(
            observer, learn, judge, draws=cfg.draws, size=cfg.size, seed=cfg.seed
        )
        self.strength, self._shape = strength, observer.image_shape
        self.seconds = time.monotonic() - began
        used = len(judge) + learned_from(observer, len(learn), cfg.size)
        reason = f"closed form, regularisation {strength:g} chosen on {len(judge)} images" + part_of(used, observer)
        self.outcome = Fit(True, reason, error)
        if progress is not None:
            progress(1, 1, {"mse": error, "held_out_mse": error})
        return self

    @torch.no_grad()
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) in [0, 1]."""
        if self.linear is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return self.linear(z.float()).clamp(0, 1).reshape(len(z), *self._shape)

    def weights(self) -> dict[str, Tensor]:
        """Slope and offset of the linear map."""
        if self.linear is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return {"slope": self.linear.slope, "offset": self.linear.offset}
