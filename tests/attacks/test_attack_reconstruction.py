import json
import math

import numpy as np
import pytest
import torch
from attack_cases import images, victim
from skimage.metrics import peak_signal_noise_ratio

from sfumato.attacks import RidgeAttack, invert, invert_released, observe
from sfumato.errors import SfumatoError


class Answering:
    """Answers with what it is told."""

    def __init__(self, answers, most_images=None):
        self.answers, self.most_images = answers, most_images

    def reconstruct(self, z):
        return self.answers[: len(z)]


def test_every_image_is_measured_by_itself_and_only_the_first_are_kept():
    unseen, model = images(600, seed=1), victim()
    attack = RidgeAttack().fit(observe(model, images(200)))
    whole = invert(attack, model, unseen, keep=None)
    few = invert(attack, model, unseen, keep=520)
    assert len(whole) == len(few) == 600
    assert torch.equal(whole.pixels[:520], few.pixels)
    x, x_hat = unseen.images.numpy() / 255, whole.pixels.numpy() / 255
    np.testing.assert_allclose(few.mse, ((x - x_hat) ** 2).mean((1, 2, 3)), atol=2e-3)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, x_hat, strict=True)]
    np.testing.assert_allclose(few.psnr, expected, atol=0.1)


def test_an_image_reconstructed_bit_for_bit_is_a_result():
    """Its PSNR is infinite, which neither a mean nor JSON can hold."""
    unseen = images(8, seed=1)
    answers = unseen.float()
    answers[0] = 0.5
    found = invert(Answering(answers), victim(), unseen)
    assert found.psnr[1:].tolist() == [120.0] * 7
    error = float((unseen.float()[0] - 0.5).square().mean())
    means = json.loads(json.dumps(found.means(), allow_nan=False))
    assert means["psnr"] == pytest.approx((7 * 120 - 10 * np.log10(error)) / 8, rel=1e-6)
    assert means["mse"] == pytest.approx(error / 8, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(bad):
    answers = images(8).float()
    answers[3, 0, 2, 2] = bad
    with pytest.raises(SfumatoError, match="NaN or infinite pixels"):
        invert(Answering(answers), victim(), images(8))


def test_what_was_released_before_gives_the_same():
    unseen, model = images(40, seed=1), victim()
    attack = RidgeAttack().fit(observe(model, images(200)))
    seen = []

    def release(x, noise):
        seen.append(model.encode(x, noise))
        return seen[-1]

    found = invert(attack, model, unseen, keep=None, release=release)
    again = invert_released(attack, unseen, torch.cat(seen))
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(found).items())


@pytest.mark.parametrize(("most_images", "until", "done"), [(40, 0.0, 16), (40, math.inf, 40), (None, 0.0, 40)])
def test_a_search_that_is_late_leaves_images_out(most_images, until, done):
    unseen = images(40)
    found = invert_released(Answering(unseen.float(), most_images), unseen, torch.zeros(40, 1), until=until)
    assert found.index.tolist() == list(range(done))
    assert len(found) == len(found.pixels) == done
