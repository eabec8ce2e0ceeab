"""What makes the strong attack stronger: views where the data allow them, and the average of the weights."""

import pytest
import torch
from torch import nn

from sfumato.attacks import Observer, StrongAttack, StrongConfig
from sfumato.attacks.base import hold_out
from sfumato.data import ImageSet
from sfumato.split import Channel, SplitModel


class Coarse(nn.Module):
    """Means of 4x4 pixels."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Conv2d(1, 1, 4, stride=4, bias=False)
        nn.init.constant_(self.pool.weight, 1 / 16)

    def forward(self, x):
        return self.pool(x)


def observer(images):
    model = SplitModel(Coarse(), Channel(noise_std=0.05), nn.Identity())
    labels = torch.zeros(len(images), dtype=torch.long)
    return Observer(model, ImageSet(images.mul(255).round().byte(), labels, ("a",)))


def textures(count=300):
    """Random and without a side: a mirrored texture is as likely as itself."""
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def ramps(count=300):
    """Dark on the left and bright on the right in fine steps that the encoder does not see."""
    stripes = torch.linspace(0, 1, 4).repeat(4)[None, None, None]
    level = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return (0.8 * stripes + 0.2 * level).expand(count, 1, 16, 16)


def chosen(images, views="auto"):
    attack, seen = StrongAttack(StrongConfig(views=views)), observer(images)
    judge, learn = hold_out(len(seen), 0.1, 0)
    return attack._choose_views(seen, learn, judge)


def test_views_are_taken_where_the_data_allow_them():
    assert chosen(textures()) == "flip+shift"
    assert chosen(ramps()) == "none"
    assert chosen(ramps(), "flip") == "flip"  # whoever asks for them gets them


def test_the_attack_learns_from_its_views():
    images = ramps(40)
    seen = observer(images)
    attack = StrongAttack(StrongConfig(views="flip"))
    attack.views = "flip"
    indices = torch.arange(40)
    x, z = attack._batch(seen, indices, lambda _: torch.Generator().manual_seed(1))
    own = seen.pixels(indices)
    as_it_is, mirrored = (x == own).flatten(1).all(1), (x == own.flip(3)).flatten(1).all(1)
    assert bool((as_it_is ^ mirrored).all())
    assert 10 < int(mirrored.sum()) < 30
    pooled = nn.functional.avg_pool2d(x, 4)
    assert float((z - seen.seen(pooled)).std()) == pytest.approx(float(seen.whitening.scale.mean()) * 0.05, rel=0.2)


def test_what_reconstructs_is_the_average_of_the_weights():
    seen = observer(textures(64))
    settings = {"epochs": 2, "batch_size": 16, "width": 4, "blocks": 0, "views": "none", "precision": "fp32"}
    kept = StrongAttack(StrongConfig(average=0.0, **settings)).fit(seen)
    averaged = StrongAttack(StrongConfig(average=0.9, **settings)).fit(seen)
    students = [attack.history[-1]["mse"] for attack in (kept, averaged)]
    assert students[0] == students[1]  # the optimizer moves the same weights
    name = "last.conv2.weight"
    assert not torch.equal(kept.weights()[name], averaged.weights()[name])
