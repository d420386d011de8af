"""`avsal data list|info|fetch|check|import|pack|synth`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from avsal.data.gaze import options as gaze_options
from avsal.errors import AvsalError, ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    commands.add_parser("list", help="all data sets on one page")
    info = commands.add_parser("info", help="content, licence, size, and how to get it")
    info.add_argument("name")
    fetch = commands.add_parser("fetch", help="download where the terms allow it, else say how to get it")
    fetch.add_argument("name")
    fetch.add_argument("--out", type=Path, required=True, metavar="DIR")
    fetch.add_argument("--split", choices=("train", "test"), help="only this split (sets on the Hub)")
    fetch.add_argument(
        "--max-videos", type=int, metavar="N", help="only N videos of each split (sets on the Hub)"
    )
    check = commands.add_parser("check", help="verify a folder completely; nothing is modified")
    check.add_argument("dir", type=Path)
    check.add_argument("--dataset", metavar="NAME", help="what it is, where the folder does not tell")
    check.add_argument("--fold", type=int, metavar="K", help="fold of the lists")
    check.add_argument("--quick", action="store_true", help="read three frames of each annotation")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    bring = commands.add_parser("import", help="write eye trackers' exports as avsal's plain table")
    bring.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one file for each recording")
    bring.add_argument("--video", type=Path, required=True, help="the video that was looked at")
    bring.add_argument("--out", type=Path, metavar="CSV", help="default: beside the video, with its name")
    gaze_options.add_arguments(bring, short=True)
    pack = commands.add_parser("pack", help="convert a data set into one file for a model's input")
    pack.add_argument("dir", type=Path)
    pack.add_argument("--out", type=Path, required=True, metavar="FILE")
    pack.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="model or checkpoint whose input size and sound rate count",
    )
    pack.add_argument("--dataset", metavar="NAME", help="what it is, where the folder does not tell")
    pack.add_argument("--fold", type=int, metavar="K", help="fold of the lists")
    for command in (check, pack):
        reading = command.add_argument_group("reading gaze files (a folder of your own videos)")
        reading.add_argument("--recordings", type=Path, metavar="CSV", help="options of single recordings")
        gaze_options.add_arguments(reading, short=True)
    synth = commands.add_parser("synth", help="generate SynthAV")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR")
    synth.add_argument("--clips", type=int, default=240, metavar="N")
    synth.add_argument("--seed", type=int, default=0, metavar="S")
    synth.add_argument("--seconds", type=float, help="length of a clip (3, or 8 with --ego)")
    synth.add_argument("--observers", type=int, default=15)
    synth.add_argument("--difficulty", choices=("easy", "medium", "hard", "mixed"), default="mixed")
    synth.add_argument("--ego", action="store_true", help="head-mounted camera with one gaze track")
    synth.add_argument("--per-frame", action="store_true", help="also write eyeMap_*.jpg and fixMap_*.mat")
    synth.add_argument("--workers", type=int, metavar="N")


def main(arguments: argparse.Namespace) -> int:
    """Run a subcommand; 1 means that problems were found."""
    run = {
        "list": _list, "info": _info, "fetch": _fetch, "check": _check, "import": _import, "pack": _pack,
        "synth": _synth,
    }  # fmt: skip
    return run[arguments.what](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from avsal.data.catalog import ENTRIES

    width = max(len(e.name) for e in ENTRIES)
    for e in ENTRIES:
        how = "made here" if e.name == "synthav" else "fetch" if e.hub or e.urls else "by hand"
        sound = "sound" if e.sound == "yes" else "     "
        print(f"{e.name:{width}}  {sound}  {how:9}  {e.content}")
    print("\n`avsal data info NAME` shows terms, sizes and steps;")
    print("`avsal data fetch NAME --out DIR` gets what may be fetched.")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from avsal.data.catalog import entry

    e = entry(arguments.name)
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
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from avsal.data.catalog import entry
    from avsal.data.fetch import fetch

    if arguments.max_videos is not None and arguments.max_videos < 1:
        raise ConfigError(f"--max-videos {arguments.max_videos}: at least 1.")
    got = fetch(
        entry(arguments.name),
        arguments.out,
        split=arguments.split,
        max_videos=arguments.max_videos,
    )
    if got:
        print(f"Now verify it: avsal data check {arguments.out}")
    return 0 if got else 1


def _module(arguments: argparse.Namespace) -> Any:
    import avsal.data as data
    from avsal.data.catalog import entry
    from avsal.data.check import recognise

    if arguments.dataset:
        module = getattr(data, entry(arguments.dataset).module)(arguments.dir, num_workers=0)
    else:
        module = recognise(arguments.dir)
    reading, recordings = gaze_options.from_arguments(arguments), arguments.recordings
    if reading.changed() or recordings is not None:
        if not isinstance(module, data.FolderDataModule):
            raise ConfigError(
                f"{arguments.dir}: is read by {type(module).__name__}, which knows its own gaze files; options of gaze "
                "files are for a folder of your own videos."
            )
        module.reading, module.recordings = reading, recordings
    if arguments.fold is not None:
        if not hasattr(module, "fold"):
            raise ConfigError(f"--fold: {type(module).__name__} has no folds.")
        module.fold = arguments.fold
    return module


def _check(arguments: argparse.Namespace) -> int:
    from avsal.data.check import as_json, check, table
    from avsal.files import write_text

    module = _module(arguments)
    progress = (
        (lambda name: print(f"\r{name[:70]:70}", end="", file=sys.stderr)) if sys.stderr.isatty() else None
    )
    reports = check(module, quick=arguments.quick, progress=progress)
    if progress:
        print(f"\r{'':70}\r", end="", file=sys.stderr)
    print(f"{arguments.dir}: read by {type(module).__name__}")
    print(table(reports))
    if arguments.json:
        write_text(arguments.json, json.dumps(as_json(reports), indent=1) + "\n")
    return 1 if any(r.problems for r in reports) else 0


def _import(arguments: argparse.Namespace) -> int:
    from avsal.data.gaze.samples import write_plain
    from avsal.data.gaze.tables import read_gaze_table
    from avsal.data.sets.folder import table_to_fixations
    from avsal.io.video import VideoReader

    video, out = arguments.video, arguments.out or arguments.video.with_suffix(".csv")
    if out.exists():
        raise ConfigError(f"{out}: already exists; remove it, or pass another --out.")
    reading = gaze_options.from_arguments(arguments)
    with VideoReader(video) as reader:
        size, times = (reader.info.height, reader.info.width), reader.times
    tables, failed = [], 0
    for path in arguments.files:
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


def _pack(arguments: argparse.Namespace) -> int:
    module = _module(arguments)
    spec = _spec(arguments.model)

    def progress(done: int, total: int, name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {name[:60]:60}", end="\n" if done == total else "", file=sys.stderr)

    skipped = module.pack(arguments.out, spec, progress=progress)
    for message in skipped:
        print(f"left out: {message}", file=sys.stderr)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size / 1e6:.1f} MB; use it as root: of {type(module).__name__}")
    return 1 if skipped else 0


def _spec(name: str) -> Any:
    import avsal

    if name in avsal.list_models():
        return avsal.create_model(name).spec
    return avsal.from_pretrained(name).spec


def _synth(arguments: argparse.Namespace) -> int:
    from avsal.data.synthetic import generate

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} clips", end="\n" if done == total else "", file=sys.stderr, flush=True)

    seconds = arguments.seconds if arguments.seconds is not None else 8.0 if arguments.ego else 3.0
    out = generate(
        arguments.out, clips=arguments.clips, seed=arguments.seed, seconds=seconds, observers=arguments.observers,
        difficulty=arguments.difficulty, ego=arguments.ego, per_frame=arguments.per_frame, workers=arguments.workers,
        progress=progress,
    )  # fmt: skip
    print(f"{out}: {arguments.clips} clips. Train on it with data.init_args.root: {out}")
    return 0
