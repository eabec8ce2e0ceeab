import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as sklearn_digits

from sfumato.data.digits import load_digits


def rows(images):
    return images.reshape(len(images), -1).tolist()


def test_every_image_is_scikit_learns():
    sets = load_digits()
    theirs = sklearn_digits()
    expected = [[int(v * 255 / 16 + 0.5) for v in image] for image in theirs.data.astype(int).tolist()]
    pairs = sorted(zip(expected, theirs.target.tolist(), strict=True))
    ours = rows(sets.train.images) + rows(sets.test.images)
    labels = sets.train.labels.tolist() + sets.test.labels.tolist()
    assert sorted(zip(ours, labels, strict=True)) == pairs


def test_shape_values_and_names():
    sets = load_digits()
    assert sets.name == "digits"
    assert sets.train.image_shape == (1, 8, 8)
    assert sets.train.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert int(sets.train.images.max()) == 255
    assert sets.train.images.unique().tolist() == [
        0,
        16,
        32,
        48,
        64,
        80,
        96,
        112,
        128,
        143,
        159,
        175,
        191,
        207,
        223,
        239,
        255,
    ]
    assert "8x8" in sets.caveat


def test_the_split_is_stratified_and_decided_by_the_seed():
    sets = load_digits(seed=0)
    assert (len(sets.train), len(sets.test)) == (1438, 359)
    assert sets.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert torch.equal(load_digits(seed=0).test.images, sets.test.images)
    assert not torch.equal(load_digits(seed=1).test.images, sets.test.images)


@pytest.mark.parametrize("size", [32, (20, 11), (5, 8)])
def test_resized_digits_are_pillow_s(size):
    height, width = (size, size) if isinstance(size, int) else size
    sets, plain = load_digits(size=size), load_digits()
    assert sets.train.image_shape == (1, height, width)
    assert torch.equal(sets.test.labels, plain.test.labels)
    for ours, image in zip(sets.test.images[:50, 0], plain.test.images[:50, 0], strict=True):
        theirs = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        assert np.abs(ours.numpy().astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    assert sets.caveat.endswith(f"They were resized to {height}x{width}.")
    assert load_digits(size=8).train.fingerprint() == plain.train.fingerprint()


def test_sides_that_divide_are_averaged():
    halves, plain = load_digits(size=(4, 8)), load_digits()
    expected = [(row[::2].astype(float) + row[1::2]) / 2 for row in plain.test.images[:, 0].numpy()]
    assert np.abs(halves.test.images[:, 0].numpy() - np.stack(expected)).max() <= 0.5
