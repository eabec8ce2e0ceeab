import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import data
from sfumato.data.folder import load_facescrub
from sfumato.errors import ConfigError, DataError


@pytest.fixture
def faces(tmp_path):
    """Three people with 10, 5 and 1 pictures of different sizes; the red value of a picture is its number."""
    root = tmp_path / "facescrub"
    number = 0
    for name, count in (("Ann_Ash", 10), ("Bob_Birch", 5), ("Cy_Cedar", 1)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((50 + i, 60, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            number += 1
    (root / "readme.txt").write_text("x")
    return root


def numbers(images):
    return images.images[:, 0, 0, 0].tolist()


def test_a_fifth_of_every_person_is_the_test_set_always_the_same(faces):
    sets = load_facescrub(faces)
    assert sets.name == "facescrub"
    assert sets.train.classes == sets.test.classes == ("Ann_Ash", "Bob_Birch", "Cy_Cedar")
    assert sets.train.image_shape == (3, 48, 48)
    assert sorted(numbers(sets.train) + numbers(sets.test)) == list(range(16))
    assert sets.test.labels.tolist() == [0, 0, 1]
    assert sets.train.labels.bincount().tolist() == [8, 4, 1]
    # The split is part of every number that is reported: it may not move.
    held_out = [2, 8, 10]
    assert numbers(sets.test) == held_out
    torch.manual_seed(5)
    assert numbers(load_facescrub(faces).test) == held_out
    assert numbers(data.load("facescrub", faces, seed=9, size=(20, 10)).test) == held_out


def test_the_caveat_says_which_split_and_which_copy(faces):
    caveat = load_facescrub(faces).caveat
    assert "no official split: 20% of the images of each person, drawn with seed 0, are the test set" in caveat
    assert "holds 16 of 106,863 listed images and 3 of 530 people" in caveat


def test_another_size(faces):
    assert data.load("facescrub", faces, size=32).train.image_shape == (3, 32, 32)
    assert data.load("facescrub", faces, size=(20, 10)).train.image_shape == (3, 20, 10)
    with pytest.raises(ConfigError, match="size is 0; give a side of 1 to 4,096 pixels"):
        load_facescrub(faces, size=0)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("missing", "that it does not exist"),
        ("empty", "it empty"),
        ("list", r"facescrub_actors\.txt"),
        ("split", "test/, train/"),
        ("deeper", "actors/, actresses/"),
    ],
)
def test_another_layout_says_where_to_get_it(tmp_path, content, found, write_classes):
    root = tmp_path / "faces"
    if content != "missing":
        root.mkdir()
    if content == "list":
        (root / "facescrub_actors.txt").touch()
    elif content == "split":
        write_classes(root)
    elif content == "deeper":
        write_classes(root, parts=("actors", "actresses"))
    with pytest.raises(
        DataError,
        match=rf"no FaceScrub in .*expected one folder per person, DIR/<identity>/<image>\.jpg, but found {found}; ask "
        r".* on http://vintage\.winklerbros\.net/facescrub\.html, download the images and crop",
    ):
        load_facescrub(root)


def test_a_person_without_pictures_is_named(faces):
    (faces / "Dee_Doe").mkdir()
    with pytest.raises(DataError, match=r"class folder .*Dee_Doe has no images \(found it empty\); add some"):
        load_facescrub(faces)
    with pytest.raises(ConfigError, match=r"pass data_dir \(--data-dir\), with one folder of images per person in it"):
        data.load("facescrub")
