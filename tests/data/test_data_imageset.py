import dataclasses
import hashlib

import pytest
import torch

from sfumato.data import DataSets, ImageSet
from sfumato.errors import DataError


def make(n=4, classes=("a", "b"), shape=(1, 2, 2)):
    images = torch.arange(n * 4, dtype=torch.uint8).reshape(n, *shape)
    return ImageSet(images, torch.arange(n) % len(classes), tuple(classes))


def test_facts():
    data = make(5, shape=(2, 2, 1))
    assert len(data) == 5
    assert data.image_shape == (2, 2, 1)
    assert data.num_classes == 2


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), r"images are torch.float32 .*give 8-bit pixels"),
        (
            torch.zeros(2, 2, 2, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            r"of shape \(2, 2, 2\); give .*\(N, C, H, W\)",
        ),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int32),
            r"labels are torch.int32 .*give int64",
        ),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            r"of shape \(3,\) for 2 images; give int64, one per image",
        ),
        (
            torch.zeros(0, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(0, dtype=torch.int64),
            r"the set is empty .*give at least one image",
        ),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.tensor([0, 2]),
            r"labels run from 0 to 2, but there are 2 classes; labels must lie in 0 \.\. 1",
        ),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([-1, 0]), r"labels run from -1 to 0"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels, ("a", "b"))


def test_subset_takes_positions_lists_and_masks():
    data = make()
    assert data.subset([3, 0]).images[:, 0, 0, 0].tolist() == [12, 0]
    assert data.subset(torch.tensor([3, 0])).labels.tolist() == [1, 0]
    assert data.subset(torch.tensor([False, True, False, True])).images[:, 0, 0, 0].tolist() == [4, 12]


def test_a_subset_is_a_copy():
    data = make()
    data.subset([0]).images.fill_(9)
    assert data.images[0, 0].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "no index is given"),
        ([4], r"run from 4 to 4; give a flat list of positions in 0 \.\. 3"),
        ([-1], "run from -1"),
        (torch.tensor([True, False]), "the mask has shape .* each of the 4 images"),
    ],
)
def test_indices_outside_the_set_are_refused(indices, message):
    with pytest.raises(DataError, match=message):
        make().subset(indices)


def test_fingerprint_is_the_sha256_of_all_content():
    data = make(2)
    labels = (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    expected = hashlib.sha256(b"((2, 1, 2, 2), ('a', 'b'))" + bytes(range(8)) + labels).hexdigest()
    assert data.fingerprint() == expected
    assert data.fingerprint() == make(2).fingerprint()


def test_fingerprint_changes_with_shape_pixels_labels_and_classes():
    data = make()
    pixels = data.images.clone()
    pixels[3, 0, 1, 1] += 1
    others = [
        dataclasses.replace(data, images=data.images.reshape(4, 1, 4, 1)),
        dataclasses.replace(data, images=pixels),
        dataclasses.replace(data, labels=data.labels.flip(0)),
        dataclasses.replace(data, classes=("a", "c")),
    ]
    data.fingerprint()  # `replace` must not carry the cached value over
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_fingerprint_does_not_depend_on_memory_layout():
    data = ImageSet(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2), torch.tensor([0, 1]), ("a", "b"))
    other = dataclasses.replace(data, images=data.images.contiguous(memory_format=torch.channels_last))
    assert other.fingerprint() == data.fingerprint()


def test_float_is_the_pixel_over_255():
    images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    data = ImageSet(images, torch.zeros(4, dtype=torch.int64), ("a",))
    torch.testing.assert_close(data.float().flatten(), torch.tensor([0.0, 0.2, 0.4, 1.0]))
    torch.testing.assert_close(data.float(torch.tensor([3, 1])).flatten(), torch.tensor([1.0, 0.2]))
    assert data.float().dtype == torch.float32


def test_large_images_get_a_hint_and_small_ones_none():
    def told(side):
        part = ImageSet(torch.zeros(2, 3, side, 20, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
        return DataSets("folder", part, part).summary()

    assert "made for images of 32 to 64 pixels" in told(200)
    assert "--size 64 resizes them" in told(200)
    assert "--size" not in told(128)


@pytest.mark.parametrize("indices", [[1.5], ["a"], None, slice(0, 3), torch.tensor([0.0]), torch.tensor([1j])])
def test_what_is_no_position_is_refused(indices):
    with pytest.raises(DataError, match="give a flat list of positions|give whole numbers"):
        make().subset(indices)


def test_eight_bit_positions_are_no_mask():
    data = make(4)
    assert data.subset(torch.tensor([0, 1, 1, 3], dtype=torch.uint8)).images.flatten(1)[:, 0].tolist() == [0, 4, 4, 12]


@pytest.mark.parametrize("classes", [None, "ab", [1, 2], 5])
def test_classes_are_texts(classes):
    with pytest.raises(DataError, match="give the names of the classes as texts in a tuple"):
        dataclasses.replace(make(), classes=classes)


def test_arrays_are_named():
    with pytest.raises(DataError, match="images are a ndarray and labels a Tensor; give tensors"):
        dataclasses.replace(make(), images=make().images.numpy())
