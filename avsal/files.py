"""Files that avsal writes: whole or not there at all. Also its cache folder, locks, checksums and small records."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from avsal.errors import AvsalError, OutputError

logger = logging.getLogger("avsal")

StrPath = str | os.PathLike[str]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
#: How libraries that do their own writing (HDF5, safetensors, NumPy) report the same.
_FULL_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|File too large"
    r"|\d+ requested and \d+ written"
)


# -- writing -----------------------------------------------------------------------------------------------


class Partial:
    """A file or a folder in the making: `path` is temporary until `keep` gives it its name.

    The temporary stands in a folder of a random name beside the target, which is locked as long as the writer lives,
    in whatever container or on whatever machine. Folders whose lock is free were left by killed runs: the next
    `Partial` beside them removes them.

    Args:
        target: the name it shall have; folders above it are made.

    Raises:
        OutputError: nothing can be written there.
    """

    def __init__(self, target: StrPath) -> None:
        self.target = Path(target)
        with explained(self.target, everything=True):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            for leftover in self.target.parent.glob(f".*.{'[0-9a-f]' * 8}.part"):
                _clean(leftover)
            self._folder, self._lock = _reserve(self.target)
        self.path = self._folder / self.target.name

    def keep(self, *, unique: bool = False) -> Path:
        """Give the file or folder its name, in place of an older one.

        Args:
            unique: take the name with a number added rather than replace anything.

        Returns:
            Where it is.

        Raises:
            OutputError: the name cannot be given.
        """
        try:
            with explained(self.target, everything=True):
                if self.path.is_file():  # some writers make files for the owner only, whatever the umask
                    self.path.chmod(self._folder.stat().st_mode & 0o666)
                return self._unique() if unique else self._replace()
        finally:
            self.discard()

    def _replace(self) -> Path:
        for attempt in range(20):
            try:
                if self.path.is_dir() and self.target.is_dir():
                    os.replace(self.target, self._folder / f"old{attempt}")
                os.replace(self.path, self.target)
                break
            except OSError as error:  # another process took or gave the name at the same moment
                if attempt == 19 or error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
        return self.target

    def _unique(self) -> Path:
        number, target = 1, self.target
        while True:
            try:
                os.link(self.path, target)
                return target
            except FileExistsError:
                number += 1
                target = self.target.with_stem(f"{self.target.stem}-{number}")
            except OSError:  # a file system without hard links
                if not target.exists():
                    os.replace(self.path, target)
                    return target
                number += 1
                target = self.target.with_stem(f"{self.target.stem}-{number}")

    def discard(self) -> None:
        """Remove what is temporary; does nothing after `keep`."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()

    close = discard


@contextlib.contextmanager
def writing(target: StrPath) -> Iterator[Path]:
    """Give a temporary path for a file or a folder, which takes its name when the block ends well; see `Partial`.

    Raises:
        OutputError: it cannot be written (read-only folder, full disk).
    """
    partial = Partial(target)
    try:
        with explained(partial.target, partial.path.parent):
            yield partial.path
        partial.keep()
    finally:
        partial.discard()


def write_text(target: StrPath, text: str, *, unique: bool = False) -> Path:
    """Write a text file as UTF-8, whole or not at all.

    Args:
        target: the file.
        text: what goes in.
        unique: add a number to the name rather than replace a file.

    Returns:
        The file.

    Raises:
        OutputError: it cannot be written.
    """
    with contextlib.closing(Partial(target)) as partial:
        with explained(target, everything=True):
            partial.path.write_text(text, encoding="utf-8")
        return partial.keep(unique=unique)


def write_json(target: StrPath, value: Mapping[str, Any]) -> None:
    """Write a small record, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(target, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a small record; a missing or damaged one counts as empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def explained(target: StrPath, inside: Path | None = None, *, everything: bool = False) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into an `OutputError` that names the target.

    Args:
        target: what is being written.
        inside: errors about paths in this folder are the target's too.
        everything: every OSError is.
    """
    try:
        yield
    except AvsalError:
        raise
    except Exception as error:
        reason = _write_fault(error, inside, everything)
        if reason is None:
            raise
        raise OutputError(
            f"{shown(target)}: cannot be written ({reason}). Free space, or give another folder."
        ) from error


def disk_fault(error: OSError) -> bool:
    """Return whether an error is about a full or read-only disk."""
    return error.errno in _FULL


def _write_fault(error: BaseException | None, inside: Path | None, everything: bool) -> str | None:
    """Return why writing failed, from an error or what caused it; None if it is another kind of error."""
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            name = str(error.filename or "")
            if everything or error.errno in _FULL or (inside is not None and str(inside) in name):
                return os.strerror(error.errno)
        if found := _FULL_WORDS.search(str(error)):
            return found[0] if found[0][0].isalpha() else os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def _reserve(target: Path) -> tuple[Path, FileLock]:
    stem = os.fsencode(target.name)[:200].decode(errors="ignore")  # names end at 255 bytes
    for _ in range(20):
        folder = target.parent / f".{stem}.{uuid.uuid4().hex[:8]}.part"
        lock = FileLock(folder / ".lock", thread_local=False)
        try:
            folder.mkdir()
            lock.acquire(blocking=False)
        except (FileExistsError, FileNotFoundError, Timeout):
            continue  # taken, or taken away by another run's cleaning before it was locked
        except (OSError, NotImplementedError) as error:
            if not folder.is_dir():
                raise
            logger.debug("%s cannot be locked (%s).", folder, error)
        if lock.is_locked and not (folder / ".lock").exists():
            lock.release()
            continue
        return folder, lock
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _clean(leftover: Path) -> None:
    """Remove what a killed run left; give an older result back that it had moved aside."""
    lock = FileLock(leftover / ".lock", thread_local=False)
    if not (leftover / ".lock").exists():
        return  # not ours, or just being made or removed
    try:
        lock.acquire(blocking=False)
        names = [entry.name for entry in leftover.iterdir() if entry.name != ".lock"]
        old = next((name for name in names if re.fullmatch(r"old\d+", name)), None)
        new = next((name for name in names if name != old), None)
        if old is not None and new is not None and not (leftover.parent / new).exists():
            os.replace(leftover / old, leftover.parent / new)
    except (Timeout, OSError, NotImplementedError):
        return  # somebody is writing there
    else:
        shutil.rmtree(leftover, ignore_errors=True)
    finally:
        lock.release()


# -- the cache and its locks -------------------------------------------------------------------------------


def cache_folder(cache_dir: StrPath | None = None) -> Path:
    """Return the cache: the argument, else AVSAL_CACHE, else the user's cache folder of this system."""
    chosen = cache_dir if cache_dir is not None else os.environ.get("AVSAL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("avsal", appauthor=False)


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the cache's lock for a name; other processes that want the same file wait."""
    folder = cache / "locks"
    lock = FileLock(folder / (re.sub(r"[^\w.-]+", "--", name) + ".lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("Another process is at work on %s; waiting for it.", name)
        lock.acquire()
    except OSError as error:
        # A cache that cannot be written, such as a shared one, still serves what is in it.
        logger.info("The cache %s cannot be locked (%s).", cache, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


# -- checksums and names -----------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(url: str) -> str:
    """Return a harmless file name from the last part of an address."""
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path).rsplit("/", 1)[-1]).lstrip(".")
    return name[-100:] or "file"


def shown(text: StrPath) -> str:
    """Return a name as it can be printed anywhere: bytes that are no UTF-8 and control characters are escaped."""
    text = os.fspath(text).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def csv_cells(row: Iterable[Any]) -> list[Any]:
    """Return a row for a CSV file whose texts no spreadsheet takes for a formula.

    A text that begins with `=`, `+`, `-`, `@` or a tab gets an apostrophe before it, which spreadsheets
    do not show; numbers, also written out, stay as they are.
    """
    cells = [cell.replace("\r", " ") if isinstance(cell, str) else cell for cell in row]
    return [
        f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell
        for cell in cells
    ]


_FORMULA = re.compile(r"\s*[=+@-]|[\t\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")

_SECRET_NAMES = r"[\w-]*(?:token|api[_-]?key|passw(?:or)?d|secret|authorization|bearer|signature)"
_SECRET_SHAPES = (
    (r"\b(hf|gh[a-z]|github_pat|glpat)([_-])[A-Za-z0-9_-]{6,}", r"\1\2…"),
    (rf"(?i)\b({_SECRET_NAMES}[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',;)]+", r"\1…"),
    (r"(?i)\b((?:bearer|basic|token)\s+)[\w.~+/=-]{16,}", r"\1…"),
    (r"(https?://)[^/\s@]+@", r"\1…@"),
    (r"(https?://[^\s?]+)\?[^\s'\")]+", r"\1?…"),
)
_secrets: set[str] = set()


def keep_secret(token: str | bool | None) -> None:
    """Let `redact` take a token out of every text, in whatever form a server sends it back."""
    if isinstance(token, str) and len(token) >= 8:
        _secrets.add(token)


def redact(text: str) -> str:
    """Return a text without access tokens, passwords in addresses, and signed query strings.

    Taken out are the values of environment variables that are named like secrets, the tokens that `keep_secret` was
    told, and what looks like one.
    """
    named = {
        v for k, v in os.environ.items() if re.search(r"(?i)token|secret|passw|api_?key", k) and len(v) >= 8
    }
    for secret in sorted(named | _secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    for shape, replacement in _SECRET_SHAPES:
        text = re.sub(shape, replacement, text)
    return text
