"""Features in units of a noise with a shape, in which the noise is white: what CEM needs to know no other noise."""

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cem.health import Health
from sfumato.cem.settings import flatten
from sfumato.mixture import Clusters
from sfumato.noise import Noise


class NoiseUnits(nn.Module):
    """What of `sfumato.CEM` knows the noise.

    Attributes:
        noise: Sigma_p.
        noise_std: root mean square of the coordinates' standard deviations.
    """

    noise: Noise
    noise_std: float
    mixture: Clusters
    _health: Health
    _pulls: Tensor

    @property
    def variance(self) -> float:
        """sigma^2."""
        return self.noise_std**2

    def follow(self, noise: Noise) -> None:
        """Measure features in units of a noise with a shape from now on, Sigma_p its covariance; the mixture restarts.

        With `Sigma_p = s^2 S`, s^2 the mean variance of a coordinate, features become `S^-1/2 z_hat` and the noise
        s^2 I. The information through the noise is the same, Theorem 2's bound too for full and tied covariances, and
        means and covariances are those of the new features. Nothing happens where the noise is the one of before.

        Raises:
            ConfigError: a direction has no noise.
        """
        if noise.digest == self.noise.digest:
            return
        noise.whiten(torch.zeros(1, noise.dim or 1))  # refuses directions without noise
        self.noise, self.noise_std = noise, noise.rms
        self.mixture.restart(self.variance)
        self._health.restart()

    def _flatten(self, features: Tensor) -> Tensor:
        flat = flatten(features, self.mixture.means.shape[1] if self.mixture.refreshes else None)
        return flat if self.noise.white else self.noise.rms * self.noise.whiten(flat.float())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.noise.store(destination, prefix + "noise")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "_pulls", torch.zeros_like(self._pulls))  # earlier versions did not count
        if (noise := Noise.stored(state_dict, prefix + "noise")) is not None:
            self.follow(noise)
        super()._load_from_state_dict(state_dict, prefix, *rest)
