"""The one way to weights: a registry name, a file, or a Hub repository becomes a module."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from avsal.errors import AvsalError, WeightsError
from avsal.zoo import hub
from avsal.zoo.conversion import convert, convert_backbone, read_state_dict
from avsal.zoo.registry import (
    Checkpoint,
    HubOrigin,
    HubSource,
    Origin,
    PackagedSource,
    PageOrigin,
    ReleaseOrigin,
    UrlOrigin,
    entries,
    find,
)
from avsal.zoo.store import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    build,
    config_of,
    read_checkpoint,
    read_config,
    read_safetensors,
    write_checkpoint,
)

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

logger = logging.getLogger("avsal.zoo")

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Loaded:
    """Entries and configuration of a checkpoint, before a network is built."""

    state: dict[str, Tensor]
    config: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Access:
    """How files may be fetched."""

    cache: Path
    local_files_only: bool = False
    force: bool = False
    token: str | bool | None = None


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Any:
    """Return a model with its weights, in eval mode.

    A registry name is looked for in the cache, then in the entry's sources in their order: inside the package, on
    the Hub, and last the authors' own release, which is converted and kept in the cache. Every file is compared
    with its sha256, also the cached ones.

    Args:
        source: a registry name ("stavis-audiovisual-fold1"), the path of a checkpoint (a folder of
            `save_pretrained`, a safetensors file, a Lightning `.ckpt`), or a Hub repository ("user/name").
        revision: branch, tag or commit of a Hub repository.
        cache_dir: in place of AVSAL_CACHE or the user's cache folder.
        local_files_only: fetch nothing. HF_HUB_OFFLINE=1 does the same.
        device: where the module goes; the CPU by default.
        dtype: type of its floating-point entries; float32 by default, whatever the file stores.
        strict: False accepts missing and unexpected entries, with a warning that names them.
        force_download: fetch even what is cached.
        token: access token for the Hub; by default the stored one. It is never printed or written.

    Returns:
        The `SaliencyModule` (for entries of the task "backbone": the backbone's `nn.Module`).

    Raises:
        WeightsError: nothing of that name, no source worked (each is listed with its reason), a checksum differs,
            or the entries do not fit the module.
    """
    access = Access(hub.cache_folder(cache_dir), local_files_only, force_download, token)
    loaded = _load(source, revision, access)
    module: nn.Module
    if "backbone" in loaded.config:
        module = convert_backbone(str(loaded.config["backbone"]), loaded.state)
    else:
        module = _fill(build(loaded.config, loaded.where), loaded, strict)
    module = module.to(device=device, dtype=dtype) if device is not None or dtype is not None else module
    return module.eval()


def load_state(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> dict[str, Tensor]:
    """Return only the entries of a checkpoint, under our names, in float32, on the CPU.

    Args:
        source: what `from_pretrained` takes.
        revision: branch, tag or commit of a Hub repository.
        cache_dir: in place of AVSAL_CACHE or the user's cache folder.
        local_files_only: fetch nothing.
        token: access token for the Hub.

    Raises:
        WeightsError: as `from_pretrained`.
    """
    loaded = _load(source, revision, Access(hub.cache_folder(cache_dir), local_files_only, token=token))
    if "backbone" in loaded.config:
        return dict(convert_backbone(str(loaded.config["backbone"]), loaded.state).state_dict())
    return {name: _single(value) for name, value in loaded.state.items()}


def checkpoint_config(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the configuration of a checkpoint that is on this machine or can be fetched."""
    return _load(source, None, Access(hub.cache_folder())).config


def is_cached(entry: Checkpoint, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Return whether an entry can be loaded without fetching anything (checksums are not compared here)."""
    cache = hub.cache_folder(cache_dir)
    for source in entry.sources:
        if isinstance(source, PackagedSource) and _packaged_path(source).is_file():
            return True
        if isinstance(source, HubSource):
            folder = (
                cache / "hub" / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
            )
            if (folder / source.file).is_file():
                return True
    record = hub.read_json(_converted(entry, cache) / "record.json")
    return record.get("entry") == _fingerprint(entry)


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _fill(module: SaliencyModule, loaded: Loaded, strict: bool) -> SaliencyModule:
    from avsal.nn.state import load_exact

    state = {name: _single(value) for name, value in loaded.state.items()}
    if strict:
        return load_exact(module, state, what=f"checkpoint {loaded.where}")
    own = module.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise WeightsError(f"{loaded.where}: no entry fits {type(module).__name__}, also with strict=False.")
    module.load_state_dict(fitting, strict=False)
    for label, names in (
        ("keep their initial values", set(own) - set(fitting)),
        ("not used", set(state) - set(fitting)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:20]) + (", …" if len(names) > 20 else "")
            logger.warning("%s: %d entries %s: %s", loaded.where, len(names), label, shown)
    return module


# -- finding -----------------------------------------------------------------------------------------------


def _load(source: str | os.PathLike[str], revision: str | None, access: Access) -> Loaded:
    text = os.fspath(source)
    if isinstance(source, str) and text in entries():
        if revision is not None:
            raise WeightsError(f"{text} is pinned by the registry; revision= is for Hub repositories.")
        return load_entry(find(text), access)
    path = Path(text).expanduser()
    if path.exists():
        return Loaded(*read_checkpoint(path), where=text)
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
        weights = hub.fetch_from_hub(repo, WEIGHTS_FILE, revision=revision, **options)
        state, config = read_safetensors(weights.path)
        if config is None:
            # The commit that the weights came from, so that the two belong together.
            commit = weights.origin.rsplit("@", 1)[1].split("/", 1)[0]
            config = read_config(hub.fetch_from_hub(repo, CONFIG_FILE, revision=commit, **options).path)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. Looked for the Hub repository {repo}, as there is no file of that name here. A checkpoint of "
            "the registry is called without user/: `avsal zoo list`."
        ) from error
    return Loaded(state, config, f"Hub repository {repo}")


def load_entry(entry: Checkpoint, access: Access) -> Loaded:
    """Return an entry's weights from the first source that works.

    Raises:
        WeightsError: none worked; each is listed with its reason, and what a person can do.
    """
    reasons: list[tuple[str, str]] = []
    with hub.locked(access.cache, f"checkpoint--{entry.name}"):
        cached = None if access.force else _from_conversion(entry, access.cache)
        # A file in the package or in the Hub's cache is as near as a converted one, and is pinned.
        if cached is not None and not any(isinstance(source, PackagedSource) for source in entry.sources):
            return cached
        for source in entry.sources:
            try:
                if isinstance(source, PackagedSource):
                    return _from_package(entry, source)
                if isinstance(source, HubSource):
                    return _from_our_hub(entry, source, access)
                return _from_origin(entry, source, access)
            except AvsalError as error:
                reasons.append((describe(source), hub.redact(str(error)).rstrip(".")))
                logger.info("%s: %s", entry.name, error)
    raise WeightsError(_all_failed(entry, reasons))


def _packaged_path(source: PackagedSource) -> Path:
    return Path(str(files("avsal"))) / source.file


def _from_package(entry: Checkpoint, source: PackagedSource) -> Loaded:
    path = _packaged_path(source)
    if not path.is_file():
        raise WeightsError(f"{path} is missing from the installed package")
    found = hub.sha256_of(path)
    if found != source.sha256:
        raise WeightsError(
            f"{path}: sha256 {found[:16]}…, expected {source.sha256[:16]}…; reinstall avsal"
            + (" (it is a Git LFS pointer: `git lfs pull`)" if path.stat().st_size < 400 else "")
        )
    state, config = read_safetensors(path)
    return Loaded(state, config or {"model": entry.model, "arguments": entry.arguments}, entry.name)


def _from_our_hub(entry: Checkpoint, source: HubSource, access: Access) -> Loaded:
    fetched = hub.fetch_from_hub(
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
    return Loaded(state, config or {"model": entry.model, "arguments": entry.arguments}, entry.name)


# -- the authors' releases ---------------------------------------------------------------------------------


def _from_origin(entry: Checkpoint, source: Origin, access: Access) -> Loaded:
    if isinstance(source, PageOrigin):
        raise WeightsError(f"must be downloaded by hand: {source.how}")
    if hub.offline(access.local_files_only):
        raise WeightsError(
            "not converted yet, and fetching is switched off (HF_HUB_OFFLINE or local_files_only)"
        )
    fetched = _fetch_origin(source, access)
    _same_as_first(entry, fetched, access.cache)
    folder = store_conversion(entry, source, fetched, access.cache)
    if isinstance(source, (UrlOrigin, ReleaseOrigin)) and source.member is None:
        # Converted, the original is a second copy of the same numbers; an archive serves further entries.
        fetched.path.unlink(missing_ok=True)
    return Loaded(*_ours(folder), where=entry.name)


def _fetch_origin(source: Origin, access: Access) -> hub.Fetched:
    if isinstance(source, HubOrigin):
        revision = source.revision
        file = hub.choose(
            hub.hub_files(source.repo, revision, access.token),
            source.match,
            source.exclude,
            f"hub:{source.repo}",
        )
        fetched = hub.fetch_from_hub(
            source.repo,
            file,
            cache=access.cache,
            revision=revision,
            sha256=source.sha256,
            force=access.force,
            token=access.token,
        )
        if not fetched.sha256.startswith(source.sha256_prefix or ""):
            raise WeightsError(
                f"{fetched.origin}: sha256 {fetched.sha256[:16]}…, expected {source.sha256_prefix}…"
            )
        return fetched
    sha256 = source.sha256
    if isinstance(source, ReleaseOrigin):
        url, listed = hub.release_asset(source.repo, source.tag, source.match, source.exclude)
        sha256 = sha256 or listed
    elif isinstance(source, UrlOrigin):
        url = source.url
    else:
        raise WeightsError(f"nothing can be fetched from {describe(source)}")
    return hub.fetch_url(url, cache=access.cache, sha256=sha256, sha256_prefix=source.sha256_prefix)


def _same_as_first(entry: Checkpoint, fetched: hub.Fetched, cache: Path) -> None:
    """Record the sha256 of the first fetch; refuse a file that has changed since."""
    path = cache / "origins" / f"{entry.name}.json"
    known = hub.read_json(path).get("sha256")
    if known is None:
        hub.write_json(
            path, {"origin": hub.redact(fetched.origin), "sha256": fetched.sha256, "size": fetched.size}
        )
        logger.info("%s: sha256 %s recorded on first fetch", entry.name, fetched.sha256)
    elif known != fetched.sha256:
        raise WeightsError(
            f"{hub.redact(fetched.origin)}: the file has changed since it was first fetched (sha256 "
            f"{fetched.sha256[:16]}…, then {str(known)[:16]}…); delete {path} if that is known to be right"
        )


def store_conversion(
    entry: Checkpoint, source: Origin, fetched: hub.Fetched, cache: Path, dtype: torch.dtype | None = None
) -> Path:
    """Convert an authors' file for an entry and keep the result in the cache.

    Args:
        entry: what the file is.
        source: the origin it came from: its format, member and prefix apply.
        fetched: the file.
        cache: avsal's cache.
        dtype: storage type of floating-point entries.

    Returns:
        The folder with `model.safetensors`, `config.json` and `record.json`.

    Raises:
        WeightsError: the file is damaged, wants to run code, or does not fit the entry's model.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=cache) as work:
        path = fetched.path
        if source.member is not None and hub.is_archive(path):
            path = hub.extract_member(path, source.member, Path(work))
        state = read_state_dict(path, source.prefix)
    extra: dict[str, Any] = {
        "name": entry.name,
        "task": entry.task,
        "data": entry.data,
        "licence": entry.licence.model_dump(),
        "source": {
            "origin": hub.redact(fetched.origin),
            "member": source.member,
            "format": source.format or entry.model,
            "sha256": fetched.sha256,
            "size": fetched.size,
        },
    }
    if entry.is_backbone:
        import avsal

        convert_backbone(source.format or entry.model, state)
        # The published names stay: the backbone's own door reads them again.
        config = {"backbone": source.format or entry.model, "avsal_version": avsal.__version__, **extra}
    else:
        module = convert(source.format or entry.model, state, **entry.arguments)
        state, config = module.state_dict(), config_of(module, **extra)
    folder = write_checkpoint(_converted(entry, cache), state, config, dtype)
    hub.write_json(
        folder / "record.json",
        {
            "sha256": hub.sha256_of(folder / WEIGHTS_FILE),
            "entry": _fingerprint(entry),
            "source": extra["source"],
        },
    )
    return folder


def _converted(entry: Checkpoint, cache: Path) -> Path:
    return cache / "converted" / entry.name


def _fingerprint(entry: Checkpoint) -> str:
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


def _from_conversion(entry: Checkpoint, cache: Path) -> Loaded | None:
    """Return an earlier conversion from the cache, if it is whole and still fits the entry."""
    folder = _converted(entry, cache)
    record = hub.read_json(folder / "record.json")
    if not record or record.get("entry") != _fingerprint(entry):
        return None
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or hub.sha256_of(weights) != record.get("sha256"):
        logger.warning("The cached copy of %s is damaged; fetching it again.", entry.name)
        weights.unlink(missing_ok=True)
        (folder / "record.json").unlink(missing_ok=True)
        return None
    return Loaded(*_ours(folder), where=entry.name)


def _ours(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state, config = read_safetensors(folder / WEIGHTS_FILE)
    return state, config if config is not None else read_config(folder / CONFIG_FILE)


# -- words -------------------------------------------------------------------------------------------------


def describe(source: Any) -> str:
    """Return a source in a few words."""
    if isinstance(source, PackagedSource):
        return f"package: avsal/{source.file}"
    if isinstance(source, HubSource):
        return f"hub: {source.repo}@{source.revision[:8]}/{source.file}"
    if isinstance(source, HubOrigin):
        return f"authors' Hub repository: {source.repo} ({' '.join(source.match)})"
    if isinstance(source, ReleaseOrigin):
        return f"authors' release: github.com/{source.repo} {source.tag} ({' '.join(source.match)})"
    member = f" → {source.member}" if source.member else ""
    if isinstance(source, UrlOrigin):
        return f"authors' file: {source.url}{member}"
    return f"page: {source.url}{member}"


def page_of(source: Any) -> str | None:
    """Return the address where a person finds a source's file."""
    if isinstance(source, HubOrigin):
        return source.page or f"https://huggingface.co/{source.repo}"
    if isinstance(source, ReleaseOrigin):
        return source.page or f"{hub.GITHUB}/{source.repo}/releases/tag/{source.tag}"
    if isinstance(source, (UrlOrigin, PageOrigin)):
        return source.page or source.url
    return None


def _all_failed(entry: Checkpoint, reasons: list[tuple[str, str]]) -> str:
    lines = [f"{entry.name} could not be loaded; its sources were tried in this order:"]
    for number, (source, reason) in enumerate(reasons, 1):
        lines += [f"  {number}. {source}", f"     {reason[:400]}"]
    origins: Mapping[str, Origin] = {
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
    return "\n".join(lines)
