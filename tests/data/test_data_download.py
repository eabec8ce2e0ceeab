import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sfumato.data.cifar import fetch
from sfumato.errors import DataError, StorageError

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = "https://example.org/page.html"


@pytest.fixture
def server():
    """Serves CONTENT at /file, half of it at /half, nothing elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/gone":
                self.send_error(404)
                return
            self.send_response(200)
            if self.path != "/unsized":
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/half" else CONTENT)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_the_file_arrives_with_progress(server, tmp_path):
    calls = []
    path = tmp_path / "new" / "data.bin"
    fetch(f"{server}/file", path, sha256=SHA256, page=PAGE, progress=lambda done, total: calls.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert calls[-1] == (2_560_000, 2_560_000)
    assert len(calls) >= 3


def test_an_unknown_length_is_reported_as_0(server, tmp_path):
    calls = []
    fetch(
        f"{server}/unsized",
        tmp_path / "d",
        sha256=SHA256,
        page=PAGE,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (2_560_000, 0)


@pytest.mark.parametrize(("name", "sha256"), [("half", SHA256), ("file", "0" * 64)])
def test_other_content_is_refused_and_removed(server, tmp_path, name, sha256):
    with pytest.raises(
        DataError, match=r"/(half|file).*(SHA-256|IncompleteRead).*get d\.bin from https://example\.org"
    ):
        fetch(f"{server}/{name}", tmp_path / "d.bin", sha256=sha256, page=PAGE)
    assert list(tmp_path.iterdir()) == []


def test_without_network_the_page_and_the_place_are_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"cannot download http://127\.0\.0\.1:1/d: .*refused.*get d\.bin from https://example\.org.* put it into",
    ):
        fetch("http://127.0.0.1:1/d", tmp_path / "d.bin", sha256=SHA256, page=PAGE)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server, tmp_path):
    with pytest.raises(DataError, match="cannot download .*/gone: .*Not Found"):
        fetch(f"{server}/gone", tmp_path / "d.bin", sha256=SHA256, page=PAGE)


def test_an_unwritable_folder_is_not_blamed_on_the_network(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write .*choose another folder"):
        fetch(f"{server}/file", tmp_path / "file" / "d.bin", sha256=SHA256, page=PAGE)
