"""What makes a training useless, told before it begins or as soon as it shows."""

import math

import torch
from torch import Tensor

from sfumato.data import ImageSet
from sfumato.distributed import Ranks
from sfumato.errors import ConfigError, DivergedError
from sfumato.training.config import TrainConfig

__all__ = ["check_learning", "check_ranks"]

_FEWEST_STEPS_TO_LEARN = 50


def check_learning(done: int, epochs: int, steps: int, right: float, labels: Tensor) -> None:
    """A defended training that is at chance after its first third would only use up time.

    Args:
        done: epochs that have ended.
        epochs: how many there will be.
        steps: of each.
        right: accuracy on the training images.
        labels: of these images.

    Raises:
        DivergedError: it is.
    """
    if 3 * done < epochs or done * steps < _FEWEST_STEPS_TO_LEARN:
        return
    count = len(labels)
    chance = float(torch.bincount(labels).max()) / count
    if right <= chance + 3 * math.sqrt(chance * (1 - chance) / count):
        raise DivergedError(
            f"after {done} of {epochs} epochs the accuracy on the training images is {right:.1%}, which is chance: the "
            "defence wins against the classifier; lower --lam or the defence's strength, or --lr, and start a new run"
        )


def check_ranks(ranks: Ranks, train: ImageSet, config: TrainConfig) -> None:
    """Refuse ranks that do not do the same training, and more of them than a batch has images.

    Raises:
        ConfigError: settings or images differ, there is not one image per rank, or the engine knows one process only.
    """
    settings = {f"setting {name}": value for name, value in config.identity().items()}
    ranks.check_same(settings | {"setting micro_batch": config.micro_batch}, "start all ranks with the same command")
    ranks.check_same({"data fingerprint": train.fingerprint()}, "give all ranks the same images with --data-dir")
    for count, what in ((config.batch_size, "a batch has"), (len(train), "the training set has")):
        if count < ranks.size:
            raise ConfigError(f"{what} {count} images, fewer than the {ranks.size} ranks; start fewer processes")
    if config.engine == "compiled" and not ranks.alone:
        raise ConfigError("engine compiled works in one process; give --engine eager")
