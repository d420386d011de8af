"""`avsal reproduce PAPER`: run a paper's tables and figures on your data, and print them as the paper does."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import AvsalError, ConfigError, DataError, WeightsError
from avsal.report.measured import Board, Entry, entry_of
from avsal.report.papers import SYSTEMS, TABLES, PaperTable, System
from avsal.report.recipes import FLOPS, GPU, Training, chain, missing_weights, needs, root_of, source_of
from avsal.report.records import read
from avsal.report.render import output
from avsal.report.testing import Options, file_hash, first_process, run_test, say

if TYPE_CHECKING:
    from avsal.data.module import SaliencyDataModule
    from avsal.models.base import SaliencyModule

#: Data set -> its class in `avsal.data`.
DATA = {
    **{name: f"{name}DataModule" for name in ("DIEM", "Coutrot1", "Coutrot2", "AVAD", "ETMD", "SumMe")},
    "Ego4D": "Ego4DGazeDataModule", "Aria": "AriaGazeDataModule",
    "SALICON": "SALICONDataModule", "MIT1003": "MIT1003DataModule",
}  # fmt: skip
#: What is printed above every number of `--fast`.
MINIATURE = (
    "MINIATURE (--fast): small networks after one step, two frames or so of one video of each set, the first fold. It "
    "shows that data and settings are in order; the numbers mean nothing."
)


@dataclass(frozen=True)
class Run:
    """One checkpoint on one data set; the fold is None without folds."""

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
    tables: Sequence[PaperTable], sets: Sequence[str] = (), *, folds: tuple[int, ...] = (1, 2, 3)
) -> list[Run]:
    """Return every checkpoint on every data set of the tables, each once, a checkpoint's sets one after another.

    Raises:
        ConfigError: a set that is in none of the tables.
    """
    known = {name for table in tables for name in table.sets}
    if wrong := [name for name in sets if name not in known]:
        raise ConfigError(f"--sets {wrong[0]} is not in the table; it has {', '.join(sorted(known))}.")
    runs: dict[Run, None] = {}
    for table in tables:
        only = folds[:1] if table.form == "retention" else folds  # a picture needs one network
        for row in table.rows:
            for name in dict.fromkeys(row.systems.values()):
                for fold in only if SYSTEMS[name].folds else (None,):
                    for data in table.sets:
                        if row.systems.get(data) == name and (not sets or data in sets):
                            runs[Run(SYSTEMS[name], fold, data)] = None
    order = {name: k for k, name in enumerate(dict.fromkeys(one.checkpoint for one in runs))}
    return sorted(runs, key=lambda one: order[one.checkpoint])


def run(
    paper: str,
    options: Options,
    *,
    table: str | None = None,
    sets: Sequence[str] = (),
    train: bool = False,
    dry_run: bool = False,
    form: str = "terminal",
    figures: Path | None = None,
) -> int:
    """Test a paper's networks and print its tables.

    Args:
        paper: key of `PAPERS`.
        options: of the tests and trainings.
        table, sets, train, dry_run, form, figures: see `avsal.report.commands.reproduce`.

    Returns:
        0, or 1 if a row could not be run.

    Raises:
        AvsalError: the data is not there, or nothing could be run.
    """
    chosen = tables_of(paper, table)
    train = train or options.fast
    folds = (1,) if options.fast else (1, 2, 3)
    runs = plan(chosen, sets, folds=folds)
    if not train:  # rows of other papers' models are run where their weights are there
        rows = [row for t in chosen for row in t.rows]
        needed = {name for row in rows if not row.extra for name in row.systems.values()}
        runs = [r for r in runs if r.system.name in needed or not chain(r.system, r.fold, options)]
    if options.fast:
        options = replace(options, out=options.out / "fast")
        say(MINIATURE)
    if dry_run:
        return _print_plan(runs, options)
    check_data(runs, options)
    if train:
        check_training(runs, options)
    folder = figures or options.out / "figures"
    problems: list[str] = []
    files: dict[tuple[str, str], list[Path]] = {}
    drawn: list[tuple[str, Path]] = []
    for one, module, sha256 in _loaded(runs, options, train, problems):
        try:
            wanting = [t for t in chosen if one.system.name in t.systems]
            drawn += [_retention(t, one, module, folder, options) for t in wanting
                      if t.form == "retention" and one.fold == 1 and one.data in t.sets]  # fmt: skip
            if any(t.form != "retention" for t in wanting):
                data = data_module(one.data, one.fold, options)
                done = run_test(module, data, one.checkpoint, one.data, options, sha256=sha256)
                if done is not None:
                    files.setdefault((one.system.name, one.data), []).append(done)
        except AvsalError as error:
            problems.append(f"{one.checkpoint} on {one.data}: {error}")
            say(problems[-1])
    if not first_process():
        return 0
    if not files and not drawn:
        raise WeightsError(
            "nothing was tested: there are no weights (see above)." if problems else "nothing was tested."
        )
    notes: list[str] = []
    found: dict[tuple[str, str], Entry] = {}
    for (system, data_name), paths in files.items():
        records = sorted(read(paths, notes), key=lambda r: r.fold)
        wanted = len(folds) if SYSTEMS[system].folds else 1
        if len(records) < wanted:
            notes.append(
                f"left out: {system} on {data_name}: {len(records)} of {wanted} folds could be tested."
            )
        elif records:
            found[system, data_name] = entry_of(records, 100 if options.fast else 10_000)
    _print_tables(chosen, found, options, sets, form, [*drawn, *_curves(chosen, found, folder)], figures)
    for note in [*notes, *problems]:
        print(note, file=sys.stderr)
    return 1 if problems or notes else 0


def _loaded(
    runs: Sequence[Run], options: Options, train: bool, problems: list[str]
) -> Iterator[tuple[Run, SaliencyModule, str | None]]:
    """Yield each test with its module and the weights' file hash; what cannot be had is noted in `problems`."""
    from avsal.zoo import from_pretrained

    failed: dict[Path, str] = {}

    def prepare(system: System, fold: int | None) -> None:
        for training in chain(system, fold, options):
            name = training.system.checkpoint(training.fold)
            if training.folder in failed:  # many rows start from one network
                raise WeightsError(f"{system.checkpoint(fold)} starts from {name}, whose training failed.")
            say(f"training {name} …")
            try:
                training.run()
            except AvsalError as error:
                failed[training.folder] = str(error)
                raise

    networks = dict.fromkeys((one.system, one.fold) for one in runs)
    # Processes that Lightning starts in the first test run this command anew: they must find everything trained.
    ahead = train and (options.devices != "1" or options.num_nodes > 1)
    for system, fold in networks if ahead and first_process() else ():
        with contextlib.suppress(AvsalError):
            prepare(system, fold)
    for system, fold in networks:
        checkpoint = system.checkpoint(fold)
        try:
            if train and not ahead:
                prepare(system, fold)
            if left := chain(system, fold, options):
                reason = failed.get(left[-1].folder) or f"{checkpoint}: the authors published no weights."
                raise WeightsError(f"{reason} Train first (--train runs this):\n{_commands(left)}")
            found = source_of(system, fold, options) or Training(system, fold, options).best()
            assert found is not None
            module, sha256 = from_pretrained(found), file_hash(found)
        except AvsalError as error:
            problems.append(str(error))
            say(f"{checkpoint}: {error}")
        else:
            yield from ((one, module, sha256) for one in runs if (one.system, one.fold) == (system, fold))


def _commands(trainings: Iterable[Training]) -> str:
    return "\n".join(f"  avsal {shlex.join(t.command())}" for t in trainings)


# -- data --------------------------------------------------------------------------------------------------------


def data_module(
    name: str, fold: int | None, options: Options, limit: int | None = None
) -> SaliencyDataModule:
    """Return a data set's DataModule for testing.

    Args:
        name: as tables call it.
        fold: for sets with folds.
        options: of the tests.
        limit: use only so many videos; one with `fast`.
    """
    from avsal import data as rooms

    arguments: dict[str, Any] = {
        "batch_size": options.batch_size, "num_workers": options.num_workers, "test_stride": options.stride,
    }  # fmt: skip
    if options.fast or limit:
        arguments["limit"] = limit or 1
        arguments |= {"clips": 2} if name in ("Ego4D", "Aria") else {}
    if fold is not None:
        arguments["fold"] = fold
    made: SaliencyDataModule = getattr(rooms, DATA[name])(root_of(DATA[name], options), **arguments)
    return made


def check_data(runs: Iterable[Run], options: Options) -> None:
    """Look for all data of the tests before anything is run.

    Raises:
        DataError: names each set that is missing, and what to do.
    """
    wanted = dict.fromkeys((one.data, one.fold) for one in runs)
    names = list(dict.fromkeys(name for name, _ in wanted))
    if options.data is None:
        raise DataError(
            f"--data ROOT is needed: the folder with {', '.join(names)}. `avsal data list` names the sets, `avsal data "
            "info NAME` says where each comes from and how its folder looks; --dry-run lists what would be run, --list "
            "what each table needs."
        )
    missing = _missing("test", ((name, partial(data_module, name, fold, options)) for name, fold in wanted))
    if missing:
        there = [name for name in names if name not in missing]
        raise DataError(
            f"{options.data} lacks {', '.join(missing)}:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in missing.items())
            + (f"\nRun what is there with --sets {','.join(there)}." if there else "")
        )


def check_training(runs: Iterable[Run], options: Options) -> None:
    """Look for all data and weights of the trainings before the first one begins.

    Raises:
        DataError, WeightsError: names everything that is missing, and what to do.
    """
    trainings = {t.folder: t for one in runs for t in chain(one.system, one.fold, options)}
    names = (
        t.recipe["data"]["class_path"].rpartition(".")[2].removesuffix("DataModule")
        for t in trainings.values()
    )
    makers = (t.data_module for t in trainings.values())
    lacking = _missing("train", zip(names, makers, strict=True))
    if lacking:
        raise DataError(
            "training needs data that is not there (--data ROOT has the sets, or folders DHF1K, SALICON, MIT1003 of "
            "them; --dhf1k ROOT):\n" + "\n".join(f"  {name}: {reason}" for name, reason in lacking.items())
        )
    if not options.fast and (missing := missing_weights(trainings.values())):
        raise WeightsError("training needs weights that are not there:\n  " + "\n  ".join(missing))


def _missing(split: str, sets: Iterable[tuple[str, Callable[[], Any]]]) -> dict[str, str]:
    """Return the names of the data sets whose split cannot be read, with the reasons."""
    found: dict[str, str] = {}
    for name, make in sets:
        try:
            make().split_items(split)
        except AvsalError as error:
            found.setdefault(name, str(error))
    return found


# -- output --------------------------------------------------------------------------------------------------------


def print_list(paper: str, options: Options, number: str | None = None) -> int:
    """Print a paper's tables and figures: the command, what it needs, or why it is not run."""
    own = [t for t in TABLES if t.paper == paper and (not number or t.is_called(number))]
    if not own:
        raise ConfigError(f"--table {number}: {paper} has no such table or figure.")
    for table in own:
        print(f"{table.name}: {table.title}")
        if table.reason:
            print(f"  not run: {table.reason}")
            continue
        lines = needs(table, options)
        trained = " --train" if "; train on" in lines[0] else ""
        dhf1k = " --dhf1k DHF1K" if "DHF1K" in lines[0] else ""
        print(f"  avsal reproduce {paper} --table {table.number} --data ROOT{dhf1k}{trained}")
        for line in [*lines, *filter(None, [table.note])]:
            print(f"  {line}")
    print(
        f"Hours are those of {FLOPS / 1e12:g} TFLOP/s, about a third of an {GPU}'s peak, for the clips and epochs of "
        "the recipes; reading videos is not in them. Trainings that several tables share are counted in each, and run "
        "once."
    )
    return 0


def _print_plan(runs: Sequence[Run], options: Options) -> int:
    from avsal.checkpoints.fetch import is_cached
    from avsal.checkpoints.registry import entries

    shown: set[str] = set()
    for one in runs:
        if one.checkpoint not in shown:
            shown.add(one.checkpoint)
            entry = entries().get(one.checkpoint)
            if trainings := chain(one.system, one.fold, options):
                state = f"no weights; train first:\n{_commands(trainings)}"
            elif entry is not None and not options.fast:
                state = f"weights {'in the cache' if is_cached(entry) else 'to fetch'} ({entry.status})"
            else:
                state = str(source_of(one.system, one.fold, options) or "trained")
            print(f"{one.checkpoint}: {state}")
        state = "?"
        if options.data is not None:
            try:
                state = f"{len(data_module(one.data, one.fold, options).split_items('test'))} test videos"
            except AvsalError as error:
                state = f"missing: {error}"
        print(f"  test on {one.data}{f' fold {one.fold}' if one.fold else ''}: {state}")
    print(
        f"{len(runs)} tests of {len(shown)} checkpoints, protocol {options.protocol}; results go to {options.out}"
    )
    return 0


def _print_tables(
    tables: Sequence[PaperTable],
    found: dict[tuple[str, str], Entry],
    options: Options,
    sets: Sequence[str],
    form: str,
    figures: list[tuple[str, Path]],
    folder: Path | None,
) -> None:
    from avsal.report.figures import draw_all
    from avsal.report.layout import paper_table
    from avsal.report.tables import legend

    shown = [paper_table(t, found, options, sets) for t in tables if t.form != "retention"]
    if folder is not None and found:
        figures += draw_all(Board(list(found.values()), []), folder)
    if shown:
        title = "; ".join(dict.fromkeys(f"{t.title} ({t.name.lower()})" for t in tables))
        notes = [*([MINIATURE] if options.fast else []), *legend()[:2]]
        output(shown, title=title, form=form, notes=notes, figures=figures)
    for caption, path in figures:
        print(f"figure: {path} ({caption})", file=sys.stderr)


def _retention(
    table: PaperTable, one: Run, module: SaliencyModule, folder: Path, options: Options
) -> tuple[str, Path]:
    from avsal.report.figures import retention

    path = folder / f"{one.checkpoint}-{one.data.lower()}-retention.png"
    return table.title, retention(module, data_module(one.data, one.fold, options, limit=2), path)


def _curves(
    tables: Iterable[PaperTable], found: dict[tuple[str, str], Entry], folder: Path
) -> Iterator[tuple[str, Path]]:
    """Draw the curves of a paper's figures, one for each score."""
    from avsal.report.figures import curves
    from avsal.report.layout import points

    for table in (t for t in tables if t.number[0] == "F" and t.form != "retention"):
        for metric in table.metrics:
            path = folder / f"{table.paper}-{table.number.lower()}-{metric.split()[0].lower()}.png"
            if lines := points(table, metric, found):
                yield f"{table.name}: {metric}, {table.title}", curves(lines, metric, table.title, path)
