"""What is said about sources and their failures: each message fits a screen and names the next step."""

from __future__ import annotations

from avsal.checkpoints import web
from avsal.checkpoints.registry import (
    Checkpoint,
    HubOrigin,
    HubSource,
    InstalledOrigin,
    Origin,
    PackagedSource,
    PageOrigin,
    ReleaseOrigin,
    Source,
    UrlOrigin,
)
from avsal.files import redact
from avsal.types import ClipSpec


def describe(source: Source) -> str:
    """Return a source in a few words."""
    if isinstance(source, PackagedSource):
        return f"package: avsal/{source.file}"
    if isinstance(source, HubSource):
        return f"hub: {source.repo}@{source.revision[:8]}/{source.file}"
    if isinstance(source, HubOrigin):
        return f"authors' Hub repository: {source.repo} ({' '.join(source.match)})"
    if isinstance(source, ReleaseOrigin):
        return f"authors' release: github.com/{source.repo} {source.tag} ({' '.join(source.match)})"
    if isinstance(source, InstalledOrigin):
        return f"Python package: {source.package}=={source.version}, {source.file}"
    member = f" → {source.member}" if source.member else ""
    if isinstance(source, UrlOrigin):
        return f"authors' file: {source.url}{member}"
    return f"page: {source.url}{member}"


def page_of(source: Source) -> str | None:
    """Return the address where a person finds a source's file."""
    if isinstance(source, HubOrigin):
        return source.page or f"https://huggingface.co/{source.repo}"
    if isinstance(source, ReleaseOrigin):
        return source.page or f"{web.GITHUB}/{source.repo}/releases/tag/{source.tag}"
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


def input_line(spec: ClipSpec) -> str:
    """Return a clip specification in one line for people."""
    unit = "s" if spec.step_unit == "seconds" else "frame(s)"
    text = f"{spec.frames} frames of {spec.size[0]}x{spec.size[1]}, {spec.step:g} {unit} apart"
    if spec.audio is None:
        return text + ", no sound"
    rate = spec.audio.sample_rate
    return text + (f", mono waveform at {rate} Hz" if rate else ", mono waveform at the file's own rate")
