"""A registry name, a file, or a Hub repository becomes entries and the configuration that rebuilds their module."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from avsal.checkpoints import fetch
from avsal.checkpoints.fetch import Access, fetch_from_hub, packaged_path
from avsal.checkpoints.file import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Loaded,
    read_checkpoint,
    read_config,
    read_safetensors,
)
from avsal.checkpoints.origins import Convert, converted, load_origin
from avsal.checkpoints.registry import (
    Checkpoint,
    HubOrigin,
    HubSource,
    Origin,
    PackagedSource,
    PageOrigin,
    ReleaseOrigin,
    Source,
    UrlOrigin,
    describe,
    entries,
    find,
)
from avsal.errors import AvsalError, WeightsError
from avsal.files import locked, redact, sha256_of

logger = logging.getLogger("avsal.zoo")

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def load_source(
    source: str | os.PathLike[str], access: Access, convert: Convert, revision: str | None = None
) -> Loaded:
    """Return entries and configuration of a checkpoint, before a network is built.

    Args:
        source: a registry name, the path of a checkpoint, or a Hub repository (see `avsal.from_pretrained`).
        access: how files may be fetched.
        convert: converts the entries of the authors' releases.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        WeightsError: nothing of that name, or no source worked.
    """
    text = os.fspath(source)
    if isinstance(source, str) and text in entries():
        if revision is not None:
            raise WeightsError(f"{text} is pinned by the registry; revision= is for Hub repositories.")
        return load_entry(find(text), access, convert)
    path = Path(text).expanduser()
    if path.exists():
        return Loaded(*read_checkpoint(path), text, sha256_of(path / WEIGHTS_FILE if path.is_dir() else path))
    looks_like_file = path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".tar") or text.startswith(
        (".", "/", "~")
    )
    if isinstance(source, str) and _REPO.fullmatch(text) and not looks_like_file:
        return _from_repo(text, revision, access)
    if isinstance(source, str) and not looks_like_file and "/" not in text and "\\" not in text:
        find(text)  # raises, with the names that are near
    raise WeightsError(f"{text}: there is no such file or folder.")


def _from_repo(repo: str, revision: str | None, access: Access) -> Loaded:
    options: dict[str, Any] = {
        "cache": access.cache,
        "local_files_only": access.local_files_only,
        "force": access.force,
        "token": access.token,
    }
    try:
        weights = fetch_from_hub(repo, WEIGHTS_FILE, revision=revision, **options)
        state, config = read_safetensors(weights.path)
        if config is None:
            # The commit that the weights came from, so that the two belong together.
            commit = weights.origin.rsplit("@", 1)[1].split("/", 1)[0]
            config = read_config(fetch_from_hub(repo, CONFIG_FILE, revision=commit, **options).path)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. Looked for the Hub repository {repo}, as there is no file of that name here. A checkpoint of "
            "the registry is called without user/: `avsal zoo list`."
        ) from error
    return Loaded(state, config, f"Hub repository {repo}", weights.sha256)


def load_entry(entry: Checkpoint, access: Access, convert: Convert) -> Loaded:
    """Return an entry's weights from the first source that works.

    Raises:
        WeightsError: none worked; each is listed with its reason, and what a person can do.
    """
    reasons: list[tuple[str, str]] = []
    with locked(access.cache, f"checkpoint--{entry.name}"):
        cached = None if access.force else converted(entry, access.cache)
        # A file in the package or in the Hub's cache is as near as a converted one, and is pinned.
        if cached is not None and not any(isinstance(source, PackagedSource) for source in entry.sources):
            return cached
        for source in entry.sources:
            try:
                if isinstance(source, PackagedSource):
                    return _from_package(entry, source)
                if isinstance(source, HubSource):
                    return _from_our_hub(entry, source, access)
                return load_origin(entry, source, access, convert)
            except AvsalError as error:
                reasons.append((describe(source), redact(str(error)).rstrip(".")))
                logger.info("%s: %s", entry.name, error)
    raise WeightsError(all_failed(entry, reasons))


def _from_package(entry: Checkpoint, source: PackagedSource) -> Loaded:
    path = packaged_path(source)
    if not path.is_file():
        raise WeightsError(f"{path} is missing from the installed package")
    found = sha256_of(path)
    if found != source.sha256:
        raise WeightsError(
            f"{path}: sha256 {found[:16]}…, expected {source.sha256[:16]}…; reinstall avsal"
            + (" (it is a Git LFS pointer: `git lfs pull`)" if path.stat().st_size < 400 else "")
        )
    state, config = read_safetensors(path)
    config = config or {"model": entry.model, "arguments": entry.arguments}
    return Loaded(state, config, entry.name, source.sha256)


def _from_our_hub(entry: Checkpoint, source: HubSource, access: Access) -> Loaded:
    fetched = fetch_from_hub(
        source.repo,
        source.file,
        cache=access.cache,
        revision=source.revision,
        sha256=source.sha256,
        local_files_only=access.local_files_only,
        force=access.force,
        token=access.token,
    )
    state, config = read_safetensors(fetched.path)
    config = config or {"model": entry.model, "arguments": entry.arguments}
    return Loaded(state, config, entry.name, fetched.sha256)


def page_of(source: Source) -> str | None:
    """Return the address where a person finds a source's file."""
    if isinstance(source, HubOrigin):
        return source.page or f"https://huggingface.co/{source.repo}"
    if isinstance(source, ReleaseOrigin):
        return source.page or f"{fetch.GITHUB}/{source.repo}/releases/tag/{source.tag}"
    if isinstance(source, (UrlOrigin, PageOrigin)):
        return source.page or source.url
    return None


def all_failed(entry: Checkpoint, reasons: list[tuple[str, str]]) -> str:
    """Return the message after every source of an entry failed.

    Args:
        entry: what was wanted.
        reasons: source and reason, in the order of the attempts.
    """
    lines = [f"{entry.name} could not be loaded; its sources were tried in this order:"]
    for number, (source, reason) in enumerate(reasons, 1):
        lines += [f"  {number}. {source}", f"     {reason[:400]}"]
    origins: dict[str, Origin] = {
        page: source for source in entry.sources if isinstance(source, Origin) and (page := page_of(source))
    }
    lines.append("What you can do:")
    if origins:
        lines.append(
            "  - Get the file by other means (a browser, a colleague's copy); the authors offer it at"
        )
        lines += [f"      {page}" for page in origins]
        format_name = next(iter(origins.values())).format or entry.model
        lines.append("    and make it known under this name:")
        lines.append(f"      avsal convert {format_name} FILE --name {entry.name}")
        if any(source.member for source in origins.values()):
            lines.append("    (FILE is the archive as it is, or the file taken out of it).")
    lines.append("  - Behind a proxy or without internet: set HTTPS_PROXY, or copy the cache folder")
    lines.append("    (AVSAL_CACHE) from a machine that has the weights.")
    lines.append(
        f"  - `avsal info {entry.name}` shows licence and sources; docs/zoo.md says what to do about dead links."
    )
    return redact("\n".join(lines))
