"""`avsal reproduce synthav`: the shipped checkpoints, their visual-only twins and the baselines on generated clips."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import ConfigError
from avsal.report.measured import Board, Entry, board, shown
from avsal.report.published import LABELS
from avsal.report.render import output
from avsal.report.statistics import gaze_f1, paired
from avsal.report.tables import DIGITS, Table, Value, costs, text
from avsal.report.testing import Options, file_hash, run_test

if TYPE_CHECKING:
    from avsal.checkpoints.registry import Checkpoint

#: What is printed beside every number of this table.
DIAGNOSTIC = (
    "SynthAV is a diagnostic on generated clips whose right answer is known: it shows whether a model uses the sound, "
    "not how well it predicts people's gaze in real videos. The checkpoints are small ones, trained on SynthAV."
)
#: The seed of the clips that are scored. Networks train on sets of seeds 0 and 3, of any size: a test split of those
#: may hold clips that a larger training set trained on.
TEST_SEED = 1000
BASELINES = {
    "uniform": "uniform map",
    "centre": "centred Gaussian",
    "fitted_centre": "mean map of the training set",
    "shuffled": "map of another frame",
    "observers": "half of the observers, against the others",
}
CONDITIONS = {"SynthAV_congruent": "congruent", "SynthAV_offscreen": "off-screen", "SynthAV_silent": "silent"}
EGO = "SynthAV_ego"
_METRICS = ("nss", "cc")
_GAZE = ("f1", "recall", "precision")
_COSTS = ("parameters", "multiply-adds", "maps/s")


def run(
    options: Options,
    *,
    clips: int = 240,
    dry_run: bool = False,
    form: str = "terminal",
    figures: Path | None = None,
) -> int:
    """Test the shipped checkpoints and the baselines, and print the tables.

    Args:
        options: of the tests; `protocol` is always "full".
        clips: that are generated.
        dry_run, form, figures: see `avsal.report.commands.reproduce`.

    Returns:
        0, or 1 if something could not be compared.

    Raises:
        ConfigError: there are too few clips.
    """
    from avsal.checkpoints.registry import entries

    shipped = [
        e
        for e in entries().values()
        if any(s.kind == "packaged" for s in e.sources) and any(d.startswith("SynthAV") for d in e.data)
    ]
    _enough(clips)
    if dry_run:
        for entry in shipped:
            print(f"{entry.name}: {entry.task}, {entry.model}")
        print(f"{len(shipped)} shipped checkpoints and {len(BASELINES)} baselines on SynthAV of {clips} clips, "
              f"every {options.stride}. frame; results go to {options.out}")  # fmt: skip
        return 0
    if not shipped:
        print(
            "no checkpoint ships with this version of avsal: the baselines alone are measured",
            file=sys.stderr,
        )
    found = board(measure(shipped, options, clips))
    drawn = []
    if figures is not None:
        from avsal.report.figures import draw_all

        drawn = draw_all(found, figures)
    command = f"avsal reproduce synthav --clips {clips} --stride {options.stride}"
    notes = [DIAGNOSTIC, f"Made by `{command}`."]
    output(synthav_tables(found), title="SynthAV", form=form, notes=notes, figures=drawn)
    for note in found.notes:
        print(note, file=sys.stderr)
    return 1 if found.notes else 0


def _enough(clips: int) -> None:
    """Refuse, before anything runs, so few clips that a condition has no second test clip to swap its sound with."""
    from avsal.data.synthetic import SynthSpec

    def least(number: int) -> int:
        spec = SynthSpec(clips=number)
        tested = Counter(condition for condition, _, _, split in spec.plan() if split == "test")
        return min(tested[condition] for condition in spec.conditions)

    if least(clips) < 2:
        enough = next(number for number in range(clips, clips + 1000) if least(number) >= 2)
        raise ConfigError(
            f"--clips {clips}: every condition needs two test clips, whose sound is swapped; at least {enough} clips "
            "are needed."
        )


def measure(shipped: Iterable[Checkpoint], options: Options, clips: int) -> list[Path]:
    """Test every checkpoint and baseline, and return the results files.

    Args:
        shipped: entries of the registry.
        options: of the tests.
        clips: that are generated.
    """
    from avsal.zoo import from_pretrained

    # Baselines are fitted in one process, and the set is small.
    options = replace(options, protocol="full", devices="1", num_nodes=1, strategy="auto")
    files: list[Path | None] = []
    for kind in BASELINES:
        data = _data(options, clips)
        files.append(run_test(_baseline(kind, data), data, f"baseline-{kind}", "synthav", options))
    for entry in shipped:
        module, sha256 = from_pretrained(entry.name), file_hash(entry.name)
        ego = entry.task != "saliency"
        name = "synthav-ego" if ego else "synthav"
        for sound in ("own", "swapped") if module.spec.audio is not None else ("own",):
            data = _data(options, clips, ego=ego)
            files.append(run_test(module, data, entry.name, name, options, sound=sound, sha256=sha256))
    return [path for path in files if path is not None]


def _data(options: Options, clips: int, ego: bool = False) -> Any:
    from avsal.data import SynthAVDataModule

    return SynthAVDataModule(
        clips=clips, synth_seed=TEST_SEED, ego=ego, batch_size=options.batch_size, num_workers=options.num_workers,
        test_stride=options.stride,
    )  # fmt: skip


def _baseline(kind: str, data: Any) -> Any:
    import lightning as L

    from avsal.evaluation.testing import quiet
    from avsal.models.baselines import FITTED, BaselineModule

    module = BaselineModule(kind, size=(60, 80))  # type: ignore[arg-type]
    if kind in FITTED:
        data.use_spec(module.spec)
        with quiet():
            L.Trainer(
                max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False, limit_val_batches=0,
            ).fit(module, datamodule=data)  # fmt: skip
    return module.eval()


# -- tables --------------------------------------------------------------------------------------------------------


def synthav_tables(found: Board) -> list[Table]:
    """Return the table of all models in the three conditions, that of differences, and those of gaze."""
    tables = [_conditions(found), _differences(found), _gaze(found), _gaze_steps(found)]
    return [table for table in tables if table.rows]


def _cell(value: float, low: float, high: float, digits: int, sign: str = "") -> Value:
    if math.isnan(value):
        return Value()
    return Value(
        f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]", value, (low, high)
    )


def _score(entry: Entry | None, metric: str) -> Value:
    score = entry.scores.get(metric) if entry is not None else None
    if score is None:
        return Value()
    value, low, high = (shown(metric, v) for v in (score.value, score.low, score.high))
    return _cell(value, low, high, min(DIGITS.get(metric, 3), 3))


def _kind(entry: Entry) -> str | None:
    kind = entry.label.removeprefix("baseline-")
    return kind if entry.label != kind and kind in BASELINES else None


def _title(entry: Entry) -> str:
    kind = _kind(entry)
    return f"baseline: {BASELINES[kind]}" if kind else entry.title


def _rank(entry: Entry) -> tuple[int, str, str]:
    kind = _kind(entry)
    return list(BASELINES).index(kind) if kind else len(BASELINES), entry.label, entry.sound


def _pairs(entries: Sequence[Entry], twin: str) -> Iterator[tuple[Entry, Entry, str]]:
    """Yield what tells the use of sound: a model and its visual-only twin, or itself with another clip's sound."""
    from avsal.report.figures import twins

    for a, b in twins(entries):
        yield a, b, twin.format(b.title)
    own = {e.label: e for e in entries if e.sound == "own"}
    for e in entries:
        if e.sound != "own" and e.label in own:
            yield own[e.label], e, "itself, sound swapped"


def _conditions(found: Board) -> Table:
    groups: dict[tuple[str, str], dict[str, Entry]] = {}
    counts: dict[str, int] = {}
    for entry in (e for data in CONDITIONS for e in found.of(data)):
        groups.setdefault((entry.label, entry.sound), {})[entry.data] = entry
        if "cc" in entry.scores:
            counts[CONDITIONS[entry.data]] = entry.scores["cc"].videos
    rows = []
    for group in sorted(groups.values(), key=lambda group: _rank(next(iter(group.values())))):
        first = next(iter(group.values()))
        scores = [_score(group.get(data), m) for data in CONDITIONS for m in _METRICS]
        rows.append([text(_title(first)), text(first.modality), *scores, *costs(first)])
    heads = [
        "model",
        "mod.",
        *(f"{LABELS[m]}, {name}" for name in CONDITIONS.values() for m in _METRICS),
        *_COSTS,
    ]
    clips = ", ".join(f"{n} {name}" for name, n in counts.items())
    note = f"Mean over videos [95 % interval of a bootstrap over videos]; {clips} test clips."
    return Table("SynthAV", heads, rows, [note])


def _differences(found: Board) -> Table:
    """What sound gives: a model minus its visual-only twin, and minus itself with another clip's sound."""
    lines: dict[tuple[str, str], dict[str, Value]] = {}
    for data in CONDITIONS:
        for first, second, minus in _pairs(found.of(data), "{} (visual only)"):
            if "nss" in first.units and "nss" in second.units:
                gap = _cell(*paired(first.units["nss"], second.units["nss"]), 3, "+")
                lines.setdefault((first.title, minus), {})[data] = gap
    rows = [
        [text(model), text(minus), *(values.get(data, Value()) for data in CONDITIONS)]
        for (model, minus), values in lines.items()
    ]
    heads = ["model", "minus", *(f"{LABELS['nss']}, {name}" for name in CONDITIONS.values())]
    note = "Differences over the same videos [95 % interval of a paired bootstrap]; above 0, the right sound helps."
    return Table("What the sound gives", heads, rows, [note])


def _ego(found: Board) -> Iterator[list[Entry]]:
    """Yield the models of each gaze task."""
    for data in sorted(data for data in found.sets if data.startswith(EGO)):
        yield sorted(found.of(data), key=_rank)


def _gaze(found: Board) -> Table:
    rows = [
        [
            text(e.title),
            text(e.modality),
            text(e.data.partition(", ")[2]),
            *(_score(e, m) for m in _GAZE),
            *costs(e),
        ]
        for entries in _ego(found)
        for e in entries
    ]
    heads = ["model", "mod.", "condition", *(f"{LABELS[m]} (%)" for m in _GAZE), *_COSTS]
    note = "Scores in per cent, at one threshold for all videos."
    return Table("SynthAV, head-mounted camera: gaze", heads, rows, [note])


def _gaze_steps(found: Board) -> Table:
    """F1 at each moment ahead (the paper's Figure 3), and what the sound adds there."""
    known = {m for entries in _ego(found) for e in entries for m in e.units if m.startswith("recall_step")}
    steps = sorted(int(m.removeprefix("recall_step")) for m in known)
    endings = ["", *(f"_step{k}" for k in steps)]
    rows = []
    for entries in _ego(found):
        rows += [[text(e.title), *_f1_cells(endings, e)] for e in entries]
        rows += [
            [text(f"{a.title} minus {minus}"), *_f1_cells(endings, a, b)]
            for a, b, minus in _pairs(entries, "its twin without sound")
        ]
    heads = ["F1 (%)", "all moments", *(f"moment {k}" for k in steps)]
    note = "One threshold for all moments. Differences over the same videos; 95 % intervals of a bootstrap over videos."
    return Table("SynthAV, head-mounted camera: F1 at each moment ahead", heads, rows, [note])


def _f1_cells(endings: Iterable[str], *models: Entry) -> Iterator[Value]:
    """Yield F1 in per cent for each ending of the score names, of one model or of two; empty where one lacks it."""
    for ending in endings:
        if any(f"recall{ending}" not in e.units for e in models):
            yield Value()
            continue
        parts = [(e.units[f"recall{ending}"], e.units[f"precision{ending}"]) for e in models]
        value, low, high = (100 * v for v in gaze_f1(*parts, data=models[0].data))
        yield _cell(value, low, high, 1, "+" if len(models) > 1 else "")
