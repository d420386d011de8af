"""`avsal leaderboard` and `avsal reproduce`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from avsal.errors import ConfigError

FORMATS = ("terminal", "markdown", "csv", "latex", "html")
_SUFFIXES = {
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".htm": "html",
    ".txt": "terminal",
}


def add_leaderboard_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `avsal leaderboard`'s arguments."""
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS",
        help="results files, or folders with them (default: results, if it is there)",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of --out, else terminal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file instead of the terminal")
    parser.add_argument(
        "--data", action="append", default=[], metavar="SET", help="only this data set; repeatable"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="only this metric (cc, nss, …); repeatable",
    )
    parser.add_argument(
        "--measured-only", action="store_true", help="no rows of models that were not measured"
    )
    parser.add_argument(
        "--everything", action="store_true", help="also copied rows and the papers' ablation tables"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")
    parser.add_argument("--video", metavar="NAME", help="the video whose NSS is drawn over time")
    parser.add_argument("--draws", type=int, default=10_000, help="bootstrap resamples. Default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap. Default: 0")


def leaderboard(args: argparse.Namespace) -> int:
    """Run `avsal leaderboard`.

    Returns:
        0, or 1 if results were left out.

    Raises:
        AvsalError: a path or an option is wrong.
    """
    from avsal.report.measured import Board, board
    from avsal.report.published import METRICS
    from avsal.report.tables import leaderboard as tables_of

    keys = {label.casefold(): key for label, (key, _) in METRICS.items()} | {
        key: key for key, _ in METRICS.values()
    }
    unknown = [m for m in args.metric if m.casefold() not in keys]
    if unknown:
        raise ConfigError(
            f"--metric {unknown[0]} is not known; allowed: {', '.join(k for k, _ in METRICS.values())}."
        )
    if args.draws < 1:
        raise ConfigError(f"--draws {args.draws} must be at least 1.")
    paths = args.results or [path for path in [Path("results")] if path.is_dir()]
    found = board(paths, draws=args.draws, seed=args.seed) if paths else Board([], [])
    tables = tables_of(
        found, data=args.data, metrics=[keys[m.casefold()] for m in args.metric], everything=args.everything,
        published=not args.measured_only,
    )  # fmt: skip
    known = [name for name in dict.fromkeys([*found.sets, *_published_sets()]) if name]
    wrong = [d for d in args.data if not any(_is(name, d) for name in known)]
    if wrong or not tables:
        raise ConfigError(
            f"no table for {', '.join(wrong or args.data) or 'these results'}; data sets are: {', '.join(known)}."
        )
    figures = []
    if args.figures is not None:
        from avsal.report.figures import draw_all

        figures = draw_all(found, args.figures, video=args.video)
        for _, path in figures:
            print(f"figure: {path}", file=sys.stderr)
    say(tables, args.out, args.format, "Leaderboard", found.notes, figures)
    return 1 if found.notes else 0


def _is(name: str, wanted: str) -> bool:
    from avsal.report.tables import chosen

    return chosen(name, [wanted])


def _published_sets() -> list[str]:
    from avsal.report.published import cells

    return list(dict.fromkeys(cell.board for cell in cells() if cell.main))


def say(
    tables: list,
    out: Path | None,
    form: str | None,
    title: str,
    left_out: list[str],
    figures: list[tuple[str, Path]],
    notes: list[str] | None = None,
) -> None:
    """Print or write tables, and say on stderr what is in none of them; for CSV, which has no place for notes, these.

    Args:
        tables: in order.
        out: the file; None for the terminal.
        form: one of `FORMATS`; None takes it from the file's ending.
        title: of the page.
        left_out: what is in no table.
        figures: captions and files.
        notes: sentences for all tables; by default the legend.
    """
    from avsal.files import write_text
    from avsal.report.render import render
    from avsal.report.tables import legend

    if form is None:
        form = _SUFFIXES.get(out.suffix.lower(), "terminal") if out is not None else "terminal"
    notes = legend() if notes is None else notes
    width = 200
    if out is None and sys.stdout.isatty():
        import shutil

        width = shutil.get_terminal_size().columns
    text = render(
        tables, form, title=title, notes=notes, left_out=left_out, figures=figures, width=width,
        folder=out.parent if out is not None else Path(),
    )  # fmt: skip
    if out is None:
        print(text)
    else:
        write_text(out, text if text.endswith("\n") else text + "\n")
        print(f"written: {out}", file=sys.stderr)
    if form == "csv":
        for table in tables:
            for note in table.notes:
                print(f"{table.title}: {note}", file=sys.stderr)
        for note in notes:
            print(note, file=sys.stderr)
    for note in left_out:
        print(note, file=sys.stderr)


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `avsal reproduce`'s arguments."""
    from avsal.report.published import PAPERS

    parser.add_argument(
        "what", choices=[*PAPERS, "synthav"],
        help="a paper, or synthav: the shipped checkpoints and the baselines on generated clips (needs nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--table", help="number of the paper's table, F and the number of a figure, or all (default: the tables that "
        "compare models)",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="list every table and figure, what it needs, or why it is not run"
    )
    parser.add_argument(
        "--data", type=Path, metavar="ROOT",
        help="folder of the data: the six sets; Ego4D and Aria; SALICON and MIT1003",
    )  # fmt: skip
    parser.add_argument(
        "--dhf1k", type=Path, metavar="ROOT", help="folder of DHF1K, for training stages that need it"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="of the printed table")
    parser.add_argument("--dry-run", action="store_true", help="list what would be done")
    parser.add_argument(
        "--train", action="store_true", help="train where there are no weights (days on GPUs)"
    )
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE",
        help="weights that are not fetched by themselves, or yours in place of others; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--fast",
        action="store_true",
        help="small networks after one step, on a few frames: checks data and settings, the numbers mean nothing",
    )
    parser.add_argument(
        "--protocol", choices=("paper", "common"), default="paper",
        help="paper: the frames, metric code and post-processing of the paper's authors; common: every frame, and "
        "avsal's conventions. Default: paper (synthav: always common)",
    )  # fmt: skip
    parser.add_argument("--sets", metavar="A,B", help="only these data sets of the table")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu. Default: auto")
    parser.add_argument("--devices", default="1", help="number of devices, or auto. Default: 1")
    parser.add_argument("--num-nodes", type=int, default=1, help="machines that share the work. Default: 1")
    parser.add_argument("--strategy", default="auto", help="Lightning's strategy, such as ddp. Default: auto")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at once. Default: 8")
    parser.add_argument(
        "--num-workers", type=int, help="processes that read videos. Default: all cores but one, at most 8"
    )
    parser.add_argument("--stride", type=int, help="score every n-th frame (default: 1; synthav: 5)")
    parser.add_argument(
        "--clips", type=int, default=240, help="synthav: clips that are generated. Default: 240"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into this folder")


def reproduce(args: argparse.Namespace) -> int:
    """Run `avsal reproduce`.

    Returns:
        0, or 1 if something could not be run.

    Raises:
        AvsalError: the data, the weights or an option is missing.
    """
    for option, value in (
        ("--batch-size", args.batch_size),
        ("--stride", args.stride),
        ("--num-nodes", args.num_nodes),
        ("--clips", args.clips),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{option} {value} must be at least 1.")
    if not re.fullmatch(r"auto|[1-9]\d*|-1|\d+(,\d+)+,?|\d+,", args.devices):
        raise ConfigError(
            f"--devices {args.devices} is no number of devices; give a number from 1, a list of devices such as 0,2, "
            "or auto."
        )
    if args.what == "synthav":
        from avsal.report.synthav import run
    else:
        from avsal.report.reproduce import run
    return run(args)


COMMANDS = {
    "leaderboard": (add_leaderboard_arguments, leaderboard),
    "reproduce": (add_reproduce_arguments, reproduce),
}
