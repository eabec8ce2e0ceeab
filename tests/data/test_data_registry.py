import subprocess
import sys

import pytest

from sfumato import data
from sfumato.errors import ConfigError, DataError


def test_the_names():
    assert data.names() == [
        "digits",
        "fashion-mnist",
        "mnist",
        "cifar10",
        "cifar100",
        "tinyimagenet",
        "facescrub",
        "folder",
        "hub",
    ]


def test_digits_by_name():
    sets = data.load("digits", seed=2)
    assert sets.name == "digits"
    assert sets.train.fingerprint() == data.load("digits", None, seed=2).train.fingerprint()
    assert sets.train.fingerprint() != data.load("digits").train.fingerprint()


def test_digits_of_another_size_by_name():
    sets = data.load("digits", size=32)
    assert sets.train.image_shape == sets.test.image_shape == (1, 32, 32)
    assert sets.train.labels.tolist() == data.load("digits").train.labels.tolist()


def test_a_folder_by_name(tmp_path, write_classes):
    write_classes(tmp_path)
    calls = []
    sets = data.load("folder", str(tmp_path), size=4, progress=lambda done, total: calls.append((done, total)))
    assert sets.train.image_shape == (3, 4, 4)
    assert calls[-1] == (12, 12)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_by_name(tmp_path, name):
    (tmp_path / "x").touch()
    with pytest.raises(DataError, match=f"no {name} in "):
        data.load(name, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "kmnist"},
            "unknown data set 'kmnist'; choose one of digits, fashion-mnist, mnist, cifar10, cifar100, tinyimagenet,",
        ),
        ({"name": "cifar10"}, r"cifar10 needs a folder: pass data_dir \(--data-dir\), with the official archive"),
        ({"name": "folder"}, r"folder needs a folder: pass data_dir \(--data-dir\), with train/<class>/<image>"),
        (
            {"name": "digits", "data_dir": "x"},
            "digits come with the package and are not read from x; leave data_dir out",
        ),
        (
            {"name": "cifar10", "data_dir": "x", "size": 16},
            "size is for digits, fashion-mnist, mnist, facescrub, folder, hub; cifar10 has a size of its own",
        ),
        ({"name": "digits", "size": 0}, "size is 0; give a side of 1 to 4,096 pixels"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        data.load(**arguments)


def test_the_import_is_light():
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import sfumato.data;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new & {'PIL', 'simplejpeg', 'sklearn', 'skimage', 'matplotlib', 'scipy'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("data_dir", [5, b"/tmp", ["a"]])
def test_a_folder_is_a_path(data_dir):
    with pytest.raises(ConfigError, match="data_dir is .*; give a text or a path or None"):
        data.load("folder", data_dir)
