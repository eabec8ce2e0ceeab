"""The attacker who has the cloud's half, what arrives there and other images, and nothing of the device."""

import pytest
import torch
from attack_cases import images
from torch import nn

from sfumato.attacks import CloudOnlyAttack, CloudOnlyConfig, Observer, RidgeAttack, invert, judged, strongest
from sfumato.data import ImageSet
from sfumato.errors import ConfigError
from sfumato.split import Channel, SplitModel

CONFIG = CloudOnlyConfig(epochs=30, batch_size=32, width=16, blocks=0, lr=5e-3)


def bright(count: int, seed: int) -> ImageSet:
    """Images whose class says which of their quarters is the brightest."""
    pixels = images(count, seed).images
    quarters = pixels.float().reshape(count, 2, 4, 2, 4).mean((2, 4)).flatten(1)
    return ImageSet(pixels, quarters.argmax(1), ("a", "b", "c", "d"))


def victim() -> SplitModel:
    """A blurring encoder, and a cloud that knows the brightest quarter."""
    return SplitModel(
        nn.AvgPool2d(2),
        Channel(noise_std=0.02),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), _Sharpen()),
    )


class _Sharpen(nn.Module):
    def forward(self, z):
        return 30 * z


class Apart(Observer):
    """Notes which images' releases were asked for."""

    def record(self, indices, generator=None):
        self.sent = getattr(self, "sent", set()) | set(indices.tolist())
        return super().record(indices, generator)


def test_it_never_has_an_image_beside_its_release_and_asks_for_nothing_to_be_encoded():
    observer = Apart(victim(), bright(60, 0))
    assert observer.whitening is not None  # of all that arrives
    observer.sent = set()
    observer.encode = observer.features = None  # nothing may be encoded
    attack = CloudOnlyAttack(CloudOnlyConfig(epochs=1, batch_size=32, width=4, blocks=0)).fit(observer)
    assert observer.sent == set(range(30))
    assert torch.equal(attack._own.images.images, observer.images.images[30:])


def test_it_sees_more_than_the_mean_image_and_less_than_who_has_pairs():
    model, unseen = victim(), bright(100, 1)
    observer = Observer(model, bright(400, 0))
    attack = CloudOnlyAttack(CONFIG).fit(observer)
    error = float(invert(attack, model, unseen).mse.mean())
    x = unseen.float()
    assert error < 0.75 * float((x - observer.pixels(torch.arange(400)).mean(0)).square().mean())
    assert error > float(invert(RidgeAttack().fit(observer), model, unseen).mse.mean())


def test_it_leaves_the_cloud_as_it_is():
    model = SplitModel(nn.AvgPool2d(2), Channel(), nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))
    before = [value.clone() for value in model.cloud.parameters()]
    CloudOnlyAttack(CloudOnlyConfig(epochs=1, width=4, blocks=0)).fit(Observer(model, bright(40, 0)))
    for value, was in zip(model.cloud.parameters(), before, strict=True):
        assert torch.equal(value, was)
        assert value.grad is None


def test_it_is_never_the_figure_of_a_suite():
    assert strongest({"cloud-only": 0.01, "decoder": 0.02}) == "decoder"
    flat = {
        "test": {"mse": 0.05},
        "converged": True,
        "reason": "",
        "history": [0.08] + 15 * [0.05],
        "trivial_mse": 0.07,
    }
    simple = flat | {"test": {"mse": 0.02}, "history": []}
    verdicts = judged({"ridge": simple, "decoder": flat, "cloud-only": flat})
    assert (verdicts["decoder"].converged, verdicts["cloud-only"].converged) == (False, True)
    observer = Observer(victim(), bright(40, 0))
    inside = observer.inside(observer.activations()[0].name)
    with pytest.raises(ConfigError, match="what arrives"):
        CloudOnlyAttack(CONFIG).fit(inside)
