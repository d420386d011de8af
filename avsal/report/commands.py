"""`avsal leaderboard` and `avsal reproduce`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from avsal.errors import ConfigError
from avsal.options import assignments

Format = Literal["terminal", "markdown", "csv", "latex", "html"]


def leaderboard(
    *results: Path,
    format: Format | None = None,
    out: Path | None = None,
    data: Sequence[str] = (),
    metric: Sequence[str] = (),
    measured_only: bool = False,
    everything: bool = False,
    figures: Path | None = None,
    video: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> int:
    """Print tables of published and measured results.

    Args:
        results: results files, or folders with them (default: results, if it is there).
        format: of the tables (default: by the ending of --out, else terminal).
        out: write to this file instead of the terminal.
        data: only this data set; repeatable.
        metric: only this metric (cc, nss, ...); repeatable.
        measured_only: no rows of models that were not measured.
        everything: also copied rows, the papers' ablation tables, and benchmarks that nothing here measures.
        figures: draw the figures into this folder.
        video: the video whose NSS is drawn over time.
        draws: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        0, or 1 if results were left out.

    Raises:
        AvsalError: a path or an option is wrong.
    """
    from avsal.report.measured import Board, board
    from avsal.report.published import METRICS, cells
    from avsal.report.render import output
    from avsal.report.tables import chosen, leaderboard as tables_of

    keys = {key: key for key, _ in METRICS.values()} | {
        label.casefold(): key for label, (key, _) in METRICS.items()
    }
    if unknown := [m for m in metric if m.casefold() not in keys]:
        raise ConfigError(
            f"--metric {unknown[0]} is not known; allowed: {', '.join(k for k, _ in METRICS.values())}."
        )
    if draws < 1:
        raise ConfigError(f"--draws {draws} must be at least 1.")
    paths = [Path(path) for path in results] or [path for path in [Path("results")] if path.is_dir()]
    found = board(paths, draws=draws, seed=seed) if paths else Board([], [])
    metrics = [keys[m.casefold()] for m in metric]
    tables = tables_of(found, data=data, metrics=metrics, everything=everything, published=not measured_only)
    known = [name for name in dict.fromkeys([*found.sets, *(c.board for c in cells() if c.main)]) if name]
    wrong = [d for d in data if not any(chosen(name, [d]) for name in known)]
    if wrong or not tables:
        raise ConfigError(
            f"no table for {', '.join(wrong or data) or 'these results'}; data sets are: {', '.join(known)}."
        )
    drawn = []
    if figures is not None:
        from avsal.report.figures import draw_all

        drawn = draw_all(found, figures, video=video)
        for _, path in drawn:
            print(f"figure: {path}", file=sys.stderr)
    output(tables, title="Leaderboard", form=format, out=out, left_out=found.notes, figures=drawn)
    return 1 if found.notes else 0


def reproduce(
    what: str,
    /,
    *,
    table: str | None = None,
    list: bool = False,
    data: Path | None = None,
    dhf1k: Path | None = None,
    out: Path = Path("results"),
    format: Format = "terminal",
    dry_run: bool = False,
    train: bool = False,
    weights: Annotated[
        Mapping[str, Path] | None, assignments("--weights", value=Path, metavar="NAME=FILE")
    ] = None,
    fast: bool = False,
    protocol: Literal["paper", "full", "common"] = "paper",
    sets: str | None = None,
    accelerator: str = "auto",
    devices: str = "1",
    num_nodes: int = 1,
    strategy: str = "auto",
    batch_size: int = 8,
    num_workers: int | None = None,
    stride: int | None = None,
    clips: int = 240,
    figures: Path | None = None,
) -> int:
    """Run a paper's tables on your data.

    Args:
        what: stavis, casp, mspi, avrsp or csts; or synthav: the shipped checkpoints and the baselines on generated
            clips (needs nothing).
        table: number of the paper's table, F and the number of a figure, or all (default: the tables that compare
            models).
        list: list every table and figure, what it needs, or why it is not run.
        data: folder of the data: the six sets; Ego4D and Aria; SALICON and MIT1003.
        dhf1k: folder of DHF1K, for training stages that need it.
        out: folder of the results.
        format: of the printed tables.
        dry_run: list what would be done.
        train: train where there are no weights (days on GPUs).
        weights: NAME=FILE, weights that are not fetched by themselves, or yours in place of others; repeatable.
        fast: small networks after one step, on a few frames: checks data and settings, the numbers mean nothing.
        protocol: paper: the frames, metric code and post-processing of the paper's authors; full (also called
            common): every frame, and avsal's conventions (synthav: always full).
        sets: only these data sets of the table, as A,B.
        accelerator: auto, cpu, gpu.
        devices: number of devices, a list of them such as 0,2, or auto.
        num_nodes: machines that share the work.
        strategy: Lightning's strategy, such as ddp.
        batch_size: windows at once.
        num_workers: processes that read videos (default: all cores but one, at most 8).
        stride: score every n-th frame (default: 1; synthav: 5).
        clips: synthav: clips that are generated.
        figures: draw the figures into this folder.

    Returns:
        0, or 1 if something could not be run.

    Raises:
        AvsalError: the data, the weights or an option is missing or wrong.
    """
    from avsal.report.published import PAPERS
    from avsal.report.testing import Options

    if what not in (*PAPERS, "synthav"):
        raise ConfigError(f"{what} is not known; allowed: {', '.join([*PAPERS, 'synthav'])}.")
    for name, value in (
        ("batch-size", batch_size),
        ("stride", stride),
        ("num-nodes", num_nodes),
        ("clips", clips),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} must be at least 1.")
    if not re.fullmatch(r"auto|[1-9]\d*|-1|\d+(,\d+)+,?|\d+,", devices):
        raise ConfigError(
            f"--devices {devices} is no number of devices; give a number from 1, a list of devices such as 0,2, "
            "or auto."
        )
    files = {name: file.expanduser() for name, file in (weights or {}).items()}
    for name, path in files.items():
        if not path.exists():
            raise ConfigError(f"--weights {name}={path}: there is no such file.")
    usual = 5 if what == "synthav" else 16 if fast else 1
    options = Options(
        data=data, dhf1k=dhf1k, out=out, weights=files, fast=fast, stride=stride or usual,
        protocol="full" if protocol == "common" else protocol,
        batch_size=batch_size, num_workers=num_workers, accelerator=accelerator, devices=devices, num_nodes=num_nodes,
        strategy=strategy,
    )  # fmt: skip
    shown: dict[str, Any] = {"dry_run": dry_run, "form": format, "figures": figures}
    if what == "synthav":
        from avsal.report import synthav

        return synthav.run(options, clips=clips, **shown)
    from avsal.report import reproduce as papers

    if list:
        return papers.print_list(what, options, table)
    chosen = sets.split(",") if sets else ()
    return papers.run(what, options, table=table, sets=chosen, train=train, **shown)
