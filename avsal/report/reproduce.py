"""`avsal reproduce PAPER`: run a paper's tables and figures on your data, and print them as the paper does."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import AvsalError, ConfigError, DataError, WeightsError
from avsal.report.measured import Entry, entry_of
from avsal.report.papers import SYSTEMS, TABLES, PaperTable, System
from avsal.report.recipes import FLOPS, FOLDERS, GPU, Training, chain, missing_weights, needs, source_of
from avsal.report.records import read
from avsal.report.testing import file_hash, first_process, run_test, say

if TYPE_CHECKING:
    from avsal.data.module import SaliencyDataModule
    from avsal.models.base import SaliencyModule

#: Data set -> its class in `avsal.data`.
DATA = {
    "DIEM": "DIEMDataModule", "Coutrot1": "Coutrot1DataModule", "Coutrot2": "Coutrot2DataModule",
    "AVAD": "AVADDataModule", "ETMD": "ETMDDataModule", "SumMe": "SumMeDataModule",
    "Ego4D": "Ego4DGazeDataModule", "Aria": "AriaGazeDataModule",
    "SALICON": "SALICONDataModule", "MIT1003": "MIT1003DataModule",
}  # fmt: skip
#: What must stand above every number of `--fast`.
MINIATURE = (
    "MINIATURE (--fast): small networks after one step, two frames or so of one video of each set, the first fold. It "
    "shows that data and settings are in order; the numbers mean nothing."
)


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
    """Return a paper's tables that can be run: one, with "all" every one, by default those that compare models.

    Raises:
        ConfigError: it has no such table, or it is not run; the message lists those that are.
    """
    own = [t for t in TABLES if t.paper == paper]
    if number is None or number.casefold() == "all":
        return [t for t in own if not t.reason and (t.main or number)]
    chosen = [t for t in own if t.is_called(number)]
    listed = "; ".join(f"{t.number} ({t.title})" for t in own if not t.reason)
    if not chosen:
        raise ConfigError(f"--table {number}: avsal reproduces these tables of {paper}: {listed}.")
    if chosen[0].reason:
        raise ConfigError(f"--table {number} is not run: {chosen[0].reason}. Those that are: {listed}.")
    return chosen


def plan(
    tables: Iterable[PaperTable], sets: list[str] | None = None, *, folds: tuple[int, ...] = (1, 2, 3)
) -> list[Run]:
    """Return every checkpoint on every data set of the tables, each once, a checkpoint's sets one after another.

    Raises:
        ConfigError: a set that is in none of the tables.
    """
    tables = list(tables)
    known = {name for table in tables for name in table.sets}
    wrong = [name for name in sets or [] if name not in known]
    if wrong:
        raise ConfigError(f"--sets {wrong[0]} is not in the table; it has {', '.join(sorted(known))}.")
    runs: dict[Run, None] = {}
    for table in tables:
        for row in table.rows:
            for name in dict.fromkeys(row.systems.values()):
                system = SYSTEMS[name]
                only = folds[:1] if table.form == "retention" else folds  # a picture needs one network
                for fold in only if system.folds else (None,):
                    for data in table.sets:
                        if row.systems.get(data) == name and (not sets or data in sets):
                            runs[Run(system, fold, data)] = None
    order = {name: k for k, name in enumerate(dict.fromkeys(one.checkpoint for one in runs))}
    return sorted(runs, key=lambda one: order[one.checkpoint])


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if a row could not be run.

    Raises:
        AvsalError: the data is not there, or nothing could be run.
    """
    args.weights = _given(args.weights)
    if args.list:
        return _print_list(args)
    chosen = tables_of(args.what, args.table)
    if args.fast:
        args.out, args.train, args.stride = args.out / "fast", True, args.stride or 16
        say(MINIATURE)
    sets = args.sets.split(",") if args.sets else None
    folds = (1,) if args.fast else (1, 2, 3)
    runs = plan(chosen, sets, folds=folds)
    if not args.train:
        runs = [one for one in runs if not _only_extra(one, chosen) or _there(one, args)]
    if args.dry_run:
        return _print_plan(runs, args)
    check_data(runs, args)
    if args.train:
        check_training(runs, args)
    problems: list[str] = []
    files: dict[tuple[str, str], list[Path]] = {}
    drawn: list[tuple[str, Path]] = []
    for checkpoint, module, sha256, tests in _loaded(runs, args, problems):
        for one in tests:
            try:
                done = _test(one, module, sha256, chosen, drawn, args)
            except AvsalError as error:
                problems.append(f"{checkpoint} on {one.data}: {error}")
                say(problems[-1])
                continue
            if done is not None:
                files.setdefault((one.system.name, one.data), []).append(done)
    if not first_process():
        return 0
    return _report(chosen, files, drawn, problems, args, len(folds), sets)


def _test(
    one: Run,
    module: SaliencyModule,
    sha256: str | None,
    tables: list[PaperTable],
    drawn: list[tuple[str, Path]],
    args: argparse.Namespace,
) -> Path | None:
    """Test a checkpoint on a data set and return the results file; pictures that tables want of it are added."""
    from avsal.report.figures import retention

    wanting = [t for t in tables if one.system.name in t.systems]
    for table in wanting:
        if table.form == "retention" and one.fold == 1 and one.data in table.sets:
            shown = data_module(one.data, one.fold, args, limit=2)
            path = figure_folder(args) / f"{one.checkpoint}-{one.data.lower()}-retention.png"
            drawn.append((table.title, retention(module, shown, path)))
    if all(t.form == "retention" for t in wanting):
        return None
    data = data_module(one.data, one.fold, args)
    return run_test(module, data, one.checkpoint, one.data, args, protocol=args.protocol, sha256=sha256)


def _given(words: Iterable[str]) -> dict[str, Path]:
    """Return `--weights NAME=FILE` as a mapping.

    Raises:
        ConfigError: a word is no such pair, or the file is not there.
    """
    found = {}
    for word in words:
        name, _, file = word.partition("=")
        if not name or not file:
            raise ConfigError(f"--weights {word}: expected NAME=FILE, such as resnet18-vggsound=H.pth.tar.")
        found[name] = Path(file).expanduser()
        if not found[name].exists():
            raise ConfigError(f"--weights {word}: there is no such file.")
    return found


def _only_extra(one: Run, tables: Iterable[PaperTable]) -> bool:
    """Say whether only rows of other papers' models need this network."""
    rows = [row for t in tables for row in t.rows if one.system.name in row.systems.values()]
    return all(row.extra for row in rows)


def _there(one: Run, args: argparse.Namespace) -> bool:
    return not chain(one.system, one.fold, args)


def _loaded(
    runs: list[Run], args: argparse.Namespace, problems: list[str]
) -> Iterator[tuple[str, SaliencyModule, str | None, list[Run]]]:
    """Yield each checkpoint's name, module, file hash and tests, one after another; what cannot be had is noted."""
    from avsal.zoo import from_pretrained

    failed: dict[Path, str] = {}

    def train(system: System, fold: int | None) -> None:
        for training in chain(system, fold, args):
            name = training.system.checkpoint(training.fold)
            if training.folder in failed:  # many rows start from one network
                raise WeightsError(f"{system.checkpoint(fold)} starts from {name}, whose training failed.")
            say(f"training {name} …")
            try:
                training.run()
            except AvsalError as error:
                failed[training.folder] = str(error)
                raise

    chosen = dict.fromkeys((one.system, one.fold) for one in runs)
    # Processes that Lightning starts in the first test run this command anew: they must find everything trained.
    ahead = args.train and (args.devices != "1" or args.num_nodes > 1)
    for system, fold in chosen if ahead and first_process() else ():
        with contextlib.suppress(AvsalError):
            train(system, fold)
    for system, fold in chosen:
        checkpoint = system.checkpoint(fold)
        try:
            if args.train and not ahead:
                train(system, fold)
            if left := chain(system, fold, args):
                reason = failed.get(left[-1].folder) or f"{checkpoint}: the authors published no weights."
                raise WeightsError(f"{reason} Train first (--train runs this):\n{_commands(left)}")
            found = source_of(system, fold, args) or Training(system, fold, args).best()
            assert found is not None
            module, sha256 = from_pretrained(found), file_hash(found)
        except AvsalError as error:
            problems.append(str(error))
            say(f"{checkpoint}: {error}")
            continue
        yield checkpoint, module, sha256, [one for one in runs if (one.system, one.fold) == (system, fold)]


def _commands(trainings: Iterable[Training]) -> str:
    import shlex

    return "\n".join(f"  avsal {shlex.join(t.words())}" for t in trainings)


# -- data --------------------------------------------------------------------------------------------------------


def data_module(
    name: str, fold: int | None, args: argparse.Namespace, limit: int | None = None
) -> SaliencyDataModule:
    """Return a data set's DataModule for testing.

    Args:
        name: as tables call it.
        fold: for sets with folds.
        args: `data`, `batch_size`, `num_workers`, `stride`, `fast`.
        limit: use only so many videos; one with `--fast`.
    """
    from avsal import data as rooms

    root = args.data
    if root is not None:
        own = (root / folder for folder in FOLDERS.get(DATA[name], ()))
        root = next((path for path in own if path.is_dir()), root)
    options: dict[str, Any] = {
        "batch_size": args.batch_size, "num_workers": args.num_workers, "test_stride": args.stride or 1,
    }  # fmt: skip
    if args.fast or limit:
        options["limit"] = limit or 1
        options |= {"clips": 2} if name in ("Ego4D", "Aria") else {}
    if fold is not None:
        options["fold"] = fold
    made: SaliencyDataModule = getattr(rooms, DATA[name])(root, **options)
    return made


def check_data(runs: list[Run], args: argparse.Namespace) -> None:
    """Look for all data of the tests before anything is run.

    Raises:
        DataError: names each set that is missing, and what to do.
    """
    wanted = dict.fromkeys((one.data, one.fold) for one in runs)
    if args.data is None:
        names = ", ".join(dict.fromkeys(name for name, _ in wanted))
        raise DataError(
            f"--data ROOT is needed: the folder with {names}. `avsal data list` names the sets, `avsal data info NAME` "
            "says where each comes from and how its folder looks; --dry-run lists what would be run, --list what each "
            "table needs."
        )
    missing: dict[str, str] = {}
    for name, fold in wanted:
        try:
            data_module(name, fold, args).split_items("test")
        except AvsalError as error:
            missing.setdefault(name, str(error))
    if missing:
        there = [name for name in dict.fromkeys(name for name, _ in wanted) if name not in missing]
        raise DataError(
            f"{args.data} lacks {', '.join(missing)}:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in missing.items())
            + (f"\nRun what is there with --sets {','.join(there)}." if there else "")
        )


def check_training(runs: list[Run], args: argparse.Namespace) -> None:
    """Look for all data and weights of the trainings before the first one begins.

    Raises:
        DataError, WeightsError: names everything that is missing, and what to do.
    """
    trainings: dict[Path, Training] = {}
    for one in runs:
        for training in chain(one.system, one.fold, args):
            trainings.setdefault(training.folder, training)
    lacking: dict[str, str] = {}
    for training in trainings.values():
        data = training.data_module()
        try:
            data.split_items("train")
        except AvsalError as error:
            lacking.setdefault(f"{type(data).__name__.removesuffix('DataModule')}", str(error))
    if lacking:
        raise DataError(
            "training needs data that is not there (--data ROOT has the sets, or folders DHF1K, SALICON, MIT1003 of "
            "them; --dhf1k ROOT):\n" + "\n".join(f"  {name}: {reason}" for name, reason in lacking.items())
        )
    if not args.fast and (words := missing_weights(trainings.values())):
        raise WeightsError("training needs weights that are not there:\n  " + "\n  ".join(words))


# -- what is said --------------------------------------------------------------------------------------------------


def _print_list(args: argparse.Namespace) -> int:
    own = [t for t in TABLES if t.paper == args.what and (not args.table or t.is_called(args.table))]
    if not own:
        raise ConfigError(f"--table {args.table}: {args.what} has no such table or figure.")
    for table in own:
        print(f"{table.name}: {table.title}")
        if table.reason:
            print(f"  not run: {table.reason}")
            continue
        lines = needs(table, args)
        trained = "; train on" in lines[0]
        dhf1k = " --dhf1k DHF1K" if "DHF1K" in lines[0] else ""
        print(
            f"  avsal reproduce {args.what} --table {table.number} --data ROOT{dhf1k}{' --train' if trained else ''}"
        )
        for line in [*lines, *filter(None, [table.note])]:
            print(f"  {line}")
    print(
        f"Hours are those of {FLOPS / 1e12:g} TFLOP/s, about a third of an {GPU}'s peak, for the clips and epochs of "
        "the recipes; reading videos is not in them. Trainings that several tables share are counted in each, and run "
        "once."
    )
    return 0


def _print_plan(runs: list[Run], args: argparse.Namespace) -> int:
    from avsal.checkpoints.cache import is_cached
    from avsal.checkpoints.registry import entries

    shown: set[str] = set()
    for one in runs:
        if one.checkpoint not in shown:
            shown.add(one.checkpoint)
            entry = entries().get(one.checkpoint)
            trainings = chain(one.system, one.fold, args)
            if trainings:
                print(f"{one.checkpoint}: no weights; train first:\n{_commands(trainings)}")
            elif entry is not None and not args.fast:
                print(
                    f"{one.checkpoint}: weights {'in the cache' if is_cached(entry) else 'to fetch'} ({entry.status})"
                )
            else:
                print(f"{one.checkpoint}: {source_of(one.system, one.fold, args) or 'trained'}")
        state = "?"
        if args.data is not None:
            try:
                state = f"{len(data_module(one.data, one.fold, args).split_items('test'))} test videos"
            except AvsalError as error:
                state = f"missing: {error}"
        print(f"  test on {one.data}{f' fold {one.fold}' if one.fold else ''}: {state}")
    print(
        f"{len(runs)} tests of {len(shown)} checkpoints, protocol {args.protocol}; results go to {args.out}"
    )
    return 0


def figure_folder(args: argparse.Namespace) -> Path:
    """Return the folder of the figures."""
    folder: Path = args.figures or args.out / "figures"
    return folder


def _report(
    tables: list[PaperTable],
    files: dict[tuple[str, str], list[Path]],
    drawn: list[tuple[str, Path]],
    problems: list[str],
    args: argparse.Namespace,
    folds: int,
    sets: list[str] | None,
) -> int:
    if not files and not drawn:
        raise WeightsError(
            "nothing was tested: there are no weights (see above)." if problems else "nothing was tested."
        )
    from avsal.report.commands import say as print_tables
    from avsal.report.layout import paper_table
    from avsal.report.tables import legend

    notes: list[str] = []
    found: dict[tuple[str, str], Entry] = {}
    for (system, data), paths in files.items():
        records = read(paths, notes)
        wanted = folds if SYSTEMS[system].folds else 1
        if len(records) < wanted:
            notes.append(f"left out: {system} on {data}: {len(records)} of {wanted} folds could be tested.")
        elif records:
            found[system, data] = entry_of(
                records[0].data, sorted(records, key=lambda r: r.fold), 100 if args.fast else 10_000
            )
    shown = [paper_table(t, found, args, sets) for t in tables if t.form != "retention"]
    figures = [*drawn, *_figures(tables, found, args)]
    if args.figures is not None and found:
        from avsal.report.figures import draw_all
        from avsal.report.measured import Board

        figures += draw_all(Board(list(found.values()), []), args.figures)
    heads = dict.fromkeys(f"{t.title} ({t.name.lower()})" for t in tables)
    words = [MINIATURE] if args.fast else []
    if shown:
        print_tables(shown, None, args.format, "; ".join(heads), [], figures, notes=[*words, *legend()[:2]])
    for caption, path in figures:
        print(f"figure: {path} ({caption})", file=sys.stderr)
    for note in [*notes, *problems]:
        print(note, file=sys.stderr)
    return 1 if problems or notes else 0


def _figures(
    tables: Iterable[PaperTable], found: dict[tuple[str, str], Entry], args: argparse.Namespace
) -> list[tuple[str, Path]]:
    """Draw the paper's curves."""
    from avsal.report.figures import curves
    from avsal.report.layout import points

    made = []
    for table in tables:
        if table.number[0] == "F" and table.form != "retention":
            for metric in table.metrics:
                path = (
                    figure_folder(args)
                    / f"{table.paper}-{table.number.lower()}-{metric.split()[0].lower()}.png"
                )
                lines = points(table, metric, found)
                if any(lines.values()):
                    made.append(
                        (f"{table.name}: {metric}, {table.title}", curves(lines, metric, table.title, path))
                    )
    return made
