"""Where data are looked for, and downloads that break."""

import hashlib
import http.server
import threading
from pathlib import Path

import pooch
import pytest

from rims.errors import UserError
from rims.tasks import SequentialMNIST, files, smnist

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves CONTENT at any address on this machine. ``faults`` says what goes wrong, an answer each."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                outer.asked.append((self.path, asked))
                fault = outer.faults.pop(0) if outer.faults else ""
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "no range" else 0
                if fault == "absent":
                    self.send_error(404)
                    return
                if start >= len(CONTENT):
                    self.send_error(416)
                    return
                body = CONTENT[start:]
                self.send_response(206 if start else 200)
                if fault != "no length":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "altered":
                    body = bytes(len(body))
                self.wfile.write(body[: 3 * len(body) // 4] if fault == "broken" else body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr(files, "PAUSE_SECONDS", 0.0)
    monkeypatch.delenv("RIMS_DATA", raising=False)
    return tmp_path / "rims" / "mnist"


def leftovers(cache):
    return {path.name for path in cache.iterdir()} - {"file.gz", "file.gz.lock"}


def test_a_file_is_downloaded_once(server, cache, capsys):
    for _ in range(2):
        path = files.download([f"{server.url}/file.gz"], MD5, "mnist")
        assert path == cache / "file.gz"
        assert path.read_bytes() == CONTENT
    assert server.asked == [("/file.gz", None)]
    assert not leftovers(cache)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"downloading file.gz (0.5 MB) to {cache}\n")


def test_a_terminal_gets_a_bar(server, cache, capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    files.download([f"{server.url}/file.gz"], MD5, "mnist")
    out, err = capsys.readouterr()
    assert out == ""
    assert "file.gz" in err
    assert "downloading" not in err


def test_a_broken_download_goes_on_from_where_it_was(server, cache):
    server.faults = ["broken", "broken"]
    assert files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes() == CONTENT
    first = 3 * len(CONTENT) // 4
    second = first + 3 * (len(CONTENT) - first) // 4
    assert [asked for _, asked in server.asked] == [None, f"bytes={first}-", f"bytes={second}-"]
    assert not leftovers(cache)


def test_the_next_start_goes_on_too(server, cache):
    server.faults = ["broken"] * files.ATTEMPTS
    with pytest.raises(
        UserError, match=r"cannot download file.gz to .*: .* broke off after [\d,]+ of 512,000"
    ):
        files.download([f"{server.url}/file.gz"], MD5, "mnist")
    assert leftovers(cache) == {"file.gz.part"}
    server.asked.clear()
    assert files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(CONTENT) - len(CONTENT) // 64}-"]
    assert not leftovers(cache)


@pytest.mark.parametrize("fault", ["no range", "no length"])
def test_servers_that_know_less_are_served_too(server, cache, fault):
    server.faults = ["broken", fault]
    assert files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:999], bytes(999), CONTENT, CONTENT + b"more"])
def test_what_is_left_of_anything_does_no_harm(server, cache, left):
    cache.mkdir(parents=True)
    (cache / "file.gz.part").write_bytes(left)
    assert files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes() == CONTENT
    assert not leftovers(cache)


def test_an_altered_cache_is_downloaded_anew(server, cache):
    cache.mkdir(parents=True)
    (cache / "file.gz").write_bytes(CONTENT[:-1])
    assert files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes() == CONTENT


def test_the_second_mirror_is_asked_when_the_first_fails(server, cache):
    server.faults = ["absent"]
    urls = [f"{server.url}/one/file.gz", f"{server.url}/two/file.gz"]
    assert files.download(urls, MD5, "mnist").read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/one/file.gz", "/two/file.gz"]


@pytest.mark.parametrize(
    ("fault", "why"), [("absent", "HTTP Error 404"), ("altered", "MD5 hash of downloaded file")]
)
def test_a_file_that_cannot_be_had_is_one_line(server, cache, fault, why):
    server.faults = [fault] * files.ATTEMPTS
    with pytest.raises(UserError, match=f"cannot download file.gz to {cache}: .*{why}.*--data-dir") as caught:
        files.download([f"{server.url}/file.gz"], MD5, "mnist")
    assert "\n" not in str(caught.value)
    assert not (cache / "file.gz").exists()


def test_a_server_that_is_not_there(cache):
    with pytest.raises(UserError, match="cannot download file"):
        files.download(["http://127.0.0.1:9/file.gz"], MD5, "mnist")


def test_a_cache_that_cannot_be_written(server, cache):
    cache.parent.write_text("a file")
    with pytest.raises(UserError, match="cannot download file"):
        files.download([f"{server.url}/file.gz"], MD5, "mnist")


def test_several_at_once_download_once(server, cache):
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(files.download([f"{server.url}/file.gz"], MD5, "mnist").read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(server.asked) == 1


def test_without_a_data_folder_the_mirrors_are_asked(server, cache, monkeypatch):
    """And what they give is checked twice: as it came, and decompressed."""
    monkeypatch.setattr(smnist, "MIRRORS", (f"{server.url}/one", f"{server.url}/two"))
    monkeypatch.setattr(smnist, "ARCHIVE_MD5", dict.fromkeys(smnist.MD5, MD5))
    with pytest.raises(
        UserError, match=r"train-images-idx3-ubyte\.gz is truncated or damaged: Not a gzipped"
    ):
        SequentialMNIST().prepare()
    assert server.asked == [("/one/train-images-idx3-ubyte.gz", None)]


def test_a_named_folder_is_taken_at_its_word(server, cache, tmp_path, monkeypatch):
    """What it lacks is not downloaded."""
    monkeypatch.setattr(smnist, "MIRRORS", (server.url,))
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} has no MNIST file train-images-idx3-ubyte; looked for"):
        SequentialMNIST().prepare()
    assert not server.asked


def test_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", "")
    assert files.data_dir() is None
    monkeypatch.delenv("RIMS_DATA")
    assert files.data_dir() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("RIMS_DATA", "~/data")
    assert files.data_dir() == tmp_path / "data"
    monkeypatch.setenv("RIMS_DATA", "/nowhere")
    with pytest.raises(
        UserError, match=r"the data folder /nowhere does not exist \(--data-dir, or RIMS_DATA\)"
    ):
        files.data_dir()


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Is a directory"):
        files.read(tmp_path, MD5)
