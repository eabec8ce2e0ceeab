import gzip
import struct

import numpy as np
import pytest
import torch

from sfumato import data
from sfumato.data import idx
from sfumato.errors import ConfigError, DataError

PARTS = {"train": 30, "t10k": 20}


def as_idx(values, *, code=8, sizes=None):
    """An IDX file by the format's description: magic, big-endian sizes, values."""
    sizes = values.shape if sizes is None else sizes
    return bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + values.tobytes()


@pytest.fixture
def written(tmp_path):
    """The four files in `tmp_path`, two of them compressed, and what they hold."""
    random = np.random.default_rng(0)
    stored = {}
    for part, count in PARTS.items():
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(as_idx(pixels)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(as_idx(labels))
        stored[part] = (pixels, labels)
    return stored


@pytest.mark.parametrize(
    ("name", "first", "last"), [("fashion-mnist", "T-shirt/top", "Ankle boot"), ("mnist", "0", "9")]
)
def test_the_stored_bits_are_read(tmp_path, written, name, first, last):
    calls = []
    sets = data.load(name, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert sets.name == name
    for part, images in (("train", sets.train), ("t10k", sets.test)):
        pixels, labels = written[part]
        assert np.array_equal(images.images[:, 0].numpy(), pixels)
        assert images.labels.tolist() == labels.tolist()
        assert (images.classes[0], images.classes[9], images.num_classes) == (first, last, 10)
    assert calls[-1] == (50, 50)
    assert sets.caveat == ""


def test_14x14_is_the_mean_of_four_pixels(tmp_path, written):
    sets = data.load("fashion-mnist", tmp_path, size=14)
    pixels = written["t10k"][0].astype(float)
    for image, small in zip(pixels, sets.test.images[:, 0].numpy(), strict=True):
        for row in range(14):
            for column in range(14):
                mean = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
                assert abs(float(small[row, column]) - mean) <= 0.5
    assert sets.caveat == "The images were resized to 14x14."
    assert torch.equal(
        data.load("fashion-mnist", tmp_path, size=28).test.images[:, 0], torch.tensor(written["t10k"][0])
    )


def rewrite(folder, name, content):
    for path in (folder / name, folder / f"{name}.gz"):
        path.unlink(missing_ok=True)
    (folder / name).write_bytes(content)


GREY = np.zeros((30, 28, 28), dtype=np.uint8)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"", r"begins with the bytes \(none\) instead of 00000803"),
        (IMAGES, b"\x89PNG", "begins with the bytes 89504e47 instead of 00000803"),
        (IMAGES, as_idx(GREY, code=13), "begins with the bytes 00000d03 instead of 00000803"),
        (IMAGES, as_idx(GREY[:, 0, 0]), "begins with the bytes 00000801 instead of 00000803"),
        (IMAGES, as_idx(GREY)[:11], "ends within the sizes of its 3 dimensions"),
        (IMAGES, as_idx(GREY)[:-1], "claims 30 x 28 x 28 values and holds only 23519"),
        (IMAGES, as_idx(GREY) + b"x", "claims 30 x 28 x 28 values and holds more"),
        (IMAGES, as_idx(GREY, sizes=(2**32 - 1,) * 3), "more than the 134,217,728 that are read"),
        (IMAGES, as_idx(GREY[:, :14]), "holds images of 14x28 pixels, but those of fashion-mnist have 28x28"),
        (IMAGES, as_idx(GREY[:7]), "holds 7 images, but .*train-labels-idx1-ubyte 30 labels"),
        (LABELS, as_idx(np.full(30, 10, np.uint8)), "image 0 has the label 10, outside 0 .. 9"),
    ],
)
def test_foreign_and_damaged_files_are_named(tmp_path, written, file, content, message):
    rewrite(tmp_path, file, content)
    with pytest.raises(DataError, match=message) as caught:
        data.load("fashion-mnist", tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "https://github.com/zalandoresearch/fashion-mnist" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "bits", "trailer", "no gzip"])
def test_a_damaged_archive_is_named(tmp_path, written, damage):
    path = tmp_path / f"{IMAGES}.gz"
    whole = bytearray(path.read_bytes())
    if damage == "cut":
        whole = whole[:-100]
    elif damage == "no gzip":
        whole = bytearray(b"<html>not found</html>")
    else:
        whole[-6 if damage == "trailer" else len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is truncated or damaged"):
        data.load("fashion-mnist", tmp_path)


def test_a_missing_file_is_named(tmp_path, written):
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no mnist in .*: t10k-labels-idx1-ubyte.gz is missing .*--data-dir"):
        data.load("mnist", tmp_path)


def test_without_a_folder_debian_s_is_taken(tmp_path, written, monkeypatch):
    monkeypatch.setattr(idx, "FASHION_MNIST_FOLDER", tmp_path)
    assert len(data.load("fashion-mnist").test) == 20
    monkeypatch.setattr(idx, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--data-dir.*zalandoresearch.*package dataset-fashion-mnist puts them into"):
        data.load("fashion-mnist")
    with pytest.raises(ConfigError, match=r"mnist needs a folder: pass data_dir \(--data-dir\).*yann.lecun.com"):
        data.load("mnist")


@pytest.mark.skipif(not idx.FASHION_MNIST_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is missing")
def test_the_official_files():
    sets = data.load("fashion-mnist")
    assert (len(sets.train), len(sets.test)) == (60_000, 10_000)
    assert sets.train.labels.bincount().tolist() == [6000] * 10
    assert sets.test.labels[:6].tolist() == [9, 2, 1, 1, 6, 1]  # the first six of the makers' test set
    # Mean and standard deviation of the training pixels as everybody normalises them.
    pixels = sets.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3530, abs=1e-4)
