"""`avsal data list|info|fetch|check|import|pack|synth`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from avsal.data.gaze.options import Reading
from avsal.errors import AvsalError, ConfigError, DataError


def show() -> None:
    """List all data sets on one page."""
    from avsal.data.catalog import ENTRIES

    width = max(len(e.name) for e in ENTRIES)
    for e in ENTRIES:
        how = "made here" if e.name == "synthav" else "fetch" if e.hub or e.urls else "by hand"
        sound = "sound" if e.sound == "yes" else "     "
        print(f"{e.name:{width}}  {sound}  {how:9}  {e.content}")
    print("\n`avsal data info NAME` shows terms, sizes and steps;")
    print("`avsal data fetch NAME --out DIR` gets what may be fetched.")


def info(name: str, /) -> None:
    """Print a data set's content, licence and size, and how to get it.

    Args:
        name: the data set.
    """
    from avsal.data.catalog import entry

    e = entry(name)
    rows = [
        ("data set", e.title), ("content", e.content), ("sound", e.sound), ("licence", e.licence), ("download", e.size),
        ("page", e.page), ("cite", e.cite), ("reads it", e.module),
    ]  # fmt: skip
    for label, value in rows:
        print(f"{label:10} {value}")
    print("steps")
    for number, step in enumerate(e.steps, 1):
        print(f"  {number}. {step}")
    if e.urls:
        print(f"  {len(e.steps) + 1}. avsal data fetch {e.name} --out DIR")
    print("folder\n  " + e.tree.replace("\n", "\n  "))


def fetch(
    name: str,
    /,
    *,
    out: Path,
    split: Literal["train", "test"] | None = None,
    max_videos: int | None = None,
) -> int:
    """Download a data set where its terms allow that, else print how to get it.

    Args:
        name: the data set.
        out: the folder.
        split: only this split (sets on the Hub).
        max_videos: only so many videos of each split (sets on the Hub).

    Returns:
        0, or 1 if there is more to do by hand.

    Raises:
        DataError: a download failed.
    """
    from avsal.data.catalog import entry
    from avsal.data.fetch import fetch as fetch_set

    if max_videos is not None and max_videos < 1:
        raise ConfigError(f"--max-videos {max_videos}: at least 1.")
    got = fetch_set(entry(name), out, split=split, max_videos=max_videos)
    if got:
        print(f"Now verify it: avsal data check {out}")
    return 0 if got else 1


def check(
    folder: Path,
    /,
    *,
    dataset: str | None = None,
    fold: int | None = None,
    quick: bool = False,
    report: Annotated[Path | None, Parameter(name="--json")] = None,
    recordings: Path | None = None,
    reading: Reading | None = None,
) -> int:
    """Verify a folder completely; nothing is modified.

    Args:
        folder: the data set.
        dataset: its name in `avsal data list`, where the folder does not tell.
        fold: fold of the lists.
        quick: read three frames of each annotation.
        report: write the report into this JSON file too.
        recordings: for a folder of your own videos: a CSV file with the options of single recordings.
        reading: for a folder of your own videos: how to read the gaze files.

    Returns:
        0, or 1 if problems were found.

    Raises:
        DataError: the folder is not a data set.
    """
    from avsal.data.check import as_json, check as check_module, table
    from avsal.files import write_text

    module = _module(folder, dataset, fold, recordings, reading)
    progress = (
        (lambda name: print(f"\r{name[:70]:70}", end="", file=sys.stderr)) if sys.stderr.isatty() else None
    )
    reports = check_module(module, quick=quick, progress=progress)
    if progress:
        print(f"\r{'':70}\r", end="", file=sys.stderr)
    print(f"{folder}: read by {type(module).__name__}")
    print(table(reports))
    if report:
        write_text(report, json.dumps(as_json(reports), indent=1) + "\n")
    return 1 if any(r.problems for r in reports) else 0


def _module(
    folder: Path, dataset: str | None, fold: int | None, recordings: Path | None, reading: Reading | None
) -> Any:
    import avsal.data as data
    from avsal.data.catalog import entry
    from avsal.data.check import recognise

    if dataset:
        module = getattr(data, entry(dataset).module)(folder, num_workers=0)
    else:
        module = recognise(folder)
    reading = reading or Reading()
    if reading.changed() or recordings is not None:
        if not isinstance(module, data.FolderDataModule):
            raise ConfigError(
                f"{folder}: is read by {type(module).__name__}, which has its own gaze files; options of gaze files "
                "are for a folder of your own videos."
            )
        module.reading, module.recordings = reading, recordings
    if fold is not None:
        if not hasattr(module, "fold"):
            raise ConfigError(f"--fold: {type(module).__name__} has no folds.")
        module.fold = fold
    return module


def import_gaze(*files: Path, video: Path, out: Path | None = None, reading: Reading | None = None) -> int:
    """Write eye trackers' exports as avsal's plain gaze table, on the clock of their video.

    Args:
        files: one file for each recording.
        video: the video that was watched.
        out: the table (default: beside the video, with its name).
        reading: how to read the files.

    Returns:
        0, or 1 if some files could not be read.

    Raises:
        ConfigError: `out` exists.
        DataError: none of the files could be read.
    """
    from avsal.data.gaze.samples import write_plain
    from avsal.data.gaze.tables import read_gaze_table
    from avsal.data.sets.folder import table_to_fixations
    from avsal.io.video import VideoReader

    if not files:
        raise ConfigError("no file: name the gaze files, one for each recording.")
    out = out or video.with_suffix(".csv")
    if out.exists():
        raise ConfigError(f"{out}: already exists; remove it, or pass another --out.")
    reading = reading or Reading()
    with VideoReader(video) as reader:
        size, times = (reader.info.height, reader.info.width), reader.times
    tables, failed = [], 0
    for path in files:
        try:
            table = read_gaze_table(path, size=size, times=times, video=video.stem, **vars(reading))
            found = table_to_fixations(table, times, size)
        except AvsalError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed += 1
            continue
        tables.append(table)
        left = ", ".join(f"{count} {reason}" for reason, count in found.dropped)
        print(f"{path}: {len(table)} rows{f'; left out: {left}' if left else ''}")
        for note in table.notes:
            print(f"  note: {note}")
    if not tables:
        raise DataError(f"none of the {failed} files could be read.")
    end = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    rows = write_plain(tables, out, (float(times[0]), float(end)))
    print(f"{out}: {rows} rows of {len(tables)} recordings on the clock of {video.name}")
    return 1 if failed else 0


def pack(
    folder: Path,
    /,
    *,
    out: Path,
    model: str,
    dataset: str | None = None,
    fold: int | None = None,
    recordings: Path | None = None,
    reading: Reading | None = None,
) -> int:
    """Convert a data set into one file for a model's input.

    Args:
        folder: the data set.
        out: the file.
        model: model or checkpoint whose input size and sound rate count.
        dataset: its name in `avsal data list`, where the folder does not tell.
        fold: fold of the lists.
        recordings: for a folder of your own videos: a CSV file with the options of single recordings.
        reading: for a folder of your own videos: how to read the gaze files.

    Returns:
        0, or 1 if some videos were left out.

    Raises:
        DataError: the folder is not a data set, or `out` exists.
        WeightsError: there is no such model or checkpoint.
    """
    module = _module(folder, dataset, fold, recordings, reading)
    spec = _spec(model)

    def progress(done: int, total: int, name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {name[:60]:60}", end="\n" if done == total else "", file=sys.stderr)

    skipped = module.pack(out, spec, progress=progress)
    for message in skipped:
        print(f"left out: {message}", file=sys.stderr)
    size = out.stat().st_size
    print(f"{out}: {size / 1e6:.1f} MB; use it as root: of {type(module).__name__}")
    return 1 if skipped else 0


def _spec(name: str) -> Any:
    import avsal

    if name in avsal.list_models():
        return avsal.create_model(name).spec
    return avsal.from_pretrained(name).spec


def synth(
    *,
    out: Path,
    clips: int = 240,
    seed: int = 0,
    seconds: float | None = None,
    observers: int = 15,
    difficulty: Literal["easy", "medium", "hard", "mixed"] = "mixed",
    ego: bool = False,
    per_frame: bool = False,
    workers: int | None = None,
) -> None:
    """Generate SynthAV.

    Args:
        out: the folder.
        clips: number of clips.
        seed: of all random choices.
        seconds: length of a clip (default: 3, or 8 with --ego).
        observers: number of simulated observers.
        difficulty: how hard the clips are.
        ego: head-mounted camera with one gaze track.
        per_frame: also write eyeMap_*.jpg and fixMap_*.mat.
        workers: number of threads (default: all cores, at most 8).

    Raises:
        ConfigError: a number is out of its range.
        OutputError: the folder cannot be written.
    """
    from avsal.data.synthetic import generate

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} clips", end="\n" if done == total else "", file=sys.stderr, flush=True)

    written = generate(
        out, clips=clips, seed=seed, seconds=(8.0 if ego else 3.0) if seconds is None else seconds,
        observers=observers, difficulty=difficulty, ego=ego, per_frame=per_frame, workers=workers, progress=progress,
    )  # fmt: skip
    print(f"{written}: {clips} clips. Train on it with data.init_args.root: {written}")
