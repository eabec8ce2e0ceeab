import numpy as np
import pytest
import torch
from audit_cases import split_model, tiny_subject
from PIL import Image

from sfumato.audit import DataOptions, Subject, audit_sets, other_images
from sfumato.audit.images import shuffled
from sfumato.data import ImageSet
from sfumato.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder, count=6):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{index}.png")


BARE = Subject("bare", split_model())


def test_three_broken_images_are_skipped_and_counted(tmp_path):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            write(tmp_path / part / name)
    for file in ("train/ant/0.png", "train/bee/3.png", "test/bee/5.png"):
        (tmp_path / file).write_bytes(b"no image")
    sets = audit_sets(BARE, DataOptions(data=str(tmp_path)))
    assert len(sets.skipped) == 3
    assert (len(sets.train), len(sets.test), sets.labelled) == (10, 11, True)


def test_a_folder_of_images_without_classes_is_not_labelled(tmp_path):
    write(tmp_path / "photos", 10)
    sets = audit_sets(BARE, DataOptions(data=str(tmp_path / "photos")))
    assert (len(sets.train), len(sets.test), sets.labelled) == (8, 2, False)
    assert (
        audit_sets(BARE, DataOptions(data="folder", data_dir=str(tmp_path / "photos"), limit=3)).train.images.shape[0]
        == 3
    )


def test_a_target_may_bring_its_own_images_and_options_override_them():
    subject = tiny_subject()
    assert audit_sets(subject, DataOptions()) is subject.sets
    assert len(audit_sets(subject, DataOptions(limit=7)).train) == 7
    assert audit_sets(subject, DataOptions(data="digits")).name == "digits"


def test_a_run_is_audited_on_its_own_images():
    subject = Subject("run", split_model(), data_options={"data": "digits", "data_dir": None, "size": None,
                                                          "limit": 90, "test_limit": 30, "seed": 0})  # fmt: skip
    sets = audit_sets(subject, DataOptions())
    assert (len(sets.train), len(sets.test)) == (90, 30)
    assert len(audit_sets(subject, DataOptions(data="digits")).test) == 359


def test_nobody_says_which_images(tmp_path):
    with pytest.raises(ConfigError, match="which images. Give --data"):
        audit_sets(BARE, DataOptions())
    with pytest.raises(DataError, match="there is no folder .*nowhere and no data set of that name"):
        audit_sets(BARE, DataOptions(data=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        audit_sets(BARE, DataOptions(data=str(tmp_path / "empty")))


def test_a_sample_is_part_of_every_larger_one():
    images = tiny_subject().sets.test
    small, large = (shuffled(images, most, 3, "x").images for most in (5, 20))
    assert torch.equal(small, large[:5])
    assert not torch.equal(large, shuffled(images, 20, 4, "x").images)


def test_other_images_are_as_many_as_the_victims_and_of_their_size(tmp_path):
    digits = audit_sets(BARE, DataOptions(data="digits")).train
    victim = digits.subset(range(20))
    assert other_images(DataOptions(), victim) is None
    same = other_images(DataOptions(other="digits"), victim)
    assert same.image_shape == victim.image_shape
    assert len(same) == 20
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):  # a grey ramp; at half its size it is a ramp again
        ramp = np.tile(np.linspace(0, 240, 16, dtype=np.uint8), (16, 1))
        Image.fromarray(np.repeat(ramp[:, :, None], 3, 2)).save(folder / f"{index}.png")
    coloured = ImageSet(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.long), ("a",))
    resized = other_images(DataOptions(other=str(folder)), coloured)
    assert resized.image_shape == (3, 8, 8)
    expected = np.linspace(0, 240, 16).reshape(8, 2).mean(1)
    np.testing.assert_allclose(resized.images[0, 0, 4], expected, atol=12)
    with pytest.raises(ConfigError, match="channels"):
        other_images(DataOptions(other=str(folder)), victim)
    with pytest.raises(ConfigError, match="other_dir"):
        other_images(DataOptions(other_dir="x"), victim)
    with pytest.raises(DataError, match="no folder"):
        other_images(DataOptions(other=str(tmp_path / "none")), victim)
