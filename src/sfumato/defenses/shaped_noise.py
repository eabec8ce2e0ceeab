"""Noise with a shape, measured while the network trains: `noise(0.15, shape=fisher)`."""

from typing import ClassVar, Literal

from sfumato.defenses.base import Defense, Epoch, Site
from sfumato.defenses.shapes import FULL, propose, scores
from sfumato.distributed import Ranks
from sfumato.errors import ConfigError
from sfumato.seeds import generator

NoiseShape = Literal["white", "diagonal", "fisher", "least", "low"]

_MEASURED = 512  # features at which the cloud's sensitivity is measured


class ShapedNoise(Defense):
    """Gives the channel's noise a shape of `sfumato.defenses.shapes.propose` after a third of the training.

    Until then the noise is white, since the sensitivity of a fresh cloud says nothing. Afterwards it stays as it is, so
    that both halves learn with the noise that they will meet. Its mean variance over the coordinates is std^2
    throughout.

    Args:
        std: root mean square of the coordinates' standard deviations.
        shape: `diagonal`, `fisher` (the inverse Fisher information of the cloud, `full` there), `least` or `low`.
        seed: of the noise with which the cloud's sensitivity is measured.
    """

    name: ClassVar[str] = "noise"
    replayable = True

    def __init__(self, std: float, shape: NoiseShape, seed: int = 0) -> None:
        super().__init__()
        self.std, self.shape, self.seed = std, shape, seed
        self._feature_shape: tuple[int, ...] = ()
        self._measured = 0

    @property
    def layout(self) -> int:
        """See `Defense.layout`."""
        return self._measured

    def attach(self, site: Site) -> None:
        """Keep the shape of a feature, which the cloud takes."""
        self._feature_shape = site.feature_shape

    def on_epoch(self, epoch: Epoch) -> None:
        """Measure the shape, once.

        Raises:
            ConfigError: there is no such noise for this feature: the shape takes a D x D matrix and D is above 1,024,
                or the cloud does not look at the feature.
        """
        if epoch.index != epoch.total // 3:
            return
        features = Ranks.current().gather(epoch.collect()[0])
        channel, random = epoch.model.channel, generator(self.seed, "noise-shape", device=features.device)
        seen = channel.release(features[:_MEASURED].reshape(-1, *self._feature_shape), random)
        name = "full" if self.shape == "fisher" else self.shape
        found = {shape.name: shape for shape in propose(features, scores(epoch.model.cloud, seen))}
        if name not in found:
            raise ConfigError(
                f"there is no noise of shape {self.shape} for this feature of {features.shape[1]} values: fisher and "
                f"least take at most {FULL:,} of them; give shape=low or shape=diagonal"
            )
        channel.noise = found[name].at(self.std).unit().scaled(self.std)
        self._measured += 1
