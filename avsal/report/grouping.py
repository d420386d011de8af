"""Which results share a table: those of one data set, one protocol and one version of the data."""

from __future__ import annotations

import math
from typing import Any

from avsal.report.published import ONE_TEST_LIST, SIX
from avsal.report.records import NOT_PROTOCOL, Record


def usable(records: list[Record], notes: list[str]) -> list[Record]:
    """Return the results that may be shown, and append the others with their reasons to `notes`.

    Left out are parts of a test, older repetitions of a result, and weights that were trained on some of the test
    videos: those of another fold, or one checkpoint for all folds of a paper's model that has one for each.
    """
    kept: list[Record] = []
    for record in records:
        r, tested = record.results, record.results.data.fold
        if not r.complete:
            failed = f", {len(r.failed)} failed" if r.failed else ""
            notes.append(
                f"left out: {record.where} is a part of a test: {len(r.videos)} of {r.data.videos} videos were scored"
                f"{failed}."
            )
        elif record.data in SIX and tested is not None and record.weights_fold not in (None, tested):
            notes.append(
                f"left out: {record.where} tests the weights of fold {record.weights_fold} on fold {tested}"
                f"{_leak(record)}. Test each fold's own weights."
            )
        else:
            kept.append(record)
    return _own_weights(_newest(kept, notes), notes)


def _newest(records: list[Record], notes: list[str]) -> list[Record]:
    chosen: dict[Any, Record] = {}
    for record in sorted(records, key=lambda r: (r.results.created, str(r.path)), reverse=True):
        known = chosen.setdefault((record.data, record.protocol, record.key, record.fold), record)
        if known is not record:
            a, b = record.results, known.results
            same = a.checkpoint is not None and b.checkpoint is not None and a.checkpoint.same(b.checkpoint)
            gaps = [abs(a.metrics[m] - v) for m, v in b.metrics.items() if m in a.metrics]
            gap = max((g for g in gaps if not math.isnan(g)), default=0.0)
            notes.append(
                f"left out: {record.where} repeats {known.path.name}, which is newer "
                f"({'the same' if same else 'other'} weights, metrics differ by up to {gap:.4f})."
            )
    left = {id(record) for record in chosen.values()}
    return [record for record in records if id(record) in left]


def _own_weights(records: list[Record], notes: list[str]) -> list[Record]:
    shared: dict[int, Record] = {}
    for a in (r for r in records if r.system is not None and r.system.folds and r.data in SIX):
        for b in records:
            one, other = a.results.checkpoint, b.results.checkpoint
            same = (a.data, a.protocol, a.key) == (b.data, b.protocol, b.key) and a.fold != b.fold
            if same and one is not None and other is not None and one.same(other):
                shared[id(a)] = b
                notes.append(
                    f"left out: {a.where}, fold {a.fold}, has the same weights as fold {b.fold} ({b.path.name})"
                    f"{_leak(a)}. Test each fold's own weights."
                )
                break
    return [record for record in records if id(record) not in shared]


def _leak(record: Record) -> str:
    """Return why weights of another fold do not count; no fold of DIEM trains on its test videos."""
    return "" if record.data in ONE_TEST_LIST else ", so some of the test videos may be training videos"


def tables(records: list[Record]) -> list[list[list[Record]]]:
    """Return tables of comparable results, each a list of models, each a list of the results of its folds.

    Of a data set with several tables the one with most models comes first.
    """
    models: list[list[Record]] = []
    for record in sorted(records, key=lambda r: (r.data, r.key, r.fold, r.results.created)):
        fits = (m for m in models if m[0].key == record.key and not any(difference(record, r) for r in m))
        model = next(fits, None)
        if model is None:
            models.append([record])
        else:
            model.append(record)
    found: list[list[list[Record]]] = []
    # Incomplete folds, and results that do not say which annotations they used, begin no table that others fit.
    models.sort(key=lambda m: (m[0].results.data.annotations is not None, len(m)), reverse=True)
    for model in models:
        fitting = (t for t in found if not any(difference(a, b) for a in model for own in t for b in own))
        table = max(fitting, key=len, default=None)
        if table is None:
            found.append([model])
        else:
            table.append(model)
    return sorted(found, key=len, reverse=True)


def difference(record: Record, other: Record) -> str:
    """Return why two results are not comparable; "" if they are. Other folds of one data set have other videos."""
    if record.data != other.data:
        return f"{record.data} is another data set than {other.data}"
    if record.protocol != other.protocol:
        found = []
        for part in ("protocol", "conventions"):
            a, b = getattr(record.results, part), getattr(other.results, part)
            keys = sorted({*a, *b} - (NOT_PROTOCOL if part == "protocol" else set()))
            found += [f"{k} is {a.get(k)}, not {b.get(k)}" for k in keys if a.get(k) != b.get(k)]
        return "; ".join(found)
    if record.fold != other.fold and record.data not in ONE_TEST_LIST:
        return ""
    missing, extra = set(other.videos) - set(record.videos), set(record.videos) - set(other.videos)
    if missing or extra:
        return f"{len(missing)} videos missing and {len(extra)} others"
    if record.contents != other.contents:
        return "other numbers of scored frames"
    for a, b, what in (
        (record.version, other.version, "other versions of the videos or annotations (the fingerprints differ)"),
        (record.results.data.annotations, other.results.data.annotations,
         "other annotation files (their names or sizes differ)"),
    ):  # fmt: skip
        if a != b and None not in (a, b):  # older files, and packs, do not say
            return what
    return ""
