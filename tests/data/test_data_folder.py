import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from sfumato.data import images as reading
from sfumato.data.folder import load_folder, load_unlabelled
from sfumato.errors import ConfigError, DataError
from sfumato.files import read_json, write_json


def test_images_come_in_the_order_of_classes_and_names(tmp_path, write_classes):
    written = write_classes(tmp_path, ("bee", "ant"))
    sets = load_folder(tmp_path)
    assert sets.name == "folder"
    assert sets.train.classes == ("ant", "bee")
    assert sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for part, images in (("train", sets.train), ("test", sets.test)):
        expected = np.concatenate([written[part]["ant"], written[part]["bee"]]).transpose(0, 3, 1, 2)
        assert np.array_equal(images.images.numpy(), expected)


def test_val_serves_as_test_and_other_files_are_ignored(tmp_path, write_classes):
    write_classes(tmp_path, parts=("train", "val"))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "train" / "ant" / "._0.png").write_text("x")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "ant" / "0.PNG")
    assert len(load_folder(tmp_path).train) == 6


def test_class_folders_without_a_split_are_split_always_in_the_same_way(tmp_path, write_classes):
    written = write_classes(tmp_path, parts=(".",), per_class=10)["."]
    sets = load_folder(tmp_path)
    assert sets.name == "folder"
    assert sets.train.classes == sets.test.classes == ("ant", "bee")
    assert sets.train.labels.tolist() == [0] * 8 + [1] * 8
    assert sets.test.labels.tolist() == [0] * 2 + [1] * 2
    every = [image.tobytes() for name in ("ant", "bee") for image in written[name].transpose(0, 3, 1, 2)]
    train, test = ([image.numpy().tobytes() for image in part.images] for part in (sets.train, sets.test))
    assert sorted(train + test) == sorted(every)
    # The split is part of every number that is reported: it may not move.
    assert [every.index(image) for image in test] == [2, 6, 13, 18]
    assert "no split of its own: 20% of the images of each class, drawn with seed 0" in sets.caveat
    assert load_folder(tmp_path, size=4).test.image_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("parts", "classes"),
    [
        (("train",), ("ant", "bee")),
        (("a/b", "a/c"), ("ant", "bee")),  # one level too high
        ((".",), ("images",)),  # one folder is no classification
        ((".",), ("Train", "Test")),  # parts, not classes
    ],
)
def test_what_is_no_unsplit_folder_either_says_both_layouts(tmp_path, write_classes, parts, classes):
    write_classes(tmp_path, classes, parts=parts)
    with pytest.raises(
        DataError,
        match=r"no class folders in .*: expected DIR/train/<class>/.* or DIR/val, or at least two class folders "
        r"DIR/<class>/<image>\.jpg, to be split here, but found",
    ):
        load_folder(tmp_path)


def test_an_empty_class_of_an_unsplit_folder_is_named(tmp_path, write_classes):
    write_classes(tmp_path, parts=(".",))
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder .*cow has no images \(found it empty\)"):
        load_folder(tmp_path)


def test_progress_counts_to_the_end(tmp_path, write_classes, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 2)
    write_classes(tmp_path)
    calls = []
    load_folder(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (12, 12)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) >= 6


def test_the_second_reading_comes_from_the_cache(tmp_path, write_classes, monkeypatch):
    write_classes(tmp_path)
    first = load_folder(tmp_path)
    monkeypatch.setattr(reading, "decoded", lambda *_: pytest.fail("read again"))
    second = load_folder(tmp_path)
    assert second.train.fingerprint() == first.train.fingerprint()
    assert second.test.fingerprint() == first.test.fingerprint()


def test_changed_bytes_of_the_same_size_and_time_are_read_again(tmp_path, write_classes):
    write_classes(tmp_path, suffix=".bmp")
    before = load_folder(tmp_path)
    path = tmp_path / "train" / "ant" / "0.bmp"
    status = path.stat()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = load_folder(tmp_path)
    assert int(after.train.images[0].max()) == 0
    assert after.train.fingerprint() != before.train.fingerprint()


def test_every_ending_folders_inside_class_folders_and_linked_ones_are_read(tmp_path, write_classes):
    write_classes(tmp_path)
    ant = tmp_path / "train" / "ant"
    (ant / "more" / "still").mkdir(parents=True)
    for number, name in enumerate(("a.jfif", "b.JPE", "c.gif", "more/d.png", "more/still/e.png")):
        picture = Image.fromarray(np.full((8, 8, 3), 40 * number, dtype=np.uint8))
        picture.save(ant / name, "JPEG" if number < 2 else "GIF" if number == 2 else "PNG")
    (ant / "more" / "round").symlink_to(ant)  # a loop
    (ant / "upwards").symlink_to(tmp_path / "train")  # one that would give ants the images of bees
    (tmp_path / "elsewhere").mkdir()
    (ant / "more" / "d.png").rename(tmp_path / "elsewhere" / "d.png")
    (ant / "linked").symlink_to(tmp_path / "elsewhere")
    sets = load_folder(tmp_path)
    assert len(sets.train) == 6 + 5
    assert sets.caveat == ""


def test_what_is_passed_over_is_told_and_links_to_nowhere_are_unreadable(tmp_path, write_classes):
    write_classes(tmp_path)
    for name in ("ant/a.heic", "ant/b.heic", "bee/notes", "stray.png"):
        (tmp_path / "train" / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "test" / "ant" / "pipe.png")
    (tmp_path / "train" / "ant" / ".hidden.png").write_bytes(b"x")
    sets = load_folder(tmp_path)
    told = r"\(2 with .heic, 2 with .png, 1 with no ending; the first is stray.png\)\."
    assert re.fullmatch(r"5 files in the folders are not read, .*" + told, sets.caveat)
    (tmp_path / "train" / "bee" / "gone.png").symlink_to("/not/there.png")
    with pytest.raises(DataError, match=r"cannot read 1 of 13 images: .*gone\.png \(No such file or directory\)"):
        load_folder(tmp_path)
    assert len(load_folder(tmp_path, skip_unreadable=True).train) == 6


def test_exact_repeats_are_counted_and_the_summary_says_what_there_is(tmp_path, write_classes):
    write_classes(tmp_path, ("ant", "bee"), per_class=4, side=(8, 6))
    train, test = tmp_path / "train", tmp_path / "test"
    (train / "bee" / "again.bmp").write_bytes(b"")
    with Image.open(train / "ant" / "0.png") as picture:
        picture.save(train / "bee" / "again.bmp")  # other bytes, the same pixels
    (train / "ant" / "3.png").unlink()
    for name in ("0.png", "1.png"):
        shutil.copy(train / "ant" / name, test / "bee" / name)
    sets = load_folder(tmp_path)
    assert sets.repeats() == (1, 2)
    assert sets.summary().splitlines() == [
        "folder: 8 training and 8 test images of 3x8x6 (channels x height x width) in 2 classes; the smallest, ant, "
        "has 3 training images",
        "1 training images repeat another one pixel for pixel",
        "1 training images have pixel for pixel the image of another class: no classifier tells those apart; correct "
        "their labels",
        "2 of 8 test images are training images, pixel for pixel: an attacker who learned from those has seen them, "
        "and every figure on the test set is too favourable to it",
    ]


def test_a_renamed_image_and_another_size_are_not_served_from_the_cache(tmp_path, write_classes):
    write_classes(tmp_path)
    before = load_folder(tmp_path)
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "ant" / "9.png")
    after = load_folder(tmp_path)
    assert np.array_equal(after.train.images[2], before.train.images[0])
    assert load_folder(tmp_path, size=4).train.image_shape == (3, 4, 4)
    assert load_folder(tmp_path).train.image_shape == (3, 8, 8)


def test_size_resizes_images_of_any_size(tmp_path, write_classes):
    write_classes(tmp_path)
    Image.fromarray(np.full((5, 9, 3), 70, dtype=np.uint8)).save(tmp_path / "train" / "bee" / "odd.png")
    sets = load_folder(tmp_path, size=(6, 4))
    assert sets.train.image_shape == (3, 6, 4)
    assert sets.train.images[-1].unique().tolist() == [70]
    with pytest.raises(ConfigError, match="size is 0; give a side of 1 to 4,096 pixels"):
        load_folder(tmp_path, size=0)


def test_different_sizes_need_a_size(tmp_path, write_classes):
    write_classes(tmp_path)
    Image.fromarray(np.zeros((5, 9, 3), dtype=np.uint8)).save(tmp_path / "train" / "bee" / "odd.png")
    with pytest.raises(DataError, match=r"different sizes: .*0\.png has 8x8 .*odd\.png has 5x9; give `size`"):
        load_folder(tmp_path)


def test_training_and_test_images_must_have_one_size(tmp_path, write_classes):
    write_classes(tmp_path, parts=("train",))
    write_classes(tmp_path, parts=("test",), side=(8, 6))
    with pytest.raises(DataError, match=r"different sizes: .*train.* has 8x8 .*test.* has 8x6; give `size`"):
        load_folder(tmp_path)


@pytest.mark.parametrize("content", ["nothing", "file", "images", "missing"])
def test_the_wrong_folder_says_what_is_expected_and_what_is_there(tmp_path, content):
    root = tmp_path / "data"
    found = {
        "nothing": "found it empty",
        "file": "found that it is a file",
        "images": r"found a\.png, b/",
        "missing": "found that it does not exist",
    }
    if content == "file":
        root.write_text("x")
    elif content != "missing":
        root.mkdir()
    if content == "images":
        (root / "a.png").write_bytes(b"")
        (root / "b").mkdir()
    with pytest.raises(DataError, match=rf"expected DIR/train/<class>/<image>\.jpg .*{found[content]}"):
        load_folder(root)


def test_a_long_listing_is_cut(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text("x")
    with pytest.raises(DataError, match=r"found 0\.txt, .*5\.txt and 3 more"):
        load_folder(tmp_path)


def test_images_without_class_folders_are_explained(tmp_path, write_classes):
    write_classes(tmp_path, parts=("test",))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no class folders in .*train: expected .* but found 0\.png"):
        load_folder(tmp_path)


def test_an_empty_class_is_named(tmp_path, write_classes):
    write_classes(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "readme.md").write_text("x")
    with pytest.raises(
        DataError, match=r"class folder .*cow has no images \(found readme\.md\); add some \(.*\.jpg.*\) or remove"
    ):
        load_folder(tmp_path)


def test_both_parts_need_the_same_classes(tmp_path, write_classes):
    write_classes(tmp_path, ("ant", "bee"), parts=("train",))
    write_classes(tmp_path, ("bee", "cow"), parts=("test",))
    with pytest.raises(
        DataError, match=r"same classes, but there is no cow in .*train and no ant in .*test; add or remove"
    ):
        load_folder(tmp_path)


def test_a_truncated_jpeg_is_named(tmp_path, write_classes):
    write_classes(tmp_path, suffix=".jpg")
    path = tmp_path / "test" / "bee" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cannot read 1 of 12 images: .*bee/1\.jpg \(.*\); replace them"):
        load_folder(tmp_path)


def test_a_damaged_or_forbidden_cache_does_not_stop_the_load(tmp_path, write_classes, own_cache, monkeypatch):
    write_classes(tmp_path)
    expected = load_folder(tmp_path).train.fingerprint()
    for file in own_cache.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:50])
    assert load_folder(tmp_path).train.fingerprint() == expected
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("SFUMATO_CACHE", str(blocked))
    assert load_folder(tmp_path).train.fingerprint() == expected


def _break(root, files):
    for index, file in enumerate(files):
        path = root / file
        path.write_bytes(path.read_bytes()[: 20 * index])  # empty, cut in the header, cut in the data


def test_broken_files_are_skipped_counted_and_named_where_asked(tmp_path, write_classes):
    written = write_classes(tmp_path, per_class=4)
    broken = ("train/ant/0.png", "train/bee/2.png", "test/ant/1.png")
    _break(tmp_path, broken)
    for _ in range(2):  # the second reading must not take an incomplete one for a complete one
        named = (
            r"cannot read 3 of 16 images: .*train/ant/0\.png .*; .*bee/2\.png .*; .*test/ant/1\.png .*--skip-unreadable"
        )
        with pytest.raises(DataError, match=named):
            load_folder(tmp_path)
        sets = load_folder(tmp_path, skip_unreadable=True)
        assert [one.file for one in sets.skipped] == [str(tmp_path / file) for file in broken]
        assert all("replace the file" in one.reason for one in sets.skipped)
        assert (len(sets.train), len(sets.test)) == (6, 7)
        assert sets.train.labels.tolist() == [0] * 3 + [1] * 3
        expected = np.concatenate([written["train"]["ant"][1:], written["train"]["bee"][[0, 1, 3]]])
        assert np.array_equal(sets.train.images.numpy(), expected.transpose(0, 3, 1, 2))


def test_a_part_of_nothing_but_broken_files_is_refused(tmp_path, write_classes):
    write_classes(tmp_path, per_class=1)
    _break(tmp_path, ("test/ant/0.png", "test/bee/0.png"))
    with pytest.raises(DataError, match=r"cannot read 2 of 4 images: .*test/ant/0\.png .*test/bee/0\.png"):
        load_folder(tmp_path, skip_unreadable=True)


def test_images_without_classes_are_read_as_unlabelled(tmp_path, write_classes):
    write_classes(tmp_path, classes=(".",), parts=("train", "test"), per_class=5)
    sets = load_unlabelled(tmp_path)
    assert (len(sets.train), len(sets.test), sets.labelled) == (5, 5, False)
    assert sets.train.classes == ("unlabelled",)
    whole = load_unlabelled(tmp_path / "train")
    assert (len(whole.train), len(whole.test)) == (4, 1)
    assert "no split of its own" in whole.caveat
    with pytest.raises(DataError, match="has no images"):
        load_unlabelled(tmp_path / "nowhere")


@pytest.mark.parametrize("size", ["64", (64,), (8, 8, 8), (8, "8"), True, 3.5, 0, 5000, float("nan")])
def test_a_size_that_is_none_is_refused(tmp_path, write_classes, size):
    write_classes(tmp_path)
    with pytest.raises(ConfigError, match="give a side of 1 to 4,096 pixels, or"):
        load_folder(tmp_path, size=size)


def test_names_that_are_no_utf_8_can_be_written_and_shown(tmp_path, write_classes):
    write_classes(tmp_path, ("ant", "caf\udce9"))
    (tmp_path / "train" / "ant" / "\udcff.heic").write_bytes(b"")
    (tmp_path / "train" / "ant" / "\udcfe.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"ant/\\xfe.png \(it is empty\)"):
        load_folder(tmp_path)
    sets = load_folder(tmp_path, skip_unreadable=True)
    assert sets.train.classes == ("ant", r"caf\xe9")
    assert sets.caveat.endswith(r"the first is ant/\xff.heic).")
    (sets.summary() + sets.caveat + "".join(sets.train.classes)).encode()
    # Other paths, such as that of the data, are written as they are and read back.
    write_json(tmp_path / "x.json", {"data_dir": "/caf\udce9"})
    assert read_json(tmp_path / "x.json") == {"data_dir": "/caf\udce9"}


def test_one_image_under_two_classes_is_said(tmp_path, write_classes):
    write_classes(tmp_path)
    shutil.copy(tmp_path / "train/ant/0.png", tmp_path / "train/ant/again.png")
    assert "another class" not in load_folder(tmp_path).summary()
    for name in ("0.png", "1.png"):
        shutil.copy(tmp_path / "train/ant" / name, tmp_path / "train/bee" / f"ant{name}")
    assert "\n2 training images have pixel for pixel the image of another class: " in load_folder(tmp_path).summary()
