import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform
from skimage.transform import rotate
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.data import Augmentation
from sfumato.errors import ConfigError, DataError


def batch(n, shape=(3, 6, 5), seed=0):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(n, pad, flip, rotation, seed):
    """The documented order of the draws, made again."""
    generator = seeded(seed)
    dy = torch.randint(2 * pad + 1, (n,), generator=generator) - pad if pad else torch.zeros(n, dtype=torch.int64)
    dx = torch.randint(2 * pad + 1, (n,), generator=generator) - pad if pad else torch.zeros(n, dtype=torch.int64)
    mirrored = torch.randint(2, (n,), generator=generator) if flip else torch.zeros(n, dtype=torch.int64)
    unit = torch.rand(n, generator=generator) if rotation else torch.full((n,), 0.5)
    return dy.tolist(), dx.tolist(), mirrored.tolist(), ((2 * unit.double() - 1) * rotation).tolist()


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 6),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_crops_and_flips_are_those_of_a_loop_over_images_and_pixels(n, pad, flip, channels, height, width, seed):
    images = batch(n, (channels, height, width), seed)
    dys, dxs, mirrors, _ = draws(n, pad, flip, 0, seed)
    expected = np.zeros(images.shape)
    for i, (dy, dx, mirrored) in enumerate(zip(dys, dxs, mirrors, strict=True)):
        source = images[i].numpy()
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + dy, (width - 1 - x if mirrored else x) + dx
                if 0 <= from_y < height and 0 <= from_x < width:
                    expected[i, :, y, x] = source[:, from_y, from_x] / 255
    result = Augmentation(pad, flip)(images, seeded(seed))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.from_numpy(expected).float(), rtol=0, atol=6e-8)


@pytest.mark.parametrize(("shape", "pad", "flip"), [((3, 8, 8), 2, True), ((1, 9, 6), 0, False), ((2, 5, 10), 3, True)])
def test_rotation_is_scipys_bilinear_affine_transform(shape, pad, flip):
    n, (_, height, width), rotation = 12, shape, 40.0
    images = batch(n, shape)
    result = Augmentation(pad, flip, rotation)(images, seeded(7))
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    for i, (dy, dx, mirrored, degrees) in enumerate(zip(*draws(n, pad, flip, rotation, 7), strict=True)):
        a, sign = math.radians(degrees), -1 if mirrored else 1
        # In (row, column): the turn, then the mirror and the shift.
        matrix = np.diag([1, sign]) @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        offset = centre + np.array([dy, dx]) - matrix @ centre
        for c in range(shape[0]):
            source = images[i, c].double().numpy() / 255
            expected = affine_transform(source, matrix, offset, order=1, mode="grid-constant")
            np.testing.assert_allclose(result[i, c].numpy(), expected, atol=3e-6)


def test_rotation_turns_like_scikit_image():
    images = batch(6, (1, 16, 16))
    result = Augmentation(pad=0, flip=False, rotation=30.0)(images, seeded(3))
    for i, degrees in enumerate(draws(6, 0, False, 30.0, 3)[3]):
        expected = rotate(images[i, 0].double().numpy() / 255, degrees, order=1, mode="constant")
        np.testing.assert_allclose(result[i, 0, 3:13, 3:13].numpy(), expected[3:13, 3:13], atol=3e-6)


def test_a_rotation_by_nearly_nothing_changes_nearly_nothing():
    images = batch(20)
    still = Augmentation(pad=3, flip=True)(images, seeded())
    turned = Augmentation(pad=3, flip=True, rotation=1e-4)(images, seeded())
    torch.testing.assert_close(turned, still, rtol=0, atol=1e-4)


def test_nothing_to_do_is_division_by_255():
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    result = Augmentation(pad=0, flip=False)(images, seeded())
    assert torch.equal(result, images.float() / 255)
    assert int(images[0, 0, 0, 1]) == 1


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(0, False), Augmentation(4, True, 15.0)])
def test_memory_format_changes_the_layout_only(augmentation):
    images = batch(4, (3, 8, 8))
    plain = augmentation(images, seeded())
    other = augmentation(images, seeded(), memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, other)


def test_the_stored_images_stay_as_they_are():
    images = batch(8)
    before = images.clone()
    for augmentation in (Augmentation(), Augmentation(0, False), Augmentation(4, True, 15.0)):
        augmentation(images, seeded())
    assert torch.equal(images, before)


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(0, False), Augmentation(4, True, 15.0)])
def test_an_empty_batch_stays_empty(augmentation):
    result = augmentation(batch(0), seeded())
    assert result.shape == (0, 3, 6, 5)
    assert result.dtype == torch.float32


def test_only_the_generator_decides():
    images = batch(16)
    torch.manual_seed(0)
    first = Augmentation()(images, seeded(5))
    torch.manual_seed(1)
    assert torch.equal(Augmentation()(images, seeded(5)), first)
    assert not torch.equal(Augmentation()(images, seeded(6)), first)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Augmentation()(strided, seeded(5)), first)


def test_shifts_and_flips_are_uniform():
    n = 20_000
    image = torch.zeros(1, 1, 5, 7, dtype=torch.uint8)
    image[0, 0, 2, 2] = 255
    result = Augmentation(pad=2, flip=True)(image.expand(n, 1, 5, 7), seeded(0))
    counts = result.sum(0)[0]
    # 25 shifts, mirrored or not: 50 equally likely outcomes; column 2 or its mirror image 4, each shifted by -2 .. 2.
    one = n / 50
    expected = torch.tensor([one, one, 2 * one, 2 * one, 2 * one, one, one]).expand(5, 7)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    assert counts.sum() == n


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad": -1}, "pad is -1; give the largest shift in pixels, 0 or more"),
        ({"rotation": 200.0}, r"rotation is 200\.0; give the largest angle in degrees, 0 \.\. 180"),
        ({"rotation": -5.0}, "rotation is -5"),
        ({"rotation": float("nan")}, "rotation is nan"),
    ],
)
def test_settings_without_meaning_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**arguments)


def test_floats_are_refused():
    with pytest.raises(DataError, match=r"images are torch.float32 .*give uint8"):
        Augmentation()(torch.zeros(2, 3, 4, 4), seeded())


class Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(rotation=10)])
def test_a_batch_takes_no_loop_over_images(augmentation):
    counts = []
    for size in (8, 512):
        with Calls() as calls:
            augmentation(batch(size, (3, 32, 32)), seeded())
        counts.append(calls.count)
    assert counts[0] == counts[1] < 150
