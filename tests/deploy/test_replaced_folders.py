"""A folder that is written aside and exchanged whole: what goes wrong meanwhile leaves the old one and nothing else."""

import pytest

from sfumato.deploy.files import replace_folder
from sfumato.errors import ConfigError, StorageError


@pytest.fixture
def target(tmp_path):
    """An older bundle."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("manifest.json", "stray"):
        (folder / name).write_text("old")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_older_bundle_is_replaced_whole(target):
    with replace_folder(target, "manifest.json") as fresh:
        (fresh / "manifest.json").write_text("new")
    assert names(target) == ["manifest.json"]
    assert (target / "manifest.json").read_text() == "new"
    assert names(target.parent) == ["bundle"]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(28, "No space left on device"), StorageError, "No space left on device; free some space"),
        (RuntimeError("any"), RuntimeError, "any"),
    ],
)
def test_half_a_bundle_leaves_the_old_one_and_nothing_else(target, error, raised, said):
    def fail() -> None:
        with replace_folder(target, "manifest.json") as fresh:
            (fresh / "half").write_text("")
            raise error

    with pytest.raises(raised, match=said):
        fail()
    assert names(target) == ["manifest.json", "stray"]
    assert names(target.parent) == ["bundle"]


def test_what_is_no_bundle_is_left_alone(target):
    (target / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="no bundle"), replace_folder(target, "manifest.json"):
        pass
    assert names(target) == ["stray"]
    assert names(target.parent) == ["bundle"]
