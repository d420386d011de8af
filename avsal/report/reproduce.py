"""`avsal reproduce PAPER`: run a paper's tables on your data, every fold and set, and print them beside the paper's."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avsal.errors import AvsalError, ConfigError, DataError, WeightsError
from avsal.report.measured import Board, board
from avsal.report.papers import SYSTEMS, TABLES, PaperTable, System
from avsal.report.published import SIX
from avsal.report.stages import training

if TYPE_CHECKING:
    from avsal.data.module import SaliencyDataModule
    from avsal.evaluation import Protocol
    from avsal.models.base import SaliencyModule

#: Data set -> its class in `avsal.data`, and names of its folder below --data.
DATA = {
    "DIEM": ("DIEMDataModule", ()),
    "Coutrot1": ("Coutrot1DataModule", ()),
    "Coutrot2": ("Coutrot2DataModule", ()),
    "AVAD": ("AVADDataModule", ()),
    "ETMD": ("ETMDDataModule", ()),
    "SumMe": ("SumMeDataModule", ()),
    "Ego4D": ("Ego4DGazeDataModule", ("Ego4D", "ego4d")),
    "Aria": ("AriaGazeDataModule", ("Aria", "aria")),
}


@dataclass(frozen=True)
class Run:
    """One checkpoint on one data set.

    Attributes:
        system: whose weights.
        fold: of the weights and the data; None without folds.
        data: the data set.
    """

    system: System
    fold: int | None
    data: str

    @property
    def checkpoint(self) -> str:
        """Name of the weights."""
        return self.system.checkpoint(self.fold)


def tables_of(paper: str, number: str | None) -> list[PaperTable]:
    """Return a paper's tables.

    Raises:
        ConfigError: it has no such table here; the message lists those there are.
    """
    known = [t for t in TABLES if t.paper == paper]
    chosen = [t for t in known if number is None or number in (t.number, *t.aliases)]
    if not chosen:
        raise ConfigError(
            f"--table {number}: avsal reproduces these tables of {paper}: "
            + "; ".join(f"{t.number} ({t.title})" for t in known)
            + ". The other tables are ablations: docs/models/ says which arguments give their rows."
        )
    return chosen


def plan(tables: list[PaperTable], sets: list[str] | None = None) -> list[Run]:
    """Return every checkpoint on every data set of the tables, each once, a checkpoint's sets one after another.

    Raises:
        ConfigError: a set that is in none of the tables.
    """
    known = {name for table in tables for name in table.sets}
    wrong = [name for name in sets or [] if name not in known]
    if wrong:
        raise ConfigError(f"--sets {wrong[0]} is not in the table; it has {', '.join(sorted(known))}.")
    runs: dict[Run, None] = {}
    for table in tables:
        for name in table.systems:
            system = SYSTEMS[name]
            wanted = [
                d for d in table.sets if (not sets or d in sets) and (not system.tables or d in system.tables)
            ]
            if system.tables:  # one set has several tables of gaze
                wanted = [d for d in wanted if system.tables[d] == table.number]
            for fold in (1, 2, 3) if system.folds else (None,):
                for data in wanted:
                    runs[Run(system, fold, data)] = None
    order = {name: k for k, name in enumerate(dict.fromkeys(one.checkpoint for one in runs))}
    return sorted(runs, key=lambda one: order[one.checkpoint])


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if a checkpoint could not be had.

    Raises:
        AvsalError: the data is not there, or nothing could be run.
    """
    chosen = tables_of(args.what, args.table)
    runs = plan(chosen, args.sets.split(",") if args.sets else None)
    if args.dry_run:
        return _print_plan(runs, args)
    check_data(runs, args)
    problems: list[str] = []
    files: list[Path] = []
    weights: dict[str, tuple[SaliencyModule, str | None] | None] = {}
    for one in runs:
        if one.checkpoint not in weights:
            weights.clear()  # one model in memory at a time
            weights[one.checkpoint] = _weights(one, args, problems)
        loaded = weights[one.checkpoint]
        if loaded is None:
            continue
        module, sha256 = loaded
        protocol: Protocol = args.protocol
        data = data_module(one.data, args.data, one.fold, args)
        path = run_test(module, data, one.checkpoint, one.data, args, protocol=protocol, sha256=sha256)
        if path is not None:
            files.append(path)
    return _report(chosen, files, problems, args)


# -- one test --------------------------------------------------------------------------------------------------


def run_test(
    module: SaliencyModule,
    data: SaliencyDataModule,
    checkpoint: str,
    data_name: str,
    args: argparse.Namespace,
    *,
    protocol: Protocol,
    sound: Literal["own", "swapped"] = "own",
    sha256: str | None = None,
) -> Path | None:
    """Test one checkpoint, write its results, and return the file; a finished one is not repeated.

    Args:
        module: with its weights.
        data: the data set.
        checkpoint: name of the weights.
        data_name: for the file's name.
        args: `out`, `accelerator`, `devices`, `num_nodes`, `strategy`.
        protocol, sound, sha256: see `avsal.evaluation.evaluate`.

    Returns:
        The results file; None on every process but the first.
    """
    from avsal.evaluation import evaluate, forget
    from avsal.results import weights_hash
    from avsal.scorefiles import write_frames

    fold = getattr(data, "fold", None)
    parts = [checkpoint, data_name.lower(), f"fold{fold}" if fold and data_name in SIX else None, protocol]
    parts.append("swapped" if sound == "swapped" else None)
    path = args.out / f"{'-'.join(str(p) for p in parts if p)}.json"
    if _finished(path, data, weights_hash(module), protocol, sound):
        _say(f"{path}: done before")
        return path
    _say(f"{checkpoint} on {data_name}{f' fold {fold}' if fold and data_name in SIX else ''}"
         f"{', sound swapped' if sound != 'own' else ''} …")  # fmt: skip
    with quiet():
        found = evaluate(
            module, data, checkpoint=checkpoint, sha256=sha256, work=args.out / ".partial" / path.stem,
            protocol=protocol, sound=sound, trainer=trainer_options(args),
        )  # fmt: skip
    if found is None:
        return None
    results, frames = found
    write_frames(frames, path)
    results.write(path)
    forget(args.out / ".partial" / path.stem)
    for failure in results.failed[:5]:
        _say(f"  left out: {failure.error}")
    _say("  " + ", ".join(f"{name} {value:.4f}" for name, value in results.metrics.items()) + f" ({path})")
    return path


def _finished(path: Path, data: SaliencyDataModule, weights: str, protocol: str, sound: str) -> bool:
    """Say whether a file holds the whole results of these weights on this data under this protocol."""
    from avsal.results import Results, data_of

    if not path.is_file():
        return False
    try:
        known = Results.read(path)
    except DataError:
        return False
    data.prepare_data()
    there = data_of(data)
    return (
        known.checkpoint is not None
        and weights in known.checkpoint.hashes
        and known.data.fingerprint == there.fingerprint
        and known.data.annotations in (None, there.annotations)
        and known.complete
        and known.protocol.get("protocol") == protocol
        and known.protocol.get("sound") == sound
        and known.protocol.get("stride") == data.test_stride
    )


def file_hash(name: str | Path) -> str | None:
    """Return the sha256 of the file that weights are in: of a path, or as the registry states it for a name."""
    from avsal.files import sha256_of
    from avsal.zoo.registry import entries

    if isinstance(name, Path):
        return sha256_of(name) if name.is_file() else None
    entry = entries().get(name)
    stated = {getattr(source, "sha256", None) for source in entry.sources} if entry is not None else set()
    return stated.pop() if len(stated) == 1 else None


def trainer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the Trainer's arguments that the command line gives."""
    devices: int | str = args.devices if args.devices == "auto" or "," in args.devices else int(args.devices)
    return {
        "accelerator": args.accelerator, "devices": devices, "num_nodes": args.num_nodes, "strategy": args.strategy,
        "enable_progress_bar": sys.stderr.isatty(),
    }  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks about hardware and logging from the tables."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*sync_dist.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_process() -> bool:
    """Say whether this is the process that reports."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def _say(words: str) -> None:
    if first_process():
        print(words, file=sys.stderr, flush=True)


# -- data --------------------------------------------------------------------------------------------------------


def data_module(
    name: str, root: Path | None, fold: int | None, args: argparse.Namespace
) -> SaliencyDataModule:
    """Return a data set's DataModule.

    Args:
        name: as tables call it.
        root: of all data; a folder of the set's name below it is taken where there is one.
        fold: for sets with folds.
        args: `batch_size`, `num_workers`, `stride`.
    """
    from avsal import data as rooms

    cls, folders = DATA[name]
    if root is not None:
        root = next((root / folder for folder in folders if (root / folder).is_dir()), root)
    options: dict[str, Any] = {
        "batch_size": args.batch_size, "num_workers": args.num_workers, "test_stride": args.stride or 1,
    }  # fmt: skip
    if fold is not None:
        options["fold"] = fold
    made: SaliencyDataModule = getattr(rooms, cls)(root, **options)
    return made


def check_data(runs: list[Run], args: argparse.Namespace) -> None:
    """Look for all data before anything is run.

    Raises:
        DataError: names each set that is missing, and what to do.
    """
    wanted = dict.fromkeys((one.data, one.fold) for one in runs)
    if args.data is None:
        names = ", ".join(dict.fromkeys(name for name, _ in wanted))
        raise DataError(
            f"--data ROOT is needed: the folder with {names}. `avsal data list` names the sets, `avsal data info NAME` "
            "says where each comes from and how its folder looks; --dry-run lists what would be run."
        )
    missing: dict[str, str] = {}
    for name, fold in wanted:
        try:
            data_module(name, args.data, fold, args).split_items("test")
        except AvsalError as error:
            missing.setdefault(name, str(error))
    if missing:
        there = [name for name in dict.fromkeys(name for name, _ in wanted) if name not in missing]
        raise DataError(
            f"{args.data} lacks {', '.join(missing)}:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in missing.items())
            + (f"\nRun what is there with --sets {','.join(there)}." if there else "")
        )


# -- weights -----------------------------------------------------------------------------------------------------


def _weights(
    one: Run, args: argparse.Namespace, problems: list[str]
) -> tuple[SaliencyModule, str | None] | None:
    """Return a module with its weights, and their file's sha256: from the registry, or trained here.

    None, with a note, if they cannot be had.
    """
    from avsal.zoo import from_pretrained
    from avsal.zoo.registry import entries

    try:
        if one.checkpoint in entries():
            return from_pretrained(one.checkpoint), file_hash(one.checkpoint)
        trained = training(one.system, one.fold, args)
        if trained.best() is None:
            if not args.train:
                raise WeightsError(
                    f"{one.checkpoint}: the authors published no weights. Train first (--train runs this):\n"
                    + trained.as_text()
                )
            trained.run()
        best = trained.best()
        assert best is not None
        return from_pretrained(best), file_hash(best)
    except WeightsError as error:
        problems.append(str(error))
        _say(f"{one.checkpoint}: {error}")
        return None


# -- what is said --------------------------------------------------------------------------------------------------


def _print_plan(runs: list[Run], args: argparse.Namespace) -> int:
    from avsal.zoo.cache import is_cached
    from avsal.zoo.registry import entries

    known = entries()
    shown: set[str] = set()
    for one in runs:
        if one.checkpoint not in shown:
            shown.add(one.checkpoint)
            if one.checkpoint in known:
                entry = known[one.checkpoint]
                print(
                    f"{one.checkpoint}: weights {'in the cache' if is_cached(entry) else 'to fetch'} ({entry.status})"
                )
            else:
                trained = training(one.system, one.fold, args)
                done = trained.best()
                print(f"{one.checkpoint}: " + (f"trained, {done}" if done else "no weights; train first:"))
                if done is None:
                    print(trained.as_text())
        state = "?"
        if args.data is not None:
            try:
                data = data_module(one.data, args.data, one.fold, args)
                state = f"{len(data.split_items('test'))} test videos"
            except AvsalError as error:
                state = f"missing: {error}"
        print(f"  test on {one.data}{f' fold {one.fold}' if one.fold else ''}: {state}")
    print(
        f"{len(runs)} tests of {len(shown)} checkpoints, protocol {args.protocol}; results go to {args.out}"
    )
    return 0


def _report(
    tables: list[PaperTable], files: list[Path], problems: list[str], args: argparse.Namespace
) -> int:
    if not first_process():
        return 0
    if not files:
        raise WeightsError(
            "nothing was tested: there are no weights (see above)." if problems else "nothing was tested."
        )
    from avsal.report.commands import say
    from avsal.report.tables import leaderboard, legend

    found = board(files)
    figures = []
    if args.figures is not None:
        from avsal.report.figures import draw_all

        figures = draw_all(found, args.figures)
    shown = []
    for table in tables:
        part = of_table(found, table)
        made = leaderboard(part, metrics=list(table.metrics), published=False)
        made = [t for t in made if t.title in part.sets]
        shown += [replace(t, title=f"Table {table.number}: {t.title}") for t in made]
    if shown:
        names = dict.fromkeys(f"{t.title} (table {t.number})" for t in tables)
        say(shown, None, args.format, "; ".join(names), [], figures, notes=legend()[:2])
    for note in [*found.notes, *problems]:
        print(note, file=sys.stderr)
    return 1 if problems or found.notes else 0


def of_table(found: Board, table: PaperTable) -> Board:
    """Return the systems and data sets of one table of a paper: one gaze set has several tables."""
    entries = [
        e
        for e in found.entries
        if e.system is not None
        and e.system.name in table.systems
        and (base := e.data.split(",")[0]) in table.sets
        and e.system.tables.get(base, table.number) == table.number
    ]
    return Board(entries, [])
