"""What all pieces of one audit share: the subject, the attacker's images, and what left the device."""

from dataclasses import dataclass

import torch

from sfumato.attacks import Observer
from sfumato.audit.folder import AuditFolder
from sfumato.audit.images import shuffled
from sfumato.audit.measure import Exposure, expose
from sfumato.audit.subject import Subject
from sfumato.data import DataSets, ImageSet
from sfumato.seeds import derive_seed

__all__ = ["MOST_IMAGES", "Context", "make_context"]

MOST_IMAGES = 2000
"""At most so many training and test images, drawn at random, are reconstructed by every attack."""


@dataclass(frozen=True)
class Context:
    """One audit's common ground."""

    subject: Subject
    sets: DataSets
    train: Exposure
    test: Exposure
    gradients: bool
    device: torch.device
    seed: int
    folder: AuditFolder
    other: ImageSet | None = None

    def observer(self, images: ImageSet | None = None) -> Observer:
        """What an attacker with these images (all, if not said) may see."""
        return Observer(self.subject.model, self.sets.train if images is None else images, device=self.device)


def make_context(
    subject: Subject,
    sets: DataSets,
    *,
    gradients: bool,
    device: torch.device,
    seed: int,
    folder: AuditFolder,
    most: int = MOST_IMAGES,
    other: ImageSet | None = None,
) -> Context:
    """Draw the samples, of at most `most` images each, and release their features."""
    exposures = {
        part: expose(
            subject.model,
            shuffled(images, most, seed, part),
            seed=derive_seed(seed, "audit", part),
            device=device,
        )
        for part, images in (("train", sets.train), ("test", sets.test))
    }
    return Context(subject, sets, exposures["train"], exposures["test"], gradients, device, seed, folder, other)
