from pathlib import Path

import numpy as np
import pytest

from sfumato.data.images import cache_entry, read_entry, write_entry


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8), np.array([0, 1, 2, 0, 1], dtype=np.int64)


def test_what_was_written_is_read(tmp_path, arrays):
    write_entry(tmp_path / "entry.npz", "key", arrays)
    images, labels = read_entry(tmp_path / "entry.npz", "key")
    assert np.array_equal(images, arrays[0])
    assert np.array_equal(labels, arrays[1])
    assert images.flags.writeable  # a copy, not a view of the file


def test_another_key_or_no_entry_gives_nothing(tmp_path, arrays):
    assert read_entry(tmp_path / "entry.npz", "key") is None
    write_entry(tmp_path / "entry.npz", "key", arrays)
    assert read_entry(tmp_path / "entry.npz", "other") is None
    write_entry(tmp_path / "entry.npz", "other", arrays)
    assert read_entry(tmp_path / "entry.npz", "key") is None


@pytest.mark.parametrize("damage", ["cut", "half", "pixel", "label", "empty", "gone", "pickle", "json", "folder"])
def test_damage_is_noticed(tmp_path, arrays, damage):
    path = tmp_path / "entry.npz"
    write_entry(path, "key", arrays)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "half":
        path.write_bytes(data[: len(data) // 2])
    elif damage in ("pixel", "label"):
        kept = arrays[damage == "label"].tobytes()
        data[data.index(kept) + 3] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    elif damage == "pickle":
        np.savez(path, images=np.array([{"a": 1}], dtype=object), labels=arrays[1], key=np.array("3 key"))
    elif damage == "json":
        path.write_text("{}")
    else:
        path.unlink()
        path.mkdir()
    assert read_entry(path, "key") is None


def test_an_entry_that_lacks_a_part_gives_nothing(tmp_path, arrays):
    np.savez(tmp_path / "entry.npz", key=np.array("3 key"), images=arrays[0])
    assert read_entry(tmp_path / "entry.npz", "key") is None
    np.save((tmp_path / "entry.npz").open("wb"), arrays[0])
    assert read_entry(tmp_path / "entry.npz", "key") is None


def test_an_unwritable_place_is_skipped(tmp_path, arrays):
    (tmp_path / "file").write_text("x")
    write_entry(tmp_path / "file" / "entry.npz", "key", arrays)
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
