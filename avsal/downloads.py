"""Downloads over the web, resumed and verified, and archives taken apart without following any path of theirs.

The standard library's client is used: it can ask a server whether the first half of a file is still that of the same
file (If-Range), which is what makes it safe to go on after a killed process.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import lzma
import os
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
from avsal.files import Partial, explained, read_json, redact, safe_name, sha256_of, write_json

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


def download(url: str, target: Path, *, sha256: str | None = None, sha256_prefix: str | None = None) -> str:
    """Fetch a file, going on where an earlier attempt stopped if the server confirms that it is the same file.

    What has arrived lies beside the target as `<target>.part` until it is complete and verified.

    Args:
        url: http or https.
        target: the file to make.
        sha256: what it must have.
        sha256_prefix: the beginning of it, where no more is known.

    Returns:
        The sha256 of the file.

    Raises:
        DownloadError: not reachable, not there, keeps breaking off, or the content is not what it must be.
        OutputError: the disk is full or read-only.
    """
    partial = target.with_name(target.name + ".part")
    with explained(target, target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _transfer(url, partial)
        digest = sha256_of(partial)
        if (sha256 and digest != sha256) or not digest.startswith(sha256_prefix or ""):
            partial.unlink()
            raise DownloadError(
                f"{redact(url)}: sha256 {digest[:16]}…, expected {(sha256 or sha256_prefix or '')[:16]}…; "
                "the file was refused"
            )
        os.replace(partial, target)
    return digest


def _transfer(url: str, partial: Path) -> None:
    """Write the file at `url` to `partial`, going on from what is there if the server confirms that it fits."""
    state = partial.with_name(partial.name + ".json")
    reason = ""
    for attempt in range(ATTEMPTS):
        validator = read_json(state).get("validator")
        done = partial.stat().st_size if validator and partial.is_file() else 0
        headers = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}
        try:
            with open_url(url, headers) as answer:
                goes_on = answer.status == 206
                total = _total(answer, done if goes_on else 0)
                # A weak ETag does not promise equal bytes, so it cannot be used to go on.
                etag = answer.headers.get("ETag") or ""
                validator = (
                    etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
                )
                write_json(state, {"validator": validator})
                with partial.open("ab" if goes_on else "wb") as file:
                    _copy(answer, file, total, done if goes_on else 0, safe_name(url))
            size = partial.stat().st_size
            if total is None or size == total:
                state.unlink(missing_ok=True)
                return
            reason = f"broke off after {size} of {total} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the file there is shorter than our part of it: begin again
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise DownloadError(
                    f"{redact(url)}: the server answered {error.code} {error.reason}"
                ) from error
            reason = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = redact(str(getattr(error, "reason", error)) or type(error).__name__)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s: %s; trying again.", redact(url), reason)
            time.sleep(min(2**attempt, 8))
    kept = (
        f"; what arrived is kept in {partial.name}: run the command again to go on"
        if partial.exists()
        else ""
    )
    raise DownloadError(f"{redact(url)}: {reason} (tried {ATTEMPTS} times){kept}")


def _total(answer: Any, done: int) -> int | None:
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length = answer.headers.get("Content-Length")
    return int(length) + done if length is not None and length.isdigit() else None


def _copy(answer: IO[bytes], file: IO[bytes], total: int | None, done: int, name: str) -> None:
    from huggingface_hub.utils import tqdm

    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


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
        only: takes a member's name and says whether it is wanted.

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
        while tar.fileobj.read(_CHUNK):
            pass  # the compression's checksum stands at the end
