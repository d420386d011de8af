"""`avsal reproduce synthav`: the shipped checkpoints, their visual-only twins and the baselines on generated clips."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import ConfigError
from avsal.report.measured import Board, Entry, board, shown
from avsal.report.published import LABELS
from avsal.report.statistics import gaze_f1, paired
from avsal.report.tables import DIGITS, Table, Value, giga, millions, number, text

if TYPE_CHECKING:
    from avsal.checkpoints.registry import Checkpoint

#: What must stand beside every number of this table.
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


def run(args: argparse.Namespace) -> int:
    """Run the command; see `avsal reproduce --help`."""
    from avsal.checkpoints.registry import entries

    stride = args.stride or 5
    shipped = [
        e
        for e in entries().values()
        if any(s.kind == "packaged" for s in e.sources) and any(d.startswith("SynthAV") for d in e.data)
    ]
    _enough(args.clips)
    if args.dry_run:
        for entry in shipped:
            print(f"{entry.name}: {entry.task}, {entry.model}")
        print(f"{len(shipped)} shipped checkpoints and {len(BASELINES)} baselines on SynthAV of {args.clips} clips, "
              f"every {stride}. frame; results go to {args.out}")  # fmt: skip
        return 0
    if not shipped:
        print(
            "no checkpoint ships with this version of avsal: the baselines alone are measured",
            file=sys.stderr,
        )
    files = measure(shipped, args, stride)
    found = board(files)
    tables = synthav_tables(found)
    command = f"avsal reproduce synthav --clips {args.clips} --stride {stride}"
    notes = [DIAGNOSTIC, f"Made by `{command}`."]
    figures = []
    if args.figures is not None:
        from avsal.report.figures import draw_all

        figures = draw_all(found, args.figures)
    from avsal.report.commands import say

    say(tables, None, args.format, "SynthAV", [], figures, notes=notes)
    for note in found.notes:
        print(note, file=sys.stderr)
    return 1 if found.notes else 0


def _enough(clips: int) -> None:
    """Refuse, before anything runs, so few clips that a condition has no second test clip to swap its sound with.

    Raises:
        ConfigError: names the least number.
    """
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


def measure(shipped: Sequence[Checkpoint], args: argparse.Namespace, stride: int) -> list[Path]:
    """Test every checkpoint and baseline, and return the results files.

    Args:
        shipped: entries of the registry.
        args: `clips`, `batch_size`, `num_workers`, `out`, `accelerator`.
        stride: distance of the scored frames.
    """
    from avsal.report.testing import file_hash, run_test
    from avsal.zoo import from_pretrained

    # Baselines are fitted in one process, and the set is small.
    args = argparse.Namespace(**{**vars(args), "devices": "1", "num_nodes": 1, "strategy": "auto"})
    files: list[Path | None] = []
    for kind in BASELINES:
        data = _data(args, stride)
        files.append(
            run_test(_baseline(kind, data), data, f"baseline-{kind}", "synthav", args, protocol="common")
        )
    for entry in shipped:
        module = from_pretrained(entry.name)
        ego = entry.task != "saliency"
        name = "synthav-ego" if ego else "synthav"
        for sound in ("own", "swapped") if module.spec.audio is not None else ("own",):
            data = _data(args, stride, ego=ego)
            files.append(
                run_test(
                    module, data, entry.name, name, args, protocol="common", sound=sound,
                    sha256=file_hash(entry.name),
                )
            )  # fmt: skip
    return [path for path in files if path is not None]


def _data(args: argparse.Namespace, stride: int, ego: bool = False) -> Any:
    from avsal.data import SynthAVDataModule

    return SynthAVDataModule(
        clips=args.clips,
        synth_seed=TEST_SEED,
        ego=ego,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        test_stride=stride,
    )


def _baseline(kind: str, data: Any) -> Any:
    import lightning as L

    from avsal.models.baselines import FITTED, BaselineModule
    from avsal.report.testing import quiet

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
    """Return the table of all systems in the three conditions, that of differences, and those of gaze."""
    tables = [_conditions(found), _differences(found), _gaze(found), _gaze_steps(found)]
    return [table for table in tables if table.rows]


def _score(entry: Entry | None, metric: str) -> Value:
    score = entry.scores.get(metric) if entry is not None else None
    if score is None or math.isnan(score.value):
        return Value()
    digits = min(DIGITS.get(metric, 3), 3)
    value, low, high = (shown(metric, v) for v in (score.value, score.low, score.high))
    return Value(f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]", value, (low, high))


def _title(entry: Entry) -> str:
    kind = entry.label.removeprefix("baseline-")
    return (
        f"baseline: {BASELINES[kind]}"
        if entry.label.startswith("baseline-") and kind in BASELINES
        else entry.title
    )


def _rank(entry: Entry) -> tuple[int, str, str]:
    kinds = list(BASELINES)
    kind = entry.label.removeprefix("baseline-")
    return (
        kinds.index(kind) if entry.label.startswith("baseline-") and kind in kinds else 99,
        entry.label,
        entry.sound,
    )


def _cost(entry: Entry) -> list[Value]:
    cost = entry.cost
    if cost is None:
        return [Value()] * 3
    return [
        millions(cost.parameters), giga(cost.multiply_adds),
        number(cost.maps_per_second, 1) if cost.maps_per_second else Value(),
    ]  # fmt: skip


def _systems(found: Board, sets: Sequence[str]) -> list[dict[str, Entry]]:
    groups: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in found.entries:
        if entry.data in sets:
            groups.setdefault((entry.label, entry.sound), {})[entry.data] = entry
    return sorted(groups.values(), key=lambda group: _rank(next(iter(group.values()))))


def _conditions(found: Board) -> Table:
    heads = ["model", "mod."]
    heads += [f"{LABELS[m]}, {name}" for name in CONDITIONS.values() for m in _METRICS]
    rows = []
    counts: dict[str, int] = {}
    for group in _systems(found, list(CONDITIONS)):
        first = next(iter(group.values()))
        scores = [_score(group.get(data), m) for data in CONDITIONS for m in _METRICS]
        rows.append([text(_title(first)), text(first.modality), *scores, *_cost(first)])
        counts |= {
            CONDITIONS[data]: entry.scores["cc"].videos
            for data, entry in group.items()
            if "cc" in entry.scores
        }
    clips = ", ".join(f"{n} {name}" for name, n in counts.items())
    notes = [f"Mean over videos [95 % interval of a bootstrap over videos]; {clips} test clips."]
    return Table("SynthAV", [*heads, "parameters", "multiply-adds", "maps/s"], rows, notes)


def _differences(found: Board) -> Table:
    """What sound gives: a model minus its visual-only twin, and minus itself with another clip's sound."""
    from avsal.report.figures import twins

    heads = ["model", "minus", *(f"{LABELS['nss']}, {name}" for name in CONDITIONS.values())]
    lines: dict[tuple[str, str], dict[str, Value]] = {}
    for data in CONDITIONS:
        entries = found.of(data)
        pairs = [(a, b, f"{b.title} (visual only)") for a, b in twins(entries)]
        own = {e.label: e for e in entries if e.sound == "own"}
        pairs += [
            (own[e.label], e, "itself, sound swapped") for e in entries if e.sound != "own" and e.label in own
        ]
        for first, second, minus in pairs:
            if "nss" not in first.units or "nss" not in second.units:
                continue
            gap, low, high = paired(first.units["nss"], second.units["nss"])
            lines.setdefault((first.title, minus), {})[data] = Value(
                f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]", gap, (low, high)
            )
    rows = [
        [text(model), text(minus), *(values.get(data, Value()) for data in CONDITIONS)]
        for (model, minus), values in lines.items()
    ]
    note = "Differences over the same videos [95 % interval of a paired bootstrap]; above 0, the right sound helps."
    return Table("What the sound gives", heads, rows, [note])


def _gaze(found: Board) -> Table:
    sets = sorted({e.data for e in found.entries if e.data.startswith(EGO)})
    rows = []
    for data in sets:
        for group in _systems(found, [data]):
            entry = next(iter(group.values()))
            task = data.partition(", ")[2]
            scores = [_score(entry, m) for m in _GAZE]
            rows.append([text(entry.title), text(entry.modality), text(task), *scores, *_cost(entry)])
    heads = [
        "model",
        "mod.",
        "condition",
        *(f"{LABELS[m]} (%)" for m in _GAZE),
        "parameters",
        "multiply-adds",
        "maps/s",
    ]
    return Table(
        "SynthAV, head-mounted camera: gaze",
        heads,
        rows,
        ["Scores in per cent, at one threshold for all videos."],
    )


def _gaze_steps(found: Board) -> Table:
    """F1 at each moment ahead (the paper's Figure 3), and what the sound adds there."""
    from avsal.report.figures import twins

    sets = sorted({e.data for e in found.entries if e.data.startswith(EGO)})
    known = {m for data in sets for e in found.of(data) for m in e.units if m.startswith("recall_step")}
    endings = ["", *(f"_step{k}" for k in sorted(int(m.removeprefix("recall_step")) for m in known))]
    rows = []
    for data in sets:
        entries = sorted(found.of(data), key=_rank)
        rows += [[text(e.title), *_f1_cells(endings, e)] for e in entries]
        own = {e.label: e for e in entries if e.sound == "own"}
        pairs = [(a, b, "its twin without sound") for a, b in twins(entries)]
        pairs += [
            (own[e.label], e, "itself, sound swapped") for e in entries if e.sound != "own" and e.label in own
        ]
        rows += [[text(f"{a.title} minus {minus}"), *_f1_cells(endings, a, b)] for a, b, minus in pairs]
    heads = ["F1 (%)", "all moments", *(f"moment {ending.removeprefix('_step')}" for ending in endings[1:])]
    note = "One threshold for all moments. Differences over the same videos; 95 % intervals of a bootstrap over videos."
    return Table("SynthAV, head-mounted camera: F1 at each moment ahead", heads, rows, [note])


def _f1_cells(endings: Sequence[str], *systems: Entry) -> list[Value]:
    """F1 in per cent for each ending of the score names, of one system or of two; empty where one lacks it."""
    found = []
    for ending in endings:
        if any(f"recall{ending}" not in e.units for e in systems):
            found.append(Value())
            continue
        parts = [(e.units[f"recall{ending}"], e.units[f"precision{ending}"]) for e in systems]
        value, low, high = (100 * v for v in gaze_f1(*parts, data=systems[0].data))
        sign = "+" if len(systems) > 1 else ""
        found.append(Value(f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]", value, (low, high)))
    return found
