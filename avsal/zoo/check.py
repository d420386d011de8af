"""Checks of registry entries beyond the schema: models, arguments, packaged files, and addresses."""

from __future__ import annotations

import urllib.error

from avsal.checkpoints import web
from avsal.checkpoints.cache import packaged_path
from avsal.checkpoints.registry import (
    Checkpoint,
    HubOrigin,
    HubSource,
    Origin,
    PackagedSource,
    ReleaseOrigin,
    UrlOrigin,
)
from avsal.checkpoints.words import describe
from avsal.errors import AvsalError
from avsal.files import redact, sha256_of
from avsal.models import formats
from avsal.nn.backbones import BACKBONES


def check_entry(entry: Checkpoint) -> list[str]:
    """Return what is wrong with an entry, without using the network."""
    problems = []
    for source in entry.sources:
        if isinstance(source, Origin):
            format_name = source.format or entry.model
            known = list(BACKBONES) if entry.is_backbone else formats()
            if format_name not in known:
                problems.append(f"format {format_name!r} cannot be converted (known: {', '.join(known)})")
        if isinstance(source, PackagedSource):
            path = packaged_path(source)
            if not path.is_file():
                problems.append(f"{describe(source)} is missing")
            elif sha256_of(path) != source.sha256:
                problems.append(f"{describe(source)}: its sha256 is {sha256_of(path)}")
            elif source.size is not None and path.stat().st_size != source.size:
                problems.append(f"{describe(source)}: its size is {path.stat().st_size}")
    if not entry.is_backbone:
        problems += _check_model(entry)
    return problems


def _check_model(entry: Checkpoint) -> list[str]:
    from avsal.models import list_models, model_class

    if entry.model not in list_models():
        return [f"there is no model {entry.model!r} (known: {', '.join(list_models())})"]
    unknown = sorted(set(entry.arguments) - set(model_class(entry.model).arguments()))
    return [f"{entry.model} takes no argument {', '.join(unknown)}"] if unknown else []


def reach(entry: Checkpoint) -> list[str]:
    """Ask every address of an entry whether its file is there; return those that do not answer so."""
    problems = []
    for source in entry.sources:
        try:
            if isinstance(source, (HubSource, HubOrigin)):
                from avsal.checkpoints.hub import hub_files

                names = hub_files(source.repo, source.revision)
                if isinstance(source, HubOrigin):
                    web.choose(names, source.match, source.exclude, f"hub:{source.repo}")
                elif source.file not in names:
                    problems.append(f"{describe(source)}: the repository has no such file")
            elif isinstance(source, ReleaseOrigin):
                web.release_asset(source.repo, source.tag, source.match, source.exclude)
            elif isinstance(source, UrlOrigin):
                web.answers(source.url)
        except (AvsalError, OSError, urllib.error.URLError) as error:
            problems.append(redact(f"{describe(source)}: {error}"))
    return problems
