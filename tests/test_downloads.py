"""Downloads against a server that says what it is told to say, and archives that are not what they seem."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from avsal import downloads
from avsal.downloads import download, extract, extract_member
from avsal.errors import DataError, DownloadError, WeightsError

CONTENT = random.Random(0).randbytes(5000)
FLIPPED = Path(__file__).parent / "cases" / "flipped.tar.gz"

Answer = tuple[int, dict[str, Any], bytes]


class Server:
    """Gives each answer of a list once; the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Range"))
                status, headers, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response_only(status, headers.pop("reason", None))
                for name, value in {"Content-Length": len(body), "ETag": '"one"', **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/model.bin"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def cut(begin: int, end: int, **headers: Any) -> Answer:
    """The bytes begin..end of the content, as a connection that breaks off delivers them."""
    length = {"Content-Length": len(CONTENT) - begin}
    place = {"Content-Range": f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"} if begin else {}
    return (206 if begin else 200), {**length, **place, **headers}, CONTENT[begin:end]


def test_a_cut_download_goes_on_at_its_end(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(cut(0, 2000), cut(2000, 3500), cut(3500, 5000))
    digest = download(server.url, tmp_path / "x", sha256=hashlib.sha256(CONTENT).hexdigest(), size=5000)
    assert server.asked == [None, "bytes=2000-", "bytes=3500-"]
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "wrong",
    [
        cut(1000, 5000),  # what follows byte 1000, where byte 2000 was asked for
        cut(3000, 5000),
        cut(2000, 5000, **{"Content-Range": "bytes 2000"}),
        (206, {}, CONTENT[2000:]),  # no word about where it belongs
        cut(2000, 5000, ETag='"two"'),  # of another file
    ],
)
def test_a_range_of_another_place_or_file_is_not_appended(
    serve: Callable[..., Server], tmp_path: Path, wrong: Answer
) -> None:
    server = serve(cut(0, 2000), wrong, (200, {}, CONTENT))
    download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=2000-", None]


@pytest.mark.parametrize("told", [True, False])
def test_a_body_larger_than_the_known_size_is_refused_without_being_fetched(
    serve: Callable[..., Server], tmp_path: Path, told: bool
) -> None:
    headers = {} if told else {"Content-Length": "", "Connection": "close"}
    server = serve((200, headers, CONTENT * 2000))
    with pytest.raises(DownloadError, match=r"expected.* refused|4000 bytes expected"):
        download(server.url, tmp_path / "x", size=4000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * downloads._CHUNK
    assert len(server.asked) == 1


def test_a_body_smaller_than_the_known_size_is_refused(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="5000 bytes, expected 6000; the file was refused"):
        download(serve((200, {}, CONTENT)).url, tmp_path / "x", size=6000)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>" + b" " * 3000, "a web page"),
        (b"\xef\xbb\xbf\n <html>\xc3\xa4</html>", "a web page"),
        (b'{"error": "login required"}', "a JSON answer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer"),
        (b"", "nothing"),
    ],
)
@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_a_page_in_place_of_a_file_is_refused_and_not_kept(
    serve: Callable[..., Server], tmp_path: Path, body: bytes, said: str, kind: str
) -> None:
    server = serve((200, {"Content-Type": kind}, body), (200, {}, CONTENT))
    with pytest.raises(DownloadError, match=f"the server sent {said} in place of the file.*refused"):
        download(server.url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_both_sides_catch_a_failed_download(serve: Callable[..., Server], tmp_path: Path) -> None:
    url = serve((404, {}, b"")).url
    for kind in (DataError, WeightsError):
        with pytest.raises(kind, match="the server answered 404 Not Found"):
            download(url, tmp_path / "x")


def test_a_token_that_the_server_sends_back_is_not_printed(
    serve: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "plainwordasatoken")
    for status in (403, 503):
        url = serve((status, {"reason": "No entry for plainwordasatoken"}, b"plainwordasatoken")).url
        with pytest.raises(DownloadError) as caught:
            download(url, tmp_path / "x")
        said = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert f"the server answered {status}" in said
        assert "plainwordasatoken" not in said


# -- archives ----------------------------------------------------------------------------------------------


def packed(kind: str) -> bytes:
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name in "abc":
                bundle.writestr(f"top/{name}.bin", random.Random(name).randbytes(1500) + bytes(500))
        return target.getvalue()
    with tarfile.open(fileobj=target, mode=f"w:{kind}") as bundle:  # type: ignore[call-overload]
        for name in "abc":
            info = tarfile.TarInfo(f"top/{name}.bin")
            info.size = 2000
            bundle.addfile(info, io.BytesIO(random.Random(name).randbytes(1500) + bytes(500)))
    return target.getvalue()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_a_flipped_bit_anywhere_in_an_archive_gives_nothing_or_the_right_bytes(
    tmp_path: Path, kind: str
) -> None:
    whole = packed(kind)
    path, wrong = tmp_path / "archive", 0
    path.write_bytes(whole)
    right = {file.name: file.read_bytes() for file in extract(path, tmp_path / "right")}
    assert sorted(right) == ["a.bin", "b.bin", "c.bin"]
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        out = tmp_path / f"out{place}"
        try:
            found = {file.name: file.read_bytes() for file in extract(path, out)}
        except DownloadError:
            assert [file for file in out.rglob("*") if file.is_file()] == []
            wrong += 1
        else:
            assert all(right[name] == content for name, content in found.items() if name in right)
            assert len(found) == 3
    assert wrong > 50


def test_a_gzip_whose_checksum_is_wrong_is_refused_by_both_doors(tmp_path: Path) -> None:
    whole = packed("gz")
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with tarfile.open(bad) as bundle:  # which does not look at the checksum
        assert len(bundle.getmembers()) == 3
    for path in (bad, FLIPPED):
        with pytest.raises(gzip.BadGzipFile), gzip.open(path) as file:
            file.read()
        with pytest.raises(DownloadError, match="damaged"):
            extract(path, tmp_path / "out")
        with tarfile.open(path) as bundle:
            member = next(entry.name for entry in bundle if entry.isreg())
        with pytest.raises(DownloadError, match="damaged"):
            extract_member(path, member, tmp_path)
        assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []


def test_members_behind_a_broken_header_are_missed(tmp_path: Path) -> None:
    whole = bytearray(packed(""))
    whole[2 * 512 + 2048 + 100 - 512] ^= 64  # in the second member's header
    (tmp_path / "a.tar").write_bytes(bytes(whole))
    with pytest.raises(DownloadError, match="damaged"):
        extract(tmp_path / "a.tar", tmp_path / "out")
