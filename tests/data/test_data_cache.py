import json
from pathlib import Path

import numpy as np
import pytest

from sfumato.data.cache import cache_entry, read_entry, write_entry


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8), np.array([0, 1, 2, 0, 1], dtype=np.int64)


def test_what_was_written_is_read(tmp_path, arrays):
    write_entry(tmp_path / "entry", "key", arrays)
    images, labels = read_entry(tmp_path / "entry", "key")
    assert np.array_equal(images, arrays[0])
    assert np.array_equal(labels, arrays[1])
    assert images.flags.writeable  # a copy, not a view of the file


def test_another_key_or_no_entry_gives_nothing(tmp_path, arrays):
    assert read_entry(tmp_path / "entry", "key") is None
    write_entry(tmp_path / "entry", "key", arrays)
    assert read_entry(tmp_path / "entry", "other") is None
    write_entry(tmp_path / "entry", "other", arrays)
    assert read_entry(tmp_path / "entry", "key") is None


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "key.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "pickle"])
def test_damage_is_noticed(tmp_path, arrays, name, damage):
    write_entry(tmp_path, "key", arrays)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[len(data) - 3] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    else:
        np.save(path.open("wb"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    if (name, damage) == ("key.json", "cut"):  # only the final newline is lost
        assert read_entry(tmp_path, "key") is not None
    else:
        assert read_entry(tmp_path, "key") is None


def test_arrays_of_two_writers_are_not_mixed(tmp_path, arrays):
    write_entry(tmp_path, "key", arrays)
    other = (255 - arrays[0], arrays[1])
    write_entry(tmp_path / "other", "key", other)
    (tmp_path / "other" / "images.npy").rename(tmp_path / "images.npy")
    assert read_entry(tmp_path, "key") is None


def test_a_foreign_key_file_gives_nothing(tmp_path):
    for value in ([], {"format": 1}, "x", 3):
        (tmp_path / "key.json").write_text(json.dumps(value))
        assert read_entry(tmp_path, "key") is None


def test_an_unwritable_place_is_skipped(tmp_path, arrays):
    (tmp_path / "file").write_text("x")
    write_entry(tmp_path / "file" / "entry", "key", arrays)
    assert (tmp_path / "file").read_text() == "x"


def test_the_place_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SFUMATO_CACHE", "/mine")
    assert cache_entry(Path("/data"), None).is_relative_to("/mine/folders")
    monkeypatch.setenv("SFUMATO_CACHE", "")
    assert cache_entry(Path("/data"), None).is_relative_to("/xdg/sfumato/folders")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_entry(Path("/data"), None).is_relative_to("/home/me/.cache/sfumato/folders")


def test_without_a_home_there_is_no_place(monkeypatch):
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_entry(Path("/data"), None) is None


def test_sources_and_sizes_have_entries_of_their_own():
    entries = {cache_entry(Path(p), s) for p in ("/a", "/b") for s in (None, (8, 8), (8, 9))}
    assert len(entries) == 6
