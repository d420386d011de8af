"""Which results stand in one table: one protocol, one version of the data, each system once, and all its folds.

Every function returns what is kept, and appends to `notes` what is not, by file, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from avsal.report.published import ONE_TEST_LIST, SETS, SIX
from avsal.report.records import NOT_PROTOCOL, Record


def whole(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep results of all videos of their split, and name those of a part (a few batches, an interrupted test)."""
    for record in records:
        if not record.results.complete:
            r = record.results
            notes.append(
                f"left out: {record.where} is a part of a test: {len(r.videos)} of {r.data.videos} videos were scored"
                + (f", {len(r.failed)} failed." if r.failed else ".")
            )
    return [record for record in records if record.results.complete]


def own_folds(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep results whose weights were trained for the fold that they were tested on, as far as their names say."""
    kept = []
    for record in records:
        tested = record.results.data.fold
        if record.data in SIX and tested is not None and record.weights_fold not in (None, tested):
            notes.append(
                f"left out: {record.where} tests the weights of fold {record.weights_fold} on fold {tested}"
                f"{_leak(record)}. Test each fold's own weights."
            )
        else:
            kept.append(record)
    return kept


def _leak(record: Record) -> str:
    """Return why weights of another fold do not count; on DIEM, whose test videos no fold trains on, once is enough."""
    return "" if record.data in ONE_TEST_LIST else ", so some of the test videos may be training videos"


def own_weights(records: list[Record], notes: list[str]) -> list[Record]:
    """Leave out a paper's system whose folds share one checkpoint: it was trained on what it is tested on."""
    shared: dict[int, Record] = {}
    for a in records:
        for b in records:
            one, other = a.results.checkpoint, b.results.checkpoint
            folds = a.system is not None and a.system.folds and a.data in SIX
            if folds and a.key == b.key and a.fold != b.fold and one and other and one.same(other):
                shared[id(a)] = b
    for record in records:
        if id(record) in shared:
            notes.append(
                f"left out: {record.where}, fold {record.fold}, has the same weights as fold {shared[id(record)].fold} "
                f"({shared[id(record)].path.name}){_leak(record)}. Test each fold's own weights."
            )
    return [record for record in records if id(record) not in shared]


def _complete(data: str, records: list[Record]) -> set[Any]:
    """Return the keys of the systems that have all folds among these records."""
    folds: dict[Any, set[int]] = {}
    for record in records:
        folds.setdefault(record.key, set()).add(record.fold)
    return {key for key, present in folds.items() if present >= set(_wanted(data, present))}


def _wanted(data: str, present: Iterable[int]) -> list[int]:
    folds = sorted(set(present))
    if data in SIX:
        return [1, 2, 3]
    return folds if len(folds) == 1 else list(range(1, max(folds) + 1))


def one_protocol(data: str, records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the protocol that most complete systems have (then: most results, then the newest), and name the others."""
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(record.protocol, []).append(record)
    if len(members) == 1:
        return records

    def vote(protocol: str) -> tuple[int, int, str]:
        own = members[protocol]
        # Two systems without all their folds give no mean: they must not outvote one that does.
        return (
            len(_complete(data, own)),
            len({(r.key, r.fold) for r in own}),
            max(r.results.created for r in own),
        )

    chosen = max(members, key=vote)
    example = members[chosen][0]
    for record in records:
        if record.protocol != chosen:
            difference = "; ".join(_differences(record, example))
            notes.append(
                f"left out: {record.where} has another protocol than {example.path.name}: {difference}."
            )
    return members[chosen]


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
        same = a is not None and b is not None and a.same(b)
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


def one_content(data: str, records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the results of the videos that most complete systems were scored on, and name the others.

    Each fold has its videos and its vote, but on DIEM, which has one test list, all folds vote together.
    """
    complete = _complete(data, records)
    kept: list[Record] = []
    for fold in [0] if data in ONE_TEST_LIST else sorted({r.fold for r in records}):
        members = [r for r in records if fold in (0, r.fold)]
        votes: dict[Any, list[Record]] = {}
        for record in members:
            votes.setdefault((record.contents, _version(record)), []).append(record)
        chosen = max(votes.values(), key=lambda own: _vote(own, complete))
        example = chosen[0]
        annotated: dict[str, list[Record]] = {}
        for record in chosen:
            if record.results.data.annotations is not None:
                annotated.setdefault(record.results.data.annotations, []).append(record)
        annotations = max(annotated, key=lambda a: _vote(annotated[a], complete)) if annotated else None
        for record in members:
            if record in chosen and record.results.data.annotations in (None, annotations):
                kept.append(record)
                continue
            if record in chosen and annotations is not None:
                example = annotated[annotations][0]
            notes.append(
                f"left out: {record.where} was scored on other data than {example.path.name}: "
                f"{_other_data(record, example)}."
            )
    return kept


def _vote(records: list[Record], complete: set[Any]) -> tuple[int, int, str]:
    newest = max(r.results.created for r in records)
    return sum(r.key in complete for r in records), len(records), newest


def _other_data(record: Record, example: Record) -> str:
    missing, extra = set(example.videos) - set(record.videos), set(record.videos) - set(example.videos)
    if missing or extra:
        return f"{len(missing)} videos missing and {len(extra)} others"
    if record.contents != example.contents:
        return "other numbers of scored frames"
    if _version(record) != _version(example):
        return "other versions of the videos or annotations (the fingerprints differ)"
    return "other annotation files (their names or sizes differ)"


def _version(record: Record) -> str | None:
    """Return the data set's fingerprint; files about several sets are compared by their videos alone."""
    data = record.results.data
    alone = len({video.split("/", 1)[0] for video in record.results.videos}) == 1
    return f"{SETS.get(data.name, data.name)}:{data.fingerprint}" if alone and data.fingerprint else None


def all_folds(data: str, group: list[Record], notes: list[str]) -> list[Record]:
    """Return a system's folds if all are there; a data set without folds has one."""
    present = sorted(record.fold for record in group)
    wanted = _wanted(data, present)
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
