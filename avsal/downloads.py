"""Downloads over the web, resumed and verified, and archives taken apart without following any path of theirs.

The standard library's client is used: it can ask a server whether the first half of a file is still that of the same
file (If-Range), which is what makes it safe to go on after a killed process.
"""

from __future__ import annotations

import codecs
import contextlib
import http.client
import logging
import lzma
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from avsal.errors import DownloadError
from avsal.files import Partial, disk_fault, explained, read_json, redact, safe_name, sha256_of, write_json

logger = logging.getLogger("avsal")

#: Attempts for one address; each goes on where the last one broke off.
ATTEMPTS = 5
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0
_CHUNK = 1 << 20


# -- fetching ----------------------------------------------------------------------------------------------


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """A redirect stays on the web, and never falls from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (urlsplit(req.full_url).scheme == "https" and scheme == "http"):
            raise urllib.error.URLError(f"refused to be redirected to {redact(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, headers: dict[str, str]) -> Any:
    """Return the answer to a request of an http or https address, to be closed by the caller."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise urllib.error.URLError("only http and https addresses are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": "avsal", **headers})
    return urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT)


def status_of(error: urllib.error.HTTPError) -> str:
    """Return what a server answered in our own words: its own may repeat what it was sent, tokens included."""
    error.close()
    return f"the server answered {error.code} {http.client.responses.get(error.code, '')}".rstrip()


def fault_of(error: BaseException) -> str:
    """Return why a connection failed, without secrets."""
    return redact(str(getattr(error, "reason", error)) or type(error).__name__)


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
) -> str:
    """Fetch a file, going on where an earlier attempt stopped if the server confirms that it is the same file.

    What has arrived lies beside the target as `<target>.part` until it is complete and verified.

    Args:
        url: http or https.
        target: the file to make.
        sha256: what it must have.
        sha256_prefix: the beginning of it, where no more is known.
        size: its size in bytes, if it is known; nothing beyond it is fetched.

    Returns:
        The sha256 of the file.

    Raises:
        DownloadError: not reachable, not there, keeps breaking off, or the content is not what it must be: another
            size or checksum, or text (a web page) in place of a file.
        OutputError: the disk is full or read-only.
    """
    partial = target.with_name(target.name + ".part")
    with explained(target, target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, partial, size)
        digest = sha256_of(partial)
        fault = None
        if (sha256 and digest != sha256) or not digest.startswith(sha256_prefix or ""):
            fault = f"sha256 {digest[:16]}…, expected {(sha256 or sha256_prefix or '')[:16]}…"
        elif size is not None and partial.stat().st_size != size:
            fault = f"{partial.stat().st_size} bytes, expected {size}"
        # A login or error page comes with the status 200 often enough.
        page = _page(partial)
        if page is not None and (fault is not None or not (sha256 or sha256_prefix)):
            fault = f"the server sent {page} in place of the file: see whether the address asks for a login"
        if fault is not None:
            partial.unlink()
            raise DownloadError(f"{redact(url)}: {fault}; the file was refused")
        os.replace(partial, target)
    return digest


def _page(path: Path) -> str | None:
    """Return what was sent in place of weights or of an archive, by its beginning; None if it may be one."""
    with path.open("rb") as file:
        start = file.read(2048)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start).strip()
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return None
    known = {"": "nothing", "<": "a web page", "{": "a JSON answer", "[": "a JSON answer"}
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer"
    return known.get(text[:1])


def _transfer(url: str, partial: Path, size: int | None) -> None:
    """Write the file at `url` to `partial`, going on from what is there if the server confirms that it fits."""
    state = partial.with_name(partial.name + ".json")
    reason = ""
    for attempt in range(ATTEMPTS):
        validator = read_json(state).get("validator")
        done = partial.stat().st_size if validator and partial.is_file() else 0
        headers = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}
        try:
            with open_url(url, headers) as answer:
                begin, total = _extent(answer)
                # A weak ETag does not promise equal bytes, so it cannot be used to go on.
                etag = answer.headers.get("ETag") or ""
                now = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
                if begin != (done if begin else 0) or (begin and now not in (None, validator)):
                    partial.unlink(missing_ok=True)
                    raise ConnectionError(f"another part of the file was sent than the one from {done} on")
                if size is not None and total is not None and total > size:
                    raise DownloadError(
                        f"{redact(url)}: {total} bytes, expected {size}; the file was refused"
                    )
                write_json(state, {"validator": now or (validator if begin else None)})
                with partial.open("ab" if begin else "wb") as file:
                    _copy(answer, file, total, begin, safe_name(url), size)
            have = partial.stat().st_size
            if size is not None and have > size:
                partial.unlink()
                raise DownloadError(
                    f"{redact(url)}: more than the {size} bytes expected; the file was refused"
                )
            if total is None or have == total:
                state.unlink(missing_ok=True)
                return
            reason = f"broke off after {have} of {total} bytes"
        except urllib.error.HTTPError as error:
            reason = status_of(error)
            if error.code == 416:  # the file there is shorter than our part of it: begin again
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise DownloadError(f"{redact(url)}: {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and disk_fault(error):
                raise
            reason = fault_of(error)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s: %s; trying again.", redact(url), reason)
            time.sleep(min(2**attempt, 8))
    kept = f"; what arrived is kept in {partial.name}: try again to go on" if partial.exists() else ""
    raise DownloadError(f"{redact(url)}: {reason} (tried {ATTEMPTS} times){kept}")


def _extent(answer: Any) -> tuple[int, int | None]:
    """Return at which byte an answer begins, and how long the whole file is, None if that is not told."""
    length = answer.headers.get("Content-Length") or ""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        length = ""
    if answer.status != 206:
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if found is None:
        return -1, None
    begin = int(found[1])
    total = int(found[2]) if found[2] != "*" else begin + int(length) if length.isdecimal() else None
    return begin, total


def _copy(
    answer: IO[bytes], file: IO[bytes], total: int | None, done: int, name: str, size: int | None
) -> None:
    from huggingface_hub.utils import tqdm

    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            if size is not None and file.tell() > size:
                return


# -- archives ----------------------------------------------------------------------------------------------


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, or a zip that is not a PyTorch file."""
    if tarfile.is_tarfile(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("/data.pkl") for name in archive.namelist())


def extract(archive: Path, folder: Path, only: Callable[[str], bool] | None = None) -> list[Path]:
    """Unpack the regular files of a tar or zip archive; links and devices are left out.

    Args:
        archive: the file.
        folder: where to.
        only: takes a member's name and returns whether to extract it.

    Returns:
        The files made.

    Raises:
        DownloadError: the archive is damaged, or holds a path outside the folder.
        OutputError: the disk is full or read-only.
    """
    names: list[str] = []
    with explained(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Everything is unpacked aside first: an archive's checksum is known only once all of it has been read.
    with _damaged(archive), contextlib.closing(Partial(folder / "unpacked")) as partial:
        for name, source in _members(archive, only):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise DownloadError(
                    f"{archive}: the member {name!r} would be written outside {folder}; the archive is not unpacked."
                )
            with explained(folder / path, partial.path):
                (partial.path / path).parent.mkdir(parents=True, exist_ok=True)
                with (partial.path / path).open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
            names.append(str(path))
        for name in dict.fromkeys(names):
            with explained(folder / name, everything=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial.path / name, folder / name)
    return [folder / name for name in dict.fromkeys(names)]


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Write one file of a tar or zip archive into `folder` and return its path.

    Only the bytes of that one regular file are copied, to a name made here: no path or link of the archive is
    ever followed.

    Raises:
        DownloadError: the archive is damaged, or has no such file, or more than one.
    """
    with _damaged(archive):
        names = [name for name, _ in _members(archive)]
        found = [name for name in names if name.removeprefix("./") == member] or [
            name for name in names if name.removeprefix("./").endswith("/" + member)
        ]
        if len(found) != 1:
            raise DownloadError(
                f"{archive.name}: {'no' if not found else len(found)} member(s) called {member}; it holds: "
                + ", ".join(name.removeprefix("./") for name in names[:12])
                + (", …" if len(names) > 12 else "")
            )
        target = folder / safe_name(member)
        for _, source in _members(archive, found[0].__eq__):
            with explained(target, folder), target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
    return target


@contextlib.contextmanager
def _damaged(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise DownloadError(
            f"{archive}: the archive is damaged ({error}); remove it and fetch it again."
        ) from error


def _members(archive: Path, only: Callable[[str], bool] | None = None) -> Iterator[tuple[str, IO[bytes]]]:
    """Give the regular files of an archive with their content, one after the other."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir() and (only is None or only(info.filename)):
                    with bundle.open(info) as source:
                        yield info.filename, source
        return
    with tarfile.open(archive) as tar:
        for entry in tar:
            if entry.isreg() and (only is None or only(entry.name)):
                content = tar.extractfile(entry)
                assert content is not None
                yield entry.name, content
        assert tar.fileobj is not None
        # The compression's checksum stands at the end; anything but zeros before it is a member whose header is broken.
        while rest := tar.fileobj.read(_CHUNK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("a header is broken")
