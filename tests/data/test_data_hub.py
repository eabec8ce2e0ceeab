import importlib.util
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import data
from sfumato.data.hub import load_hub
from sfumato.errors import ConfigError, DataError

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs the package datasets: pip install 'sfumato[hf]'"
)


def pictures(n=4, side=(8, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *side, 3), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def make(images, labels=None, *, names=("ant", "bee"), column="label", **more):
    """A split with a column of text, one of images and one or more of labels."""
    import datasets

    labels = [0, 1] * (len(images) // 2) if labels is None else labels
    features = {"id": datasets.Value("string"), "img": datasets.Image(), column: datasets.ClassLabel(names=list(names))}
    values = {"id": ["x"] * len(images), "img": images, column: labels}
    for name, (feature, value) in more.items():
        features[name], values[name] = feature, value
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


@pytest.fixture
def store(tmp_path):
    """Write splits with `save_to_disk`; gives the folder."""

    def write(**splits):
        import datasets

        datasets.disable_progress_bars()
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "stored"))
        return tmp_path / "stored"

    return write


@needs_datasets
@pytest.mark.parametrize(("name", "others"), [("test", ["validation"]), ("validation", []), ("valid", ["extra"])])
def test_a_stored_data_set(store, name, others):
    first, second = pictures(), pictures(2, seed=1)
    others = {other: make([png(p) for p in pictures(6, seed=2)]) for other in others}
    folder = store(**others, train=make([png(p) for p in first]), **{name: make([png(p) for p in second], [1, 1])})
    calls = []
    sets = data.load("hub", folder, progress=lambda done, total: calls.append((done, total)))
    assert sets.name == "hub"
    assert np.array_equal(sets.train.images.numpy(), first.transpose(0, 3, 1, 2))
    assert np.array_equal(sets.test.images.numpy(), second.transpose(0, 3, 1, 2))
    assert sets.train.labels.tolist() == [0, 1, 0, 1]
    assert sets.test.labels.tolist() == [1, 1]
    assert sets.train.classes == ("ant", "bee")
    assert f"its split `{name}` is the test set" in sets.caveat
    assert calls == [(4, 6), (6, 6)]


@needs_datasets
def test_grey_images_and_sizes(store):
    grey = np.full((8, 6), 70, dtype=np.uint8)
    folder = store(train=make([png(grey), png(pictures()[0])]), test=make([png(grey[:5]), png(grey)]))
    with pytest.raises(DataError, match=r"different sizes: image 0 of .*split test has 5x6 .*image 1 of .*has 8x6"):
        load_hub(folder)
    sets = load_hub(folder, size=(4, 3))
    assert sets.train.image_shape == sets.test.image_shape == (3, 4, 3)
    assert torch.equal(sets.train.images[0], torch.full((3, 4, 3), 70, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="size is -1"):
        load_hub(folder, size=-1)


@needs_datasets
def test_among_several_columns_of_labels_the_name_decides(store):
    import datasets

    coarse = (datasets.ClassLabel(names=["insect"]), [0, 0])
    images = [png(p) for p in pictures(2)]
    split = make(images, column="fine_label", coarse_label=coarse)
    assert load_hub(store(train=split, test=split)).train.classes == ("ant", "bee")


@needs_datasets
@pytest.mark.parametrize("what", ["label", "two labels", "two images"])
def test_unclear_columns_are_listed(store, what):
    import datasets

    images = [png(p) for p in pictures(2)]
    if what == "label":
        split = make(images).cast_column("label", datasets.Value("int64"))
        text = r"split train has the columns id \(Value\), img \(Image\), label \(Value\); needed are one Image and one"
    elif what == "two labels":
        split = make(images, column="a", b=(datasets.ClassLabel(names=["x"]), [0, 0]))
        text = r"a \(ClassLabel\), b \(ClassLabel\); needed .* `remove_columns`"
    else:
        split = make(images, mask=(datasets.Image(), images))
        text = r"mask \(Image\); needed"
    with pytest.raises(DataError, match=text):
        load_hub(store(train=split, test=split))


@needs_datasets
def test_missing_splits_and_unlike_splits_are_explained(store, tmp_path, monkeypatch):
    images = [png(p) for p in pictures(2)]
    with pytest.raises(DataError, match=r"has the splits train; a training needs `train` and one of test, validation"):
        load_hub(store(train=make(images)))
    make(images).save_to_disk(str(tmp_path / "single"))
    with pytest.raises(DataError, match=r"single has the splits \(one only\); .*`train_test_split`"):
        load_hub(tmp_path / "single")
    folder = store(train=make(images), test=make(images, names=("ant", "bee", "cow")))
    with pytest.raises(DataError, match="the splits of .* differ: .* 2 and 3 classes"):
        load_hub(folder)
    monkeypatch.setattr("datasets.load_dataset", lambda _: {"train": make(images).select([]), "test": make(images)})
    with pytest.raises(DataError, match="owner/name, split train is empty; choose a data set with images"):
        load_hub("owner/name")


@needs_datasets
@pytest.mark.parametrize("what", ["truncated", "16 bits"])
def test_a_bad_image_is_named(store, what):
    images = [png(p) for p in pictures(4, side=(40, 40))]
    if what == "truncated":
        images[2]["bytes"] = images[2]["bytes"][:-2000]
    else:
        images[2] = png(np.full((40, 40), 1000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"cannot read 2 of 8 images: image 2 of .*stored, split train .*; replace"):
        load_hub(store(train=make(images), test=make(images)))


@needs_datasets
def test_what_cannot_be_loaded_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"cannot load .*; a folder has to be one that `save_to_disk` wrote"):
        load_hub(tmp_path)
    asked = []

    def unreachable(name):
        asked.append(name)
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"cannot load the data set owner/name: Couldn't reach the Hub; check the name on https://hugg"
    ):
        data.load("hub", "owner/name")
    assert asked == ["owner/name"]


@needs_datasets
def test_a_name_of_the_hub_is_loaded_from_there(monkeypatch):
    import datasets

    split = make([png(p) for p in pictures()])
    monkeypatch.setattr("datasets.load_dataset", lambda name: datasets.DatasetDict(train=split, test=split))
    sets = load_hub("owner/name")
    assert len(sets.train) == 4
    assert sets.caveat.startswith("Read from owner/name;")


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"need the package datasets; run `pip install 'sfumato\[hf\]'`"):
        data.load("hub", "owner/name")
    with pytest.raises(ConfigError, match="hub needs a folder: pass data_dir .* or a name of the hub"):
        data.load("hub")


@needs_datasets
def test_a_split_without_labels_is_passed_over_and_16_bits_are_refused(store):
    images = [png(p) for p in pictures(2)]
    bare = make(images, [-1, -1])
    sets = load_hub(store(train=make(images), test=bare, validation=make(images, [1, 1])))
    assert sets.test.labels.tolist() == [1, 1]
    assert "its split `validation` is the test set. The labels of `test` are not published" in sets.caveat
    with pytest.raises(DataError, match="the splits train of .* have no labels"):
        load_hub(store(train=bare, test=make(images)))
    from test_data_images import sixteen_bit_png

    deep = make([images[0], {"bytes": sixteen_bit_png(3), "path": None}, {"bytes": b"x", "path": None}, images[1]])
    folder = store(train=deep, test=make(images))
    with pytest.raises(DataError, match=r"cannot read 2 of 6 images: image 1 of .*more than 8 bits.*; image 2 of"):
        load_hub(folder)
    sets = data.load("hub", folder, skip_unreadable=True)
    assert (len(sets.train), len(sets.skipped)) == (2, 2)
