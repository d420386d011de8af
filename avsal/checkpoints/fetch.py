"""Files of checkpoints: from the Hub, from plain addresses and GitHub releases, and what is on this machine already.

The Hub's own client does not compare a file with its checksum, so avsal does, at every load: with the registry's
sha256, or with the one in the Hub's listing. One lock per repository lets concurrent processes share one download.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import json
import logging
import os
import re
import urllib.error
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from avsal.checkpoints.registry import Checkpoint, HubSource, Origin, PackagedSource
from avsal.downloads import download, fault_of, open_url, status_of
from avsal.errors import WeightsError
from avsal.files import cache_folder, keep_secret, locked, read_json, redact, safe_name, sha256_of, write_json

logger = logging.getLogger("avsal.zoo")

GITHUB = "https://github.com"
GITHUB_API = "https://api.github.com"


@dataclass(frozen=True)
class Access:
    """How files may be fetched."""

    cache: Path
    local_files_only: bool = False
    force: bool = False
    token: str | bool | None = None

    def __post_init__(self) -> None:
        keep_secret(self.token)


@dataclass(frozen=True)
class Fetched:
    """A verified local file and where it came from."""

    path: Path
    origin: str
    sha256: str
    size: int
    #: Whether the file was already there.
    cached: bool = False


def offline(local_files_only: bool = False) -> bool:
    """Return whether nothing may be fetched: by argument, or by HF_HUB_OFFLINE."""
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return local_files_only or value in {"1", "ON", "YES", "TRUE"}


def conversion_folder(entry: Checkpoint, cache: Path) -> Path:
    """Return where the conversion of an entry's original is kept."""
    return cache / "converted" / entry.name


def fingerprint(entry: Checkpoint) -> str:
    """Identify what a conversion depends on, so that a changed entry is converted anew."""
    parts = {
        "model": entry.model,
        "arguments": entry.arguments,
        "origins": [
            source.model_dump(exclude={"how", "page", "licence", "size"})
            for source in entry.sources
            if isinstance(source, Origin)
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def packaged_path(source: PackagedSource) -> Path:
    """Return a packaged source's file in the installed package."""
    return Path(str(files("avsal"))) / source.file


def is_cached(entry: Checkpoint, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Return whether an entry can be loaded without fetching anything (checksums are not compared here)."""
    cache = cache_folder(cache_dir)
    for source in entry.sources:
        if isinstance(source, PackagedSource) and packaged_path(source).is_file():
            return True
        if isinstance(source, HubSource):
            folder = (
                cache / "hub" / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
            )
            if (folder / source.file).is_file():
                return True
    return read_json(conversion_folder(entry, cache) / "record.json").get("entry") == fingerprint(entry)


# -- the Hub -----------------------------------------------------------------------------------------------


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

    keep_hub_secrets(token)

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
            raise WeightsError(explain(error, f"{repo}/{file}", offline(local_files_only))) from None

    with locked(cache, f"hub--{repo}"):
        blobs = cache / "hub" / f"models--{repo.replace('/', '--')}" / "blobs"
        if not offline(local_files_only):
            # Nobody else writes here while we hold the lock: what is unfinished was left by a killed process.
            for orphan in blobs.glob("*.incomplete"):
                orphan.unlink(missing_ok=True)
        before = {entry.name for entry in blobs.glob("*")}
        path = get(force)
        was_cached = _blob(path).name in before and not force
        digest = sha256_of(path)
        fault = _fault(path, digest, sha256)
        if fault and was_cached:
            if offline(local_files_only):
                raise WeightsError(
                    f"{repo}/{file}: the cached copy is damaged ({fault}), and fetching is switched off"
                )
            logger.warning("The cached copy of %s/%s is damaged (%s); fetching it again.", repo, file, fault)
            _forget(path)
            path, was_cached = get(True), False
            digest = sha256_of(path)
            fault = _fault(path, digest, sha256)
        if fault:
            _forget(path)
            raise WeightsError(f"{repo}/{file}: {fault}; the file was refused")
        return Fetched(path, f"hub:{repo}@{_commit(path)}/{file}", digest, path.stat().st_size, was_cached)


def _commit(path: Path) -> str:
    # .../snapshots/<commit>/<file>
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "?"


def _blob(path: Path) -> Path:
    """Return the blob that a snapshot's file points to: its name is the Hub's own checksum.

    One step only: the blob may itself point into a store that repositories share, under other names.
    """
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _forget(path: Path) -> None:
    for link in (path.resolve(), _blob(path), path):
        link.unlink(missing_ok=True)


def _fault(path: Path, found: str, sha256: str | None) -> str | None:
    """Say what is wrong with a file of the Hub's cache; None if it is what it must be, as far as is known."""
    listed = _blob(path).name
    if sha256 is not None or re.fullmatch(r"[0-9a-f]{64}", listed):
        expected = sha256 or listed
        return None if found == expected else f"sha256 {found[:16]}…, expected {expected[:16]}…"
    if re.fullmatch(r"[0-9a-f]{40}", listed):
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return None if git == listed else f"git id {git[:12]}…, expected {listed[:12]}…"
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
        raise WeightsError(explain(error, repo, False)) from None


class _Redacted(logging.Filter):
    """Takes secrets out of what the Hub's client logs, which includes warnings in the server's words."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record's message."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True


def keep_hub_secrets(token: str | bool | None) -> None:
    """Keep the tokens that the Hub's client may send out of every message, its own included."""
    from huggingface_hub import get_token

    keep_secret(token)
    keep_secret(get_token())
    for handler in logging.getLogger("huggingface_hub").handlers:
        if not any(isinstance(known, _Redacted) for known in handler.filters):
            handler.addFilter(_Redacted())


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


# -- addresses and releases --------------------------------------------------------------------------------


def fetch_url(
    url: str,
    *,
    cache: Path,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    local_files_only: bool = False,
    force: bool = False,
) -> Fetched:
    """Return the file at an address, from the cache or fetched; a broken transfer goes on where it stopped.

    Args:
        url: http or https.
        cache: avsal's cache; the file stands below `downloads/`.
        sha256: what the file must have.
        sha256_prefix: the beginning of it, where no more is known.
        size: in bytes, where it is known.
        local_files_only: use the cache only.
        force: fetch even if it is cached.

    Raises:
        WeightsError: not reachable, not there, or the content is not what it must be.
    """
    folder = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / safe_name(url)
    record = folder / "record.json"
    what = redact(url)
    with locked(cache, f"url--{folder.name}"):
        known = read_json(record)
        if path.is_file() and not (force and not offline(local_files_only)):
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
        digest = download(url, path, sha256=sha256, sha256_prefix=sha256_prefix, size=size)
        write_json(record, {"url": what, "sha256": digest, "size": path.stat().st_size})
        return Fetched(path, url, digest, path.stat().st_size)


def forget_url(fetched: Fetched) -> None:
    """Remove a file that `fetch_url` gave, so that the next call fetches it again."""
    for path in (fetched.path, fetched.path.with_name("record.json")):
        path.unlink(missing_ok=True)


def answers(url: str) -> None:
    """Ask an address for its first byte.

    Raises:
        WeightsError: it does not answer, or not with a file.
    """
    try:
        with open_url(url, {"Range": "bytes=0-0"}) as answer:
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise WeightsError(status_of(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(fault_of(error)) from None
    if kind == "text/html":
        raise WeightsError("the server answered with a web page")


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
    count = f"{len(found)} files fit" if found else "no file fits"
    raise WeightsError(f"{where}: {count} {wanted}; it holds: {shown or 'nothing'}")


def release_asset(repo: str, tag: str, match: list[str], exclude: list[str]) -> tuple[str, str | None]:
    """Return the address and, where GitHub tells it, the sha256 of the one matching asset of a release.

    Raises:
        WeightsError: not reachable, or none or several assets fit.
    """
    url = f"{GITHUB_API}/repos/{repo}/releases/tags/{tag}"
    try:
        with open_url(url, {"Accept": "application/vnd.github+json"}) as answer:
            release = json.load(answer)
        assets = {str(asset["name"]): asset for asset in release["assets"]}
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{url}: {status_of(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url}: {fault_of(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{url}: the answer is no release listing") from error
    name = choose(assets, match, exclude, f"release {tag} of github.com/{repo}")
    digest = str(assets[name].get("digest") or "")
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    return f"{GITHUB}/{repo}/releases/download/{tag}/{name}", found.group(1) if found else None
