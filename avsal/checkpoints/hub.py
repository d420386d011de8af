"""Fetching from the Hub through its own client, verified by us.

The client does not compare a file with its checksum, so avsal does, at every load: with the registry's sha256, or
with the one in the Hub's own listing. One lock per repository lets concurrent processes share one download.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from avsal.checkpoints.cache import Fetched, offline
from avsal.errors import WeightsError
from avsal.files import keep_secret, locked, redact, sha256_of

logger = logging.getLogger("avsal.zoo")


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
