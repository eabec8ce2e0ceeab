import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato import data
from sfumato.data import images as reading
from sfumato.data.folder import load_tinyimagenet
from sfumato.errors import ConfigError, DataError

REAL = Path(os.environ.get("SFUMATO_DATA", "/nonexistent")) / "tiny-imagenet-200"
WORDS = "n00000001\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n"


def plain(path, colour, side=64):
    """One colour survives JPEG almost unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, *np.shape(colour)), colour, dtype=np.uint8)).save(path, quality=95)


@pytest.fixture
def tiny(tmp_path):
    """The official layout with two classes of two images each, listed in another order than the sorted one."""
    root = tmp_path / "tiny-imagenet-200"
    for red, wnid in ((40, "n01443537"), (200, "n01629819")):
        plain(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", (red, 90, 120))
        plain(root / "train" / wnid / "images" / f"{wnid}_1.JPEG", red)  # grey
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    for i, red in enumerate((10, 60, 110)):
        plain(root / "val" / "images" / f"val_{i}.JPEG", (red, 90, 120))
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t0\t0\t9\t9\nval_2.JPEG\tn01629819\t0\t0\t9\t9\n"
    )
    (root / "wnids.txt").write_text("n01629819\nn01443537\n")
    (root / "words.txt").write_text(WORDS)
    plain(root / "test" / "images" / "test_0.JPEG", (0, 0, 0))
    return root


@pytest.mark.parametrize("inside", [True, False])
def test_the_official_layout(tiny, inside):
    sets = load_tinyimagenet(tiny if inside else tiny.parent)
    assert sets.name == "tinyimagenet"
    assert sets.train.classes == sets.test.classes == ("goldfish, Carassius auratus", "European fire salamander")
    assert sets.train.image_shape == (3, 64, 64)
    assert sets.train.labels.tolist() == [0, 0, 1, 1]
    assert sets.test.labels.tolist() == [1, 0, 1]
    middle = sets.train.images[:, :, 32, 32].numpy().astype(int)
    assert np.abs(middle - [[40, 90, 120], [40, 40, 40], [200, 90, 120], [200, 200, 200]]).max() <= 3
    assert np.abs(sets.test.images[:, 0, 32, 32].numpy().astype(int) - [10, 60, 110]).max() <= 3
    assert "official validation part" in sets.caveat
    assert "incomplete: 4 of 100,000 training images and 3 of 10,000 test images" in sets.caveat


def test_without_words_the_classes_are_called_by_their_wnids(tiny):
    (tiny / "words.txt").write_text(WORDS.splitlines()[1])
    assert load_tinyimagenet(tiny).test.classes == ("goldfish, Carassius auratus", "n01629819")
    (tiny / "words.txt").unlink()
    assert load_tinyimagenet(tiny).test.classes == ("n01443537", "n01629819")


def test_the_second_reading_comes_from_the_cache_unless_a_class_changed(tiny, monkeypatch):
    calls = []
    first = load_tinyimagenet(tiny, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (7, 7)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "decoded", lambda *_: pytest.fail("read again"))
        second = load_tinyimagenet(tiny)
    assert (first.train.fingerprint(), first.test.fingerprint()) == (
        second.train.fingerprint(),
        second.test.fingerprint(),
    )
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("val_2.JPEG\tn01629819", "val_2.JPEG\tn01443537"))
    assert load_tinyimagenet(tiny).test.labels.tolist() == [1, 0, 0]


def test_by_name(tiny):
    assert len(data.load("tinyimagenet", tiny).train) == 4
    with pytest.raises(ConfigError, match="tinyimagenet has a size of its own"):
        data.load("tinyimagenet", tiny, size=32)
    with pytest.raises(ConfigError, match=r"pass data_dir .* the unpacked http://cs231n\.stanford\.edu/tiny-imagenet"):
        data.load("tinyimagenet")


def test_a_missing_data_set_names_the_command_that_gets_it(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").touch()
    with pytest.raises(
        DataError,
        match=r"no TinyImageNet in .*no wnids\.txt, no train, .*found tiny-imagenet-200\.zip; get it with "
        r"`curl -LO http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip && unzip -q tiny-imagenet-200\.zip` and pass",
    ):
        load_tinyimagenet(tmp_path)
    with pytest.raises(DataError, match="found that it does not exist; get it with"):
        load_tinyimagenet(tmp_path / "nothing")


def damage(root, what):
    annotations = root / "val" / "val_annotations.txt"
    if what == "image":
        (root / "val" / "images" / "val_1.JPEG").unlink()
    elif what == "images":
        for path in (root / "val" / "images").iterdir():
            path.unlink()
    elif what == "annotation":
        annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:2]))
    elif what == "wnid":
        annotations.write_text(annotations.read_text().replace("n01443537", "n09999999"))
    elif what == "class":
        (root / "train" / "n01443537").rename(root / "train" / "elsewhere")
    elif what == "jpeg":
        path = root / "train" / "n01443537" / "images" / "n01443537_0.JPEG"
        path.write_bytes(path.read_bytes()[:-200])
    elif what == "side":
        for path in root.rglob("*.JPEG"):
            plain(path, (1, 2, 3), side=32)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("image", r"lacks annotated images \(val_1\.JPEG, 1 in all\); unpack tiny-imagenet-200\.zip again, from http"),
        ("images", r"val/images has no images \(it, 1 in all\); unpack"),
        ("annotation", r"without a class in val_annotations\.txt \(val_2\.JPEG, 1 in all\); unpack"),
        ("wnid", r"images of classes that wnids\.txt lacks \(n09999999, 1 in all\); unpack"),
        ("class", r"n01443537 has no images \(found that it does not exist\); unpack"),
        ("jpeg", r"cannot read 1 of 7 images: .*n01443537_0\.JPEG .*or remove them$"),
        ("side", "have 32x32 pixels, but those of tinyimagenet have 64x64; unpack"),
    ],
)
def test_damage_is_explained(tiny, what, text):
    damage(tiny, what)
    with pytest.raises(DataError, match=text):
        load_tinyimagenet(tiny)


@pytest.mark.slow
@pytest.mark.skipif(
    not REAL.is_dir(), reason="set SFUMATO_DATA to a folder that holds tiny-imagenet-200/ to test the real data"
)
def test_the_real_data_is_complete(tmp_path, monkeypatch):
    (tmp_path / "no cache").touch()
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "no cache"))  # it would write more than a gigabyte
    sets = load_tinyimagenet(REAL)
    assert (len(sets.train), len(sets.test)) == (100_000, 10_000)
    assert sets.train.image_shape == (3, 64, 64)
    assert sets.train.labels.bincount().tolist() == [500] * 200
    assert sets.test.labels.bincount().tolist() == [50] * 200
    assert len(set(sets.train.classes)) == 200
    assert sets.test.classes[sets.test.labels[0]] == "go-kart"  # val_0.JPEG, n03444034
    assert "incomplete" not in sets.caveat
    # The well-known channel means of the training set, here of every tenth image.
    means = sets.train.images[7::10].double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4802, 0.4481, 0.3975], abs=5e-3)
