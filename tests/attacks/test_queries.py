"""One input sent more than once."""

import pytest
import torch
from attack_cases import images, victim

from sfumato.attacks import Queries, encode_repeated
from sfumato.attacks.queries import near_duplicates
from sfumato.errors import ConfigError


@pytest.fixture
def x():
    return images(6).float()


def test_fresh_noise_differs_and_memoised_noise_repeats(x):
    model = victim(noise_std=0.5)
    fresh = encode_repeated(model, x, queries=3)
    assert fresh.shape == (6, 3, 4, 4, 4)
    assert float((fresh[:, 0] - fresh[:, 1]).std()) == pytest.approx(0.5 * 2**0.5, rel=0.1)
    repeated = encode_repeated(model, x, queries=3, noise="memoised")
    assert torch.equal(repeated[:, 0], repeated[:, 1])
    assert torch.equal(repeated, encode_repeated(model, x, queries=3, noise="memoised"))
    assert float((repeated[:, 0] - model.features(x)).std()) == pytest.approx(0.5, rel=0.1)


def test_memoised_noise_depends_on_the_key_and_on_every_pixel(x):
    model = victim(noise_std=0.5)

    def noise(pixels, key=b"device"):
        released = encode_repeated(model, pixels, queries=1, noise="memoised", key=key)[:, 0]
        return released - model.features(pixels).detach()

    other = x.clone()
    other[:, 0, 0, 0] = (other[:, 0, 0, 0] * 255 + 1).clamp(max=255) / 255
    mine = noise(x)
    for different in (noise(x, b"another"), noise(other)):
        assert float((mine - different).std()) == pytest.approx(0.5 * 2**0.5, rel=0.1)
    assert torch.allclose(noise(x.flip(0)), mine.flip(0), atol=1e-6)  # whatever else is in the batch


@pytest.mark.parametrize("duplicates", ["levels", "shift", "recode", "devices"])
@pytest.mark.parametrize("noise", ["fresh", "memoised"])
def test_near_duplicates_meet_noise_of_their_own(x, noise, duplicates):
    z = encode_repeated(victim(noise_std=0.5), x, queries=4, noise=noise, duplicates=duplicates)
    assert z.shape == (6, 4, 4, 4, 4)
    assert float((z[:, 1] - z[:, 0]).std()) > 0.5


def test_near_duplicates_are_near(x):
    generator = torch.Generator().manual_seed(0)
    pixels = (x * 255).round()
    for kind in ("levels", "shift", "recode"):
        made = near_duplicates(x, 5, kind, generator) * 255
        assert torch.allclose(made[:, 0], pixels, atol=1e-3)
        assert len({tuple(one.flatten().round().tolist()) for one in made[0]}) == 5  # all different
        assert float(made.min()) >= 0
        assert float(made.max()) <= 255.001
    steps = (near_duplicates(x, 2, "levels", generator)[:, 1] * 255 - pixels).round()
    assert set(steps.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert float((steps != 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    shifted = near_duplicates(x, 2, "shift", generator)[:, 1] * 255
    assert torch.allclose(shifted[:, :, :, 1:], pixels[:, :, :, :-1], atol=1e-3)  # one column to the right


def test_colour_images_are_recoded_as_colour():
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = near_duplicates(x, 3, "recode")
    assert made.shape == (2, 3, 3, 8, 8)
    assert 0 < float((made[:, 1] - made[:, 0]).abs().mean()) < 0.1


def test_mistakes():
    assert Queries(16).noise_factor == 0.25
    assert Queries(16, "memoised").noise_factor == 1.0
    assert Queries(16, "memoised", "devices").noise_factor == 0.25
    assert Queries(18, "memoised", "shift").noise_factor == pytest.approx(1 / 3)  # nine pictures, twice each
    assert Queries(10, "memoised", "shift").noise_factor == pytest.approx((8 + 4) ** 0.5 / 10)
    with pytest.raises(ConfigError, match="queries is 0; give at least 1"):
        Queries(0)
    with pytest.raises(ConfigError, match="duplicates is 'banana'; give one of exact, levels"):
        Queries(1, "fresh", "banana")  # type: ignore[arg-type]
