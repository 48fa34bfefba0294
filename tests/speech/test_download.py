"""Downloads against a local server that misbehaves as told, one behaviour for each request."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from overheard.errors import InputError
from overheard.speech.download import SUBSET_MD5, download_subset

SUBSET = "dev-clean"
NOISE = hashlib.shake_256(b"incompressible").digest(200_000)


def make_archive(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = make_archive(
    ("LibriSpeech/SPEAKERS.TXT", b"84 | F | dev-clean | 8.02 | A Reader\n"),
    ("LibriSpeech/dev-clean/84/121123/84-121123.trans.txt", b"84-121123-0000 GO\n"),
    ("LibriSpeech/dev-clean/84/121123/84-121123-0000.flac", NOISE),
)
MD5 = hashlib.md5(ARCHIVE).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers request i with `script[i]`, and with "whole" when the script has ended.

    Steps: "whole" (with ranges), "no-range", "cut:N" (N bytes of the body, then silence), a status such as "503".
    """

    def __init__(self, content: bytes, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.script = script
        self.requests: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/resources/12"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        step = server.script[len(server.requests)] if len(server.requests) < len(server.script) else "whole"
        server.requests.append((self.path, asked))
        if step.isdecimal():
            self.send_response(int(step))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and step != "no-range" else 0
        size = len(server.content)
        if start and start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body[: int(step[4:])] if step.startswith("cut:") else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(script: list[str] | None = None, content: bytes = ARCHIVE) -> Server:
        server = Server(content, script or [])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def download(server: Server, destination: Path, md5: str = MD5, max_retries: int = 3) -> tuple[Path, str]:
    said = io.StringIO()
    folder = download_subset(
        SUBSET,
        destination,
        mirror=server.address,
        md5=md5,
        max_retries=max_retries,
        first_wait=0.001,
        console=Console(file=said, width=200),
    )
    return folder, said.getvalue()


def assert_complete(destination: Path) -> None:
    """The subset is there, byte for byte, and nothing else."""
    corpus = destination / "LibriSpeech"
    assert {path.name for path in destination.iterdir()} == {"LibriSpeech"}
    assert (corpus / SUBSET / "84" / "121123" / "84-121123-0000.flac").read_bytes() == NOISE
    assert (corpus / "SPEAKERS.TXT").is_file()


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        ([], [None]),
        (["cut:100000"], [None, "bytes=100000-"]),
        (["cut:50000", "cut:50000", "cut:50000"], [None, "bytes=50000-", "bytes=100000-", "bytes=150000-"]),
        (["cut:100000", "no-range"], [None, "bytes=100000-"]),
        (["503", "503"], [None, None, None]),
        (["cut:100000", "503"], [None, "bytes=100000-", "bytes=100000-"]),
        (["cut:0"], [None, None]),
    ],
    ids=["whole", "cut-at-half", "cut-three-times", "range-ignored", "503-then-ok", "cut-then-503", "no-body"],
)
def test_download_survives(
    serve: Callable[..., Server], tmp_path: Path, script: list[str], ranges: list[str | None]
) -> None:
    server = serve(script)
    folder, _ = download(server, tmp_path)
    assert folder == tmp_path / "LibriSpeech" / SUBSET
    assert server.requests == [(f"/resources/12/{SUBSET}.tar.gz", asked) for asked in ranges]
    assert_complete(tmp_path)


def test_later_call_goes_on_where_the_first_gave_up(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"transfer failed.*; run it again, 40,000 bytes are kept in .*\.part"):
        download(serve(["cut:10000"] * 4), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{SUBSET}.tar.gz.part"}
    server = serve()
    download(server, tmp_path)
    assert [asked for _, asked in server.requests] == ["bytes=40000-"]
    assert_complete(tmp_path)


@pytest.mark.parametrize(("surplus", "requests"), [(0, 1), (7, 2)], ids=["complete", "longer-than-the-file"])
def test_part_that_needs_no_more_bytes(
    serve: Callable[..., Server], tmp_path: Path, surplus: int, requests: int
) -> None:
    (tmp_path / f"{SUBSET}.tar.gz.part").write_bytes(ARCHIVE + bytes(surplus))
    server = serve()
    download(server, tmp_path)
    assert len(server.requests) == requests
    assert_complete(tmp_path)


def test_complete_subset_is_left_alone(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    first, _ = download(server, tmp_path)
    second, said = download(server, tmp_path)
    assert first == second
    assert f"{SUBSET} is already complete" in said
    assert len(server.requests) == 1


def test_archive_put_there_by_hand_is_used_and_kept(serve: Callable[..., Server], tmp_path: Path) -> None:
    archive = tmp_path / f"{SUBSET}.tar.gz"
    archive.write_bytes(ARCHIVE)
    server = serve()
    folder, _ = download(server, tmp_path)
    assert (folder / "84").is_dir()
    assert not server.requests
    assert archive.read_bytes() == ARCHIVE


def test_wrong_checksum_leaves_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"checksum {MD5} instead of {'0' * 32}; the fetched file was deleted"):
        download(serve(), tmp_path, md5="0" * 32)
    assert not list(tmp_path.iterdir())


def test_wrong_checksum_of_archive_put_there_by_hand(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / f"{SUBSET}.tar.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match="delete the file to have it downloaded"):
        download(serve(), tmp_path)


def test_published_checksum_is_the_default(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"instead of {SUBSET_MD5[SUBSET]}"):
        download_subset(SUBSET, tmp_path, mirror=serve().address)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (make_archive((f"LibriSpeech/{SUBSET}/a", b"a"), ("../../outside.txt", b"x")), "cannot be unpacked.*outside"),
        (make_archive((f"LibriSpeech/{SUBSET}/a", b"a"), ("/../outside.txt", b"x")), "cannot be unpacked.*outside"),
        (make_archive(("LibriSpeech/test-clean/a", b"a")), f"holds no LibriSpeech/{SUBSET}"),
        (ARCHIVE[:100_000], "cannot be unpacked"),
        (b"<html>no archive</html>", "cannot be unpacked"),
    ],
    ids=["parent-path", "absolute-path", "other-subset", "truncated", "not-an-archive"],
)
def test_unusable_archive_is_not_unpacked(
    serve: Callable[..., Server], tmp_path: Path, content: bytes, found: str
) -> None:
    destination = tmp_path / "deep" / "corpus"
    with pytest.raises(InputError, match=found):
        download(serve(content=content), destination, md5=hashlib.md5(content).hexdigest())
    assert {path.name for path in destination.iterdir()} == {f"{SUBSET}.tar.gz"}
    assert not list(tmp_path.rglob("outside.txt"))


def test_refused_address(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(["404"])
    with pytest.raises(InputError, match="the server answered 404 Not Found; check the address"):
        download(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("step", "reason"),
    [("503", "too many 503 error responses"), ("cut:10", r"more expected\); run it again, 50 bytes are kept")],
    ids=["503", "cut"],
)
def test_failures_without_end(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, reason: str
) -> None:
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    server = serve([step] * 99)
    with pytest.raises(InputError, match=reason):
        download(server, tmp_path, max_retries=4)
    assert len(server.requests) == 5
    assert waits == pytest.approx([0.002, 0.004, 0.008])


def test_nobody_listens(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="the transfer failed"):
        download(server, tmp_path, max_retries=1)


def test_proxy_from_the_environment(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.server_address[1]}")
    download_subset(SUBSET, tmp_path, mirror="http://openslr.invalid", md5=MD5)
    assert proxy.requests == [(f"http://openslr.invalid/{SUBSET}.tar.gz", None)]


@pytest.mark.parametrize(
    ("subset", "mirror", "found"),
    [
        ("dev-cleen", "http://127.0.0.1:9", "subset: 'dev-cleen'; choose one of dev-clean, dev-other,"),
        (SUBSET, "ftp://example.org", "mirror: 'ftp://example.org/.*'; give an http:// or https:// address"),
        (SUBSET, "example.org", "mirror: "),
    ],
)
def test_wrong_arguments(tmp_path: Path, subset: str, mirror: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        download_subset(subset, tmp_path, mirror=mirror)


def test_destination_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        download_subset(SUBSET, tmp_path / "file", mirror="http://127.0.0.1:9")


def test_folder_of_another_origin_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech" / SUBSET).mkdir(parents=True)
    with pytest.raises(InputError, match="not from a finished download"):
        download_subset(SUBSET, tmp_path, mirror="http://127.0.0.1:9")
