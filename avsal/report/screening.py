"""Which results stand in one table: one protocol, one version of the data, each system once, and all its folds.

Every function returns what is kept, and appends to `notes` what is not, by file, with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from avsal.report.published import SETS, SIX
from avsal.report.records import NOT_PROTOCOL, Record


def one_protocol(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the protocol that most systems of a data set have (then: the newest result's), and name the others."""
    systems: dict[str, set[Any]] = {}
    for record in records:
        systems.setdefault(record.protocol, set()).add((record.key, record.fold))
    if len(systems) == 1:
        return records
    newest = {p: max(r.results.created for r in records if r.protocol == p) for p in systems}
    chosen = max(systems, key=lambda p: (len(systems[p]), newest[p]))
    example = next(r for r in records if r.protocol == chosen)
    for record in records:
        if record.protocol != chosen:
            difference = "; ".join(_differences(record, example))
            notes.append(
                f"left out: {record.where} has another protocol than {example.path.name}: {difference}."
            )
    return [r for r in records if r.protocol == chosen]


def _differences(record: Record, other: Record) -> list[str]:
    found = []
    for part in ("protocol", "conventions"):
        a, b = getattr(record.results, part), getattr(other.results, part)
        for key in sorted({*a, *b} - (NOT_PROTOCOL if part == "protocol" else set())):
            if a.get(key) != b.get(key):
                found.append(f"{key} is {a.get(key)}, not {b.get(key)}")
    return found


def newest_of(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the newest of several results of the same system, data set and fold, and name the others."""
    chosen: dict[Any, Record] = {}
    for record in sorted(records, key=lambda r: (r.results.created, str(r.path)), reverse=True):
        known = chosen.setdefault((record.key, record.fold), record)
        if known is record:
            continue
        a, b = record.results.checkpoint, known.results.checkpoint
        same = a is not None and b is not None and a.sha256 == b.sha256
        gap = max(
            (abs(record.results.metrics[m] - v) for m, v in known.results.metrics.items()
             if m in record.results.metrics and not math.isnan(v) and not math.isnan(record.results.metrics[m])),
            default=0.0,
        )  # fmt: skip
        kind = "the same weights" if same else "other weights"
        notes.append(
            f"left out: {record.where} repeats {known.path.name}, which is newer ({kind}, metrics differ by up to "
            f"{gap:.4f})."
        )
    return [r for r in records if chosen[r.key, r.fold] is r]


def one_content(records: list[Record], notes: list[str]) -> list[Record]:
    """In each fold keep the results of the videos that most systems were scored on, and name the others."""
    kept: list[Record] = []
    for fold in sorted({r.fold for r in records}):
        members = [r for r in records if r.fold == fold]
        votes = Counter((r.contents, _version(r)) for r in members)
        newest = {c: max(r.results.created for r in members if (r.contents, _version(r)) == c) for c in votes}
        chosen = max(votes, key=lambda c: (votes[c], newest[c]))
        example = next(r for r in members if (r.contents, _version(r)) == chosen)
        for record in members:
            if (record.contents, _version(record)) == chosen:
                kept.append(record)
                continue
            missing, extra = (
                set(example.videos) - set(record.videos),
                set(record.videos) - set(example.videos),
            )
            reason = "other versions of the videos or annotations (the fingerprints differ)"
            if missing or extra:
                reason = f"{len(missing)} videos missing and {len(extra)} others"
            elif record.contents != example.contents:
                reason = "other numbers of scored frames"
            notes.append(
                f"left out: {record.where} was scored on other data than {example.path.name}: {reason}."
            )
    return kept


def _version(record: Record) -> str | None:
    """Return the data set's fingerprint; files about several sets are compared by their videos alone."""
    data = record.results.data
    alone = len({video.split("/", 1)[0] for video in record.results.videos}) == 1
    return f"{SETS.get(data.name, data.name)}:{data.fingerprint}" if alone and data.fingerprint else None


def all_folds(data: str, group: list[Record], notes: list[str]) -> list[Record]:
    """Return a system's folds if all are there; a data set without folds has one."""
    present = sorted(record.fold for record in group)
    wanted = [1, 2, 3] if data in SIX else present[:1]
    if data not in SIX and len(present) > 1:
        wanted = list(range(1, max(present) + 1))
    missing = [fold for fold in wanted if fold not in present]
    if missing:
        notes.append(
            f"left out: {group[0].label} on {data}: the mean is over folds {', '.join(map(str, wanted))}; there is no "
            f"result of {', '.join(map(str, missing))} (there is: {', '.join(r.path.name for r in group)})."
        )
        return []
    protocols = {record.protocol for record in group}
    assert len(protocols) == 1
    return sorted(group, key=lambda record: record.fold)
