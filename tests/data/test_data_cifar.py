import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from python2_pickle import python2_dumps

from sfumato.data.cifar import CIFAR10, CIFAR100, load_cifar, load_cifar10, load_cifar100
from sfumato.errors import DataError

REAL = Path(os.environ.get("SFUMATO_DATA", "/nonexistent")) / "cifar10"


def records(n, num_classes, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, num_classes, n).tolist()


def official(which, kind, n=3):
    """Files of the official layout with n images each, and the pixels and labels in them."""
    tens = which is CIFAR10
    batches = [f"data_batch_{i}" for i in range(1, 6)] if tens else ["train"]
    tests = ["test_batch"] if tens else ["test"]
    files, parts = {}, {"train": [], "test": []}
    for seed, name in enumerate(batches + tests):
        pixels, labels = records(n, 10 if tens else 100, seed)
        parts["train" if name in batches else "test"].append((pixels, labels))
        if kind == "binary":
            coarse = b"" if tens else b"\x13"
            files[f"{name}.bin"] = b"".join(
                coarse + bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True)
            )
        elif tens:
            files[name] = python2_dumps(
                {"batch_label": "b", "labels": labels, "data": pixels, "filenames": ["f.png"] * n}
            )
        else:
            files[name] = python2_dumps({"coarse_labels": [19] * n, "fine_labels": labels, "data": pixels})
    expected = {
        part: (
            np.concatenate([x for x, _ in several]).reshape(-1, 3, 32, 32),
            [label for _, labels in several for label in labels],
        )
        for part, several in parts.items()
    }
    return files, expected


FOLDERS = {
    (10, "binary"): ("cifar-10-binary.tar.gz", "cifar-10-batches-bin"),
    (10, "python"): ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    (100, "binary"): ("cifar-100-binary.tar.gz", "cifar-100-binary"),
    (100, "python"): ("cifar-100-python.tar.gz", "cifar-100-python"),
}


def place(root, which, kind, files, where):
    archive, folder = FOLDERS[len(which.classes), kind]
    if where == "archive":
        with tarfile.open(root / archive, "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return root / archive
    target = root / folder if where == "folder" else root
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        (target / name).write_bytes(content)
    return target


def assert_same(sets, expected):
    for part in ("train", "test"):
        images, labels = expected[part]
        assert np.array_equal(getattr(sets, part).images.numpy(), images)
        assert getattr(sets, part).labels.tolist() == labels


@pytest.mark.parametrize("where", ["archive", "folder", "files"])
@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("which", [CIFAR10, CIFAR100], ids=["10", "100"])
def test_official_layouts_give_the_exact_pixels(tmp_path, which, kind, where):
    files, expected = official(which, kind)
    place(tmp_path, which, kind, files, where)
    calls = []
    sets = load_cifar(which, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert_same(sets, expected)
    assert sets.name == which.name
    assert sets.caveat == ""
    assert calls[-1] == ((18, 18) if which is CIFAR10 else (6, 6))


def test_the_first_bytes_of_a_record_are_the_red_rows(tmp_path):
    pixels = np.zeros((3, 32, 32), dtype=np.uint8)
    pixels[0, 0, 1], pixels[1, 2, 0], pixels[2, 31, 31] = 10, 20, 30
    content = bytes([3]) + pixels.tobytes()
    place(tmp_path, CIFAR10, "binary", dict.fromkeys((*CIFAR10.forms[0].train, "test_batch.bin"), content), "folder")
    image = load_cifar10(tmp_path).test
    assert image.labels.tolist() == [3]
    assert image.classes[3] == "cat"
    assert image.images.nonzero().tolist() == [[0, 0, 0, 1], [0, 1, 2, 0], [0, 2, 31, 31]]


def test_class_names():
    assert CIFAR10.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert (CIFAR100.classes[0], CIFAR100.classes[58], CIFAR100.classes[99]) == ("apple", "pickup_truck", "worm")


def test_a_pickle_of_python_3_with_text_keys_is_read(tmp_path):
    pixels, labels = records(2, 10, 0)
    content = pickle.dumps({"data": pixels, "labels": labels}, protocol=4)
    place(tmp_path, CIFAR10, "python", dict.fromkeys((*CIFAR10.forms[1].train, "test_batch"), content), "folder")
    assert load_cifar10(tmp_path).test.labels.tolist() == labels


def test_a_malicious_batch_is_refused_without_side_effect(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    files, _ = official(CIFAR10, "python")
    files["data_batch_3"] = pickle.dumps({"data": Attack(), "labels": [0]}, protocol=2)
    place(tmp_path, CIFAR10, "python", files, "archive")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz/data_batch_3 asks for .*system"):
        load_cifar10(tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("where", ["archive", "folder"])
def test_a_truncated_binary_file_is_named(tmp_path, where):
    files, _ = official(CIFAR10, "binary")
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
    place(tmp_path, CIFAR10, "binary", files, where)
    with pytest.raises(DataError, match=r"data_batch_2\.bin has 9218 bytes, .*not a multiple of 3073.*truncated"):
        load_cifar10(tmp_path)


def test_an_empty_binary_file_is_named(tmp_path):
    files, _ = official(CIFAR100, "binary")
    place(tmp_path, CIFAR100, "binary", files | {"test.bin": b""}, "folder")
    with pytest.raises(DataError, match=r"test\.bin has 0 bytes.*3074"):
        load_cifar100(tmp_path)


def test_labels_outside_the_range_are_named(tmp_path):
    files, _ = official(CIFAR10, "binary")
    wrong = bytearray(files["test_batch.bin"])
    wrong[3073] = 10
    place(tmp_path, CIFAR10, "binary", files | {"test_batch.bin": bytes(wrong)}, "folder")
    with pytest.raises(DataError, match=r"test_batch\.bin: image 1 has the label 10, outside 0 \.\. 9"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [-1]}, r"image 0 has the label -1, outside 0 \.\. 9"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [0, 1]}, "not a CIFAR batch"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": ["0"]}, "not a CIFAR batch"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8)}, "not a CIFAR batch"),
        ({"data": np.zeros((1, 3072)), "labels": [0]}, "not a CIFAR batch"),
        ({"data": np.zeros((1, 3071), dtype=np.uint8), "labels": [0]}, "not a CIFAR batch"),
        ({"data": np.zeros((0, 3072), dtype=np.uint8), "labels": []}, "not a CIFAR batch"),
        ({b"\xff": 1, 3: 4}, "not a CIFAR batch"),
        ([1, 2], r"not a CIFAR batch: expected a dictionary with `data`, uint8 of shape \(n, 3072\).*`labels`"),
    ],
)
def test_other_pickles_are_named(tmp_path, batch, reason):
    files, _ = official(CIFAR10, "python")
    place(tmp_path, CIFAR10, "python", files | {"data_batch_4": python2_dumps(batch)}, "folder")
    with pytest.raises(DataError, match=rf"data_batch_4.*{reason}"):
        load_cifar10(tmp_path)


def test_a_missing_batch_is_named(tmp_path):
    files, _ = official(CIFAR10, "binary")
    del files["data_batch_5.bin"]
    place(tmp_path, CIFAR10, "binary", files, "folder")
    with pytest.raises(
        DataError, match=r"cifar-10-batches-bin has no data_batch_5\.bin; get the complete archive from https"
    ):
        load_cifar10(tmp_path)


def write_class_folders(root, classes, suffix, side=32):
    image = Image.fromarray(np.full((side, side, 3), 90, dtype=np.uint8))
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            image.save(root / part / name / f"0{suffix}")


@pytest.mark.parametrize(("suffix", "lossy"), [(".png", False), (".jpg", True)])
def test_class_folders_carry_a_caveat_if_they_are_lossy(tmp_path, suffix, lossy):
    write_class_folders(tmp_path, CIFAR10.classes, suffix)
    sets = load_cifar10(tmp_path)
    assert sets.name == "cifar10"
    assert sets.train.labels.tolist() == list(range(10))
    assert ("lossy" in sets.caveat and "published" in sets.caveat) == lossy
    assert (sets.caveat == "") != lossy


def test_class_folders_of_other_classes_or_sizes_are_refused(tmp_path):
    write_class_folders(tmp_path / "animals", ("ant", "bee"), ".png")
    with pytest.raises(
        DataError, match=r"holds the classes ant, bee, \.\.\., not the 10 of cifar10 .*load it as `folder`"
    ):
        load_cifar10(tmp_path / "animals")
    write_class_folders(tmp_path / "large", CIFAR10.classes, ".png", side=40)
    with pytest.raises(DataError, match=r"have 40x40 pixels, but those of cifar10 have 32x32"):
        load_cifar10(tmp_path / "large")


def test_something_else_is_not_overwritten_by_a_download(tmp_path):
    (tmp_path / "mnist.gz").write_bytes(b"x")
    with pytest.raises(
        DataError,
        match=r"no cifar10 in .*: expected cifar-10-binary\.tar\.gz or cifar-10-python\..* found mnist\.gz; choose",
    ):
        load_cifar10(tmp_path)
    with pytest.raises(DataError, match="but found that it is a file"):
        load_cifar10(tmp_path / "mnist.gz")


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder_is_filled_by_a_checked_download(tmp_path, exists):
    files, expected = official(CIFAR10, "binary")
    archive = place(tmp_path, CIFAR10, "binary", files, "archive")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    which = CIFAR10._replace(url=archive.as_uri(), sha256=digest)
    target = tmp_path / "target"
    if exists:
        target.mkdir()
        (target / ".gitkeep").touch()
    assert_same(load_cifar(which, target), expected)
    archive.unlink()  # the second time nothing is fetched
    assert_same(load_cifar(which, target), expected)


def test_an_altered_download_is_refused(tmp_path):
    files, _ = official(CIFAR10, "binary")
    archive = place(tmp_path, CIFAR10, "binary", files, "archive")
    which = CIFAR10._replace(url=archive.as_uri())
    with pytest.raises(
        DataError, match=r"instead of c4a38c50a1bc5f3a.*get cifar-10-binary\.tar\.gz from https.*put it into"
    ):
        load_cifar(which, tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_without_network_the_message_says_what_to_do(tmp_path):
    which = CIFAR10._replace(url="http://127.0.0.1:1/cifar-10-binary.tar.gz")
    with pytest.raises(
        DataError,
        match=r"without a network connection, get cifar-10-binary\.tar\.gz from "
        r"https://www\.cs\.toronto\.edu/~kriz/cifar\.html and put it into .*target",
    ):
        load_cifar(which, tmp_path / "target")


@pytest.mark.skipif(not REAL.is_dir(), reason="set SFUMATO_DATA to a folder that holds cifar10/ to test the real data")
def test_the_real_data_is_complete():
    sets = load_cifar10(REAL)
    assert (len(sets.train), len(sets.test)) == (50_000, 10_000)
    assert sets.train.labels.bincount().tolist() == [5_000] * 10
    assert sets.test.labels.bincount().tolist() == [1_000] * 10
    assert sets.train.image_shape == (3, 32, 32)
    # Sky and sea: the only two classes with more blue than red.
    for part in (sets.train, sets.test):
        tint = [part.images[part.labels == c].double().mean((0, 2, 3)) for c in range(10)]
        assert [c for c, t in zip(part.classes, tint, strict=True) if t[2] > t[0]] == ["airplane", "ship"]
    # The well-known channel means of the training set, which lossy files keep.
    means = sets.train.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
