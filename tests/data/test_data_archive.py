import io
import tarfile

import pytest

from sfumato.data.cifar import read_members
from sfumato.errors import DataError

PAGE = "https://example.org/page.html"


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.SYMTYPE
                info.linkname = "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_named_members_are_read_and_nothing_is_written(tmp_path):
    path = write_tar(
        tmp_path / "a.tar.gz",
        [("../escape", b"x"), ("/abs", b"x"), ("set/two", b"22"), ("set/readme", b"r"), ("./set/one", b"1")],
    )
    assert read_members(path, "set", ("one", "two"), PAGE) == {"one": b"1", "two": b"22"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_the_folder_is_read_in_the_same_way(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    assert read_members(tmp_path, "ignored", ("one",), PAGE) == {"one": b"1"}


@pytest.mark.parametrize("kind", ["elsewhere", "link", "missing"])
def test_a_missing_member_is_named(tmp_path, kind):
    members = {"elsewhere": [("other/one", b"1")], "link": [("set/one", None)], "missing": []}[kind]
    path = write_tar(tmp_path / "a.tar.gz", [*members, ("set/two", b"2")])
    with pytest.raises(DataError, match=r"a\.tar\.gz has no one; get the complete archive from https://example\.org"):
        read_members(path, "set", ("one", "two"), PAGE)


def test_a_missing_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    with pytest.raises(DataError, match="has no two, three; get the complete archive"):
        read_members(tmp_path, "set", ("one", "two", "three"), PAGE)


def test_a_damaged_archive_is_named(tmp_path):
    import random

    noise = random.Random(0).randbytes(100_000)
    path = write_tar(tmp_path / "a.tar.gz", [("set/one", noise), ("set/two", noise)])
    whole = path.read_bytes()
    for cut in (0, 5, 30, 1_000, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            DataError, match=r"a\.tar\.gz is truncated or damaged .*delete it and get it anew from https"
        ):
            read_members(path, "set", ("one", "two"), PAGE)
    path.write_bytes(b"<html>not found</html>" * 50)
    with pytest.raises(DataError, match="truncated or damaged"):
        read_members(path, "set", ("one",), PAGE)


def test_a_member_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.data.cifar._MAX_BYTES", 10)
    path = write_tar(tmp_path / "a.tar.gz", [("set/one", b"x" * 11)])
    with pytest.raises(DataError, match=r"set/one claims 11 bytes"):
        read_members(path, "set", ("one",), PAGE)
