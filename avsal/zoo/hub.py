"""Fetching files: from the Hub through its own client, from plain addresses with resume, always verified by us.

The Hub's client does not compare a file with its checksum, so avsal does, at every load: a registry's sha256, or
the one in the Hub's own listing. One lock per file lets concurrent processes share one download.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from avsal.errors import WeightsError

logger = logging.getLogger("avsal.zoo")

GITHUB = "https://github.com"
GITHUB_API = "https://api.github.com"
#: Attempts for one plain address; each goes on where the last one broke off.
ATTEMPTS = 5
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """A verified local file and where it came from."""

    path: Path
    origin: str
    sha256: str
    size: int
    #: Whether the file was already there.
    cached: bool = False


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache: the argument, else AVSAL_CACHE, else the user's cache folder of this system."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get("AVSAL_CACHE"):
        return Path(os.environ["AVSAL_CACHE"]).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("avsal", appauthor=False)


def offline(local_files_only: bool = False) -> bool:
    """Return whether nothing may be fetched: by argument, or by HF_HUB_OFFLINE."""
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return local_files_only or value in {"1", "ON", "YES", "TRUE"}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def redact(text: str) -> str:
    """Return a text without access tokens, passwords in addresses, and signed query strings."""
    text = re.sub(r"\b(hf|ghp|gho|github_pat)_[A-Za-z0-9_]{6,}", r"\1_…", text)
    text = re.sub(r"(?i)(bearer|token|authorization)([=:]?\s+|=)\S+", r"\1\2…", text)
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1…@", text)
    return re.sub(r"(https?://[^\s?]+)\?[^\s'\")]+", r"\1?…", text)


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the cache's lock for a name; other processes that want the same file wait."""
    from filelock import FileLock, Timeout

    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / (re.sub(r"[^\w.-]+", "--", name) + ".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("Another process is fetching %s; waiting for it.", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# -- the Hub ---------------------------------------------------------------------------------------------


def fetch_from_hub(
    repo: str,
    file: str,
    *,
    cache: Path,
    revision: str | None = None,
    sha256: str | None = None,
    local_files_only: bool = False,
    force: bool = False,
    token: str | bool | None = None,
) -> Fetched:
    """Return a file of a Hub repository, verified.

    Args:
        repo: user/name.
        file: path inside the repository.
        cache: avsal's cache; the Hub's own layout is kept below `hub/`.
        revision: branch, tag or commit; the main branch by default.
        sha256: what the file must have; without it the checksum in the Hub's listing counts.
        local_files_only: use the cache only.
        force: fetch even if it is cached.
        token: as huggingface_hub takes it; by default the one it has stored.

    Raises:
        WeightsError: not reachable, not there, not allowed, or the content is not what it must be.
    """
    from huggingface_hub import hf_hub_download

    def get(again: bool) -> Path:
        try:
            return Path(
                hf_hub_download(
                    repo,
                    file,
                    revision=revision,
                    cache_dir=cache / "hub",
                    local_files_only=offline(local_files_only),
                    force_download=again,
                    token=token,
                    endpoint=os.environ.get("HF_ENDPOINT") or None,
                )
            )
        except Exception as error:
            if not is_transport(error):
                raise
            raise WeightsError(explain(error, f"{repo}/{file}", offline(local_files_only))) from error

    with locked(cache, f"hub--{repo}"):
        blobs = cache / "hub" / f"models--{repo.replace('/', '--')}" / "blobs"
        if not offline(local_files_only):
            # Nobody else writes here while we hold the lock: what is unfinished was left by a killed process.
            for orphan in blobs.glob("*.incomplete"):
                orphan.unlink(missing_ok=True)
        before = {entry.name for entry in blobs.glob("*")}
        path = get(force)
        was_cached = path.resolve().name in before and not force
        fault = _fault(path, sha256)
        if fault and was_cached:
            logger.warning("The cached copy of %s/%s is damaged (%s); fetching it again.", repo, file, fault)
            _forget(path)
            path = get(True)
            was_cached, fault = False, _fault(path, sha256)
        if fault:
            _forget(path)
            raise WeightsError(f"{repo}/{file}: {fault}; the file was refused")
        origin = f"hub:{repo}@{_commit(path)}/{file}"
        return Fetched(path, origin, sha256_of(path), path.stat().st_size, was_cached)


def _commit(path: Path) -> str:
    # .../snapshots/<commit>/<file>
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "?"


def _forget(path: Path) -> None:
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _fault(path: Path, sha256: str | None) -> str | None:
    """Say what is wrong with a file of the Hub's cache, whose blob's name is the Hub's own checksum."""
    listed = path.resolve().name
    if sha256 is not None or re.fullmatch(r"[0-9a-f]{64}", listed):
        expected = sha256 or listed
        found = sha256_of(path)
        return None if found == expected else f"sha256 {found[:16]}…, expected {expected[:16]}…"
    if re.fullmatch(r"[0-9a-f]{40}", listed):
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return None if found == listed else f"git id {found[:12]}…, expected {listed[:12]}…"
    return None


def hub_files(repo: str, revision: str | None = None, token: str | bool | None = None) -> list[str]:
    """Return the paths of all files of a Hub repository.

    Raises:
        WeightsError: not reachable or not allowed.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token).list_repo_files(
            repo, revision=revision
        )
    except Exception as error:
        if not is_transport(error):
            raise
        raise WeightsError(explain(error, repo, False)) from error


def is_transport(error: Exception) -> bool:
    """Return whether an error comes from the way to a file and not from our own code."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return isinstance(error, (OSError, HfHubHTTPError, HFValidationError)) or type(error).__module__.split(
        "."
    )[0] in {"httpx", "httpx2", "httpcore", "hf_xet"}


def explain(error: Exception, what: str, is_offline: bool) -> str:
    """Return one sentence for people about why a download failed; it holds no token."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{what}: access must be granted first; accept the terms on its page and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what}: no such repository, or a private one (log in with `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: the repository has no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if is_offline:
            return (
                f"{what}: not in the cache, and fetching is switched off (HF_HUB_OFFLINE or local_files_only)"
            )
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    elif isinstance(error, errors.EntryNotFoundError):
        return f"{what}: the repository has no such file"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"{what}: the server answered {status}"
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return redact(f"{what}: {type(error).__name__}" + (f", {text}" if text else ""))


# -- plain addresses -------------------------------------------------------------------------------------


def fetch_url(
    url: str,
    *,
    cache: Path,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    local_files_only: bool = False,
) -> Fetched:
    """Return the file at an address, from the cache or fetched; a broken transfer goes on where it stopped.

    The standard library's client is used: the Hub's one is private, and cannot ask a server whether the first
    half of a file is still that of the same file (If-Range).

    Args:
        url: http or https.
        cache: avsal's cache; the file stands below `downloads/`.
        sha256: what the file must have.
        sha256_prefix: the beginning of it, where no more is known.
        local_files_only: use the cache only.

    Raises:
        WeightsError: not reachable, not there, or the content is not what it must be.
    """
    folder = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / safe_name(url)
    record = folder / "record.json"
    what = redact(url)
    with locked(cache, f"url--{folder.name}"):
        known = read_json(record)
        if path.is_file():
            digest = sha256_of(path)
            expected = sha256 or known.get("sha256")
            if digest == expected or (expected is None and digest.startswith(sha256_prefix or "")):
                return Fetched(path, url, digest, path.stat().st_size, cached=True)
            logger.warning("The cached copy of %s is damaged; fetching it again.", what)
            path.unlink()
        if offline(local_files_only):
            raise WeightsError(
                f"{what}: not in the cache, and fetching is switched off (HF_HUB_OFFLINE or local_files_only)"
            )
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / (path.name + ".part")
        _download(url, partial)
        digest = sha256_of(partial)
        if (sha256 and digest != sha256) or not digest.startswith(sha256_prefix or ""):
            partial.unlink()
            raise WeightsError(
                f"{what}: sha256 {digest[:16]}…, expected {(sha256 or sha256_prefix or '')[:16]}…; "
                "the file was refused"
            )
        os.replace(partial, path)
        write_json(record, {"url": what, "sha256": digest, "size": path.stat().st_size})
        (folder / (path.name + ".part.json")).unlink(missing_ok=True)
        return Fetched(path, url, digest, path.stat().st_size)


def safe_name(url: str) -> str:
    """Return a harmless file name from the last part of an address."""
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path).rsplit("/", 1)[-1]).lstrip(".")
    return name[-100:] or "file"


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """A redirect stays on the web, and never falls from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (urlsplit(req.full_url).scheme == "https" and scheme == "http"):
            raise urllib.error.URLError(f"refused to be redirected to {redact(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> Any:
    import avsal

    if urlsplit(url).scheme not in ("http", "https"):
        raise urllib.error.URLError("only http and https addresses are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": f"avsal/{avsal.__version__}", **headers})
    return urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT)


def _download(url: str, partial: Path) -> None:
    """Write the file at `url` to `partial`, going on from what is there if the server confirms that it fits."""
    import http.client
    import time

    state = partial.with_name(partial.name + ".json")
    reason = ""
    for attempt in range(ATTEMPTS):
        validator = read_json(state).get("validator")
        done = partial.stat().st_size if validator and partial.is_file() else 0
        headers = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}
        try:
            with _open(url, headers) as answer:
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
                raise WeightsError(
                    f"{redact(url)}: the server answered {error.code} {error.reason}"
                ) from error
            reason = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = redact(str(getattr(error, "reason", error)) or type(error).__name__)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s: %s; trying again.", redact(url), reason)
            time.sleep(min(2**attempt, 8))
    raise WeightsError(f"{redact(url)}: {reason} (tried {ATTEMPTS} times)")


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


# -- choosing and unpacking ------------------------------------------------------------------------------


def choose(names: Iterable[str], match: list[str], exclude: list[str], where: str) -> str:
    """Return the one name that fits all patterns of `match` and none of `exclude`, in any case.

    Raises:
        WeightsError: none or several fit; the names there are listed.
    """
    names = list(names)

    def fits(name: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase(name.lower(), pattern.lower())

    found = [
        name
        for name in names
        if all(fits(name, pattern) for pattern in match)
        and not any(fits(name, pattern) for pattern in exclude)
    ]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    wanted = " and ".join(match) + (f", not {' or '.join(exclude)}" if exclude else "")
    raise WeightsError(
        f"{where}: {'no file fits' if not found else f'{len(found)} files fit'} {wanted}; it holds: {shown or 'nothing'}"
    )


def release_asset(repo: str, tag: str, match: list[str], exclude: list[str]) -> tuple[str, str | None]:
    """Return the address and, where GitHub tells it, the sha256 of the one matching asset of a release.

    Raises:
        WeightsError: not reachable, or none or several assets fit.
    """
    import http.client

    url = f"{GITHUB_API}/repos/{repo}/releases/tags/{tag}"
    try:
        with _open(url, {"Accept": "application/vnd.github+json"}) as answer:
            release = json.load(answer)
        assets = {str(asset["name"]): asset for asset in release["assets"]}
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url}: {redact(str(getattr(error, 'reason', error)))}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{url}: the answer is no release listing") from error
    name = choose(assets, match, exclude, f"release {tag} of github.com/{repo}")
    digest = str(assets[name].get("digest") or "")
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    return f"{GITHUB}/{repo}/releases/download/{tag}/{name}", found.group(1) if found else None


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, or a zip that is not a PyTorch file."""
    if tarfile.is_tarfile(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("/data.pkl") for name in archive.namelist())


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Write one file of a tar or zip archive into `folder` and return its path.

    Only the bytes of that one regular file are copied, to a name made here: no path or link of the archive is
    ever followed.

    Raises:
        WeightsError: the archive is damaged, or has no such file, or more than one.
    """
    target = folder / safe_name(member)

    def pick(names: list[str]) -> str:
        def bare(name: str) -> str:
            return name.removeprefix("./")

        found = [name for name in names if bare(name) == member] or [
            name for name in names if bare(name).endswith("/" + member)
        ]
        if len(found) != 1:
            files = [bare(name) for name in names]
            raise WeightsError(
                f"{archive.name}: {'no' if not found else len(found)} member(s) called {member}; it holds: "
                + ", ".join(files[:12])
                + (", …" if len(files) > 12 else "")
            )
        return found[0]

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                name = pick([info.filename for info in bundle.infolist() if not info.is_dir()])
                with bundle.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
        else:
            with tarfile.open(archive) as tar:
                regular = {entry.name: entry for entry in tar if entry.isreg()}
                content = tar.extractfile(regular[pick(list(regular))])
                if content is None:
                    raise WeightsError(f"{archive.name}: {member} is no regular file")
                with content as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        target.unlink(missing_ok=True)
        raise WeightsError(f"{archive}: the archive is damaged ({error}); fetch it again") from error
    return target


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a small record file; a missing or damaged one counts as empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small record file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
