"""What the tests of the defences share: one row per defence, a small split model, a batch."""

from collections.abc import Callable

import torch

from sfumato.cem import CEM
from sfumato.defenses import Batch, CEMDefense, Defense, DistCorr, Dropout, Epoch, LabelSmoothing, Patrol, ResSFL, Site
from sfumato.models import build
from sfumato.split import Channel, SplitModel

CLASSES = 3
IMAGE = (1, 16, 16)


def cem() -> CEMDefense:
    return CEMDefense(CEM(num_classes=CLASSES, noise_std=0.1, clusters_per_class=2), lam=1.0, lam_schedule="constant")


SINGLE: dict[str, Callable[[], list[Defense]]] = {
    "none": list,
    "distcorr": lambda: [DistCorr()],
    "dropout": lambda: [Dropout()],
    "ressfl": lambda: [ResSFL(threshold=-1.0, width=4, blocks=1)],
    "patrol": lambda: [Patrol(stem=6, threshold=-1.0, width=4, blocks=1)],
    "label_smoothing": lambda: [LabelSmoothing()],
}
DEFENSES = SINGLE | {f"{name}+cem": lambda make=make: [*make(), cem()] for name, make in SINGLE.items()}


def images(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=IMAGE[1:], mode="bilinear")
    return smooth, torch.arange(count) % CLASSES


def split_model(defenses: list[Defense], noise_std: float = 0.1) -> SplitModel:
    """A small network with the layers that the defences ask for; the defences are attached to it."""
    torch.manual_seed(0)
    options = {name: value for one in defenses for name, value in one.model_options().items()}
    edge, cloud = build("digits", cut=2, width=8, num_classes=CLASSES, image_shape=IMAGE, bottleneck=4, **options)
    transforms = [module for one in defenses if (module := one.transform()) is not None]
    model = SplitModel(edge, Channel(noise_std=noise_std, transforms=transforms), cloud)
    for one in defenses:
        one.attach(Site(model.feature_shape(IMAGE), IMAGE, CLASSES))
    return model


def batch_of(model: SplitModel, x: torch.Tensor, y: torch.Tensor) -> Batch:
    """A batch of a classifier that knows something; at chance CEM would have no weight."""
    features, released, logits = model.outputs(x)
    return Batch(x, y, features, released, logits + 3 * torch.nn.functional.one_hot(y, CLASSES))


def epoch_of(
    model: SplitModel, x: torch.Tensor, y: torch.Tensor, index: int = 0, replaced: Callable[[], None] = lambda: None
) -> Epoch:
    def collect() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return model.features(x).flatten(1), y

    return Epoch(index, 10, collect, model, replaced)
