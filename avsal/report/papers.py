"""Every table and figure of the papers, and the networks in their rows: read from `paper_tables/PAPER.yaml`.

A paper whose tables are to be reproduced adds one file there, and its printed numbers to `published_results.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from avsal.models import class_named, model_class
from avsal.report.published import Cell, cells, paper_files


@dataclass(frozen=True, eq=False)
class System:
    """A network in a row of a paper's table, or at the start of another one's training.

    Attributes:
        name: of its weights; each fold's are `<name>-fold<k>`, in the registry or trained.
        label: as tables print it.
        paper: whose model it is.
        model: name for `create_model`.
        arguments: constructor arguments that differ from the defaults. In the file, `variant` names an entry of the
            model's `VARIANTS` that they extend.
        row: what the paper calls it where it compares models, and its pretraining column.
        tables: the table to take these numbers from, by data set; by default every table that compares models.
        recipe: configuration files of its training, in `examples/`; later ones win.
        data: arguments of its training data that differ from the recipe's.
        weights: constructor argument -> weights that training starts from: a system's name (of the same fold), else
            a name of the registry or one that `--weights` gives.
        folds: one checkpoint for each fold, or one for all data.
        gmacs: 10^9 multiply-adds of one clip, as `avsal info` counts them or the paper prints them.
    """

    name: str
    label: str
    paper: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    row: tuple[str, str | None] = ("", None)
    tables: Mapping[str, str] = field(default_factory=dict)
    recipe: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    folds: bool = True
    gmacs: float = 0

    @property
    def modality(self) -> str:
        """ "V" or "AV"."""
        return model_class(self.model).modality(self.arguments)

    def checkpoint(self, fold: int | None) -> str:
        """Return the name of the weights of a fold."""
        return f"{self.name}-fold{fold}" if self.folds and fold is not None else self.name

    def published(self, data: str) -> list[Cell]:
        """Return what its own paper prints for this system on a data set; a metric printed twice counts once."""
        (model, pretraining), table = self.row, self.tables.get(data)
        row = (self.paper, data, model, self.modality)
        found: dict[str, Cell] = {}
        for c in cells():
            same = (c.paper, c.data, c.model, c.modality) == row and pretraining in (None, c.pretraining)
            if same and c.main and not c.copied and (not self.tables or c.table == table):
                found.setdefault(c.metric, c)
        return list(found.values())

    def fits(self, model: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether a model with these arguments (those that are not defaults) is the paper's.

        Args:
            model: class name without "Module", as results files have it.
            arguments: how it was trained does not matter here.
        """
        cls = model_class(self.model)
        return cls is class_named(model) and cls.architecture(arguments) == cls.architecture(self.arguments)


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Attributes:
        labels: its leading columns, one for each of the table's `heads`; by default the model's name.
        cell: (model, modality, pretraining) of its numbers in `published_results.csv`.
        systems: data set -> name in `SYSTEMS`; empty for other people's models, of which only the print is shown. In
            the file, `network` names it for all sets, where `{set}` is replaced.
        extra: whether it is another paper's model that avsal has: run with `--train`, and not missed without.
    """

    labels: tuple[str, ...]
    cell: tuple[str, str, str]
    systems: Mapping[str, str] = field(default_factory=dict)
    extra: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table or a figure of a paper.

    Attributes:
        paper: key of the command, such as "stavis".
        number: as the paper prints it; a figure's begins with "F".
        title: what it shows.
        rows: from top to bottom.
        sets: the data sets, from left to right.
        metrics: headings as printed, in order; `KEYS` has their names in results files.
        heads: headings of the leading columns.
        form: "wide" has data sets and metrics side by side, "long" a block of rows for each data set, "turned" the
            networks side by side, "steps" F1 at each moment ahead, "retention" a picture of what relates to the sound.
        mean: one column for all sets, which is so called in the CSV file: "overall" is the mean over all videos,
            "average of six" the mean of the sets.
        counts: further columns: heading -> "parameters", "multiply-adds", or the part whose parameters are counted.
        main: whether it is run where no table is named. Such tables compare models and are in leaderboards, as are
            those with `leaderboard` in the file.
        note: what must be stated below it.
        reason: why avsal does not run it.
    """

    paper: str
    number: str
    title: str
    rows: tuple[Row, ...] = ()
    sets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("Method",)
    form: Literal["wide", "long", "turned", "steps", "retention"] = "wide"
    mean: str = ""
    counts: Mapping[str, str] = field(default_factory=dict)
    main: bool = False
    note: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """ "Table 2" or "Figure 5"."""
        return f"Figure {self.number[1:]}" if self.number[0] == "F" else f"Table {self.number}"

    @property
    def systems(self) -> tuple[str, ...]:
        """The networks that it needs, each once."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.systems.values()))

    def is_called(self, number: str) -> bool:
        """Return whether a user may mean it: "2", "II", "F5", "fig5", "Figure 5"."""
        plain = re.sub(
            r"^(figure|fig\.?|table)\s*", lambda m: "F" if m[0][0] in "fF" else "", number, flags=re.I
        )
        roman = {"I": "1", "II": "2", "III": "3", "IV": "4", "V": "5"}
        return plain.upper() in (self.number, roman.get(self.number))


#: Printed heading -> key of the score in results files.
KEYS = {
    "CC": "cc", "NSS": "nss", "AUC-J": "auc_judd", "AUC": "auc_judd", "sAUC": "sauc", "SIM": "sim",
    "F1 Score": "f1", "F1": "f1", "Recall": "recall", "Precision": "precision",
}  # fmt: skip


def _systems(paper: Mapping[str, Any]) -> Iterator[System]:
    for name, given in paper["networks"].items():
        spec: dict[str, Any] = {"model": paper["model"], **given}
        defaults = paper["defaults"] if spec["model"] == paper["model"] else {}
        variant = spec.pop("variant", None)
        part = variant or ("" if "row" in spec else name.partition("-")[2])
        label = f"{paper['name']} ({part})" if part else paper["name"]
        spec = {"label": label, **defaults, **spec}
        weights = {**defaults.get("weights", {}), **spec.get("weights", {})}
        spec["weights"] = {argument: start for argument, start in weights.items() if start is not None}
        if variant is not None:
            known = import_module(f"avsal.models.{spec['model']}").VARIANTS
            spec["arguments"] = {**known[variant], **spec.get("arguments", {})}
        if "row" in spec:
            spec["row"] = (*spec["row"], None)[:2]
        yield System(name=name, paper=paper["name"], **{**spec, "recipe": tuple(spec["recipe"])})


def _tables(key: str, paper: Mapping[str, Any]) -> Iterator[PaperTable]:
    def row(spec: Mapping[str, Any], sets: list[str]) -> Row:
        model, modality, *pretraining = spec["cell"]
        labels = spec.get("label", model)
        network = spec.get("network")
        systems = {name: network.replace("{set}", name.lower()) for name in sets} if network else {}
        return Row(
            (labels,) if isinstance(labels, str) else tuple(labels),
            (model, modality, pretraining[0] if pretraining else paper.get("pretraining", "")),
            systems, spec.get("extra", False),
        )  # fmt: skip

    for number, spec in paper["tables"].items():
        rows = tuple(row(one, spec["sets"]) for one in spec.get("rows", ()))
        fields: dict[str, Any] = {
            name: tuple(value) if name in ("sets", "metrics", "heads") else value
            for name, value in spec.items()
            if name not in ("rows", "leaderboard")
        }
        yield PaperTable(key, number, rows=rows, **fields)


#: Every network by its name.
SYSTEMS: dict[str, System] = {s.name: s for paper in paper_files().values() for s in _systems(paper)}
#: Every table and figure: of each paper the tables, then the figures.
TABLES: tuple[PaperTable, ...] = tuple(
    table
    for key, paper in paper_files().items()
    for table in sorted(_tables(key, paper), key=lambda t: t.number[0] == "F")
)


def system_of(name: str | None, model: str | None, arguments: Mapping[str, Any]) -> System | None:
    """Return the paper's system that a result belongs to: by the name of its weights, else by its architecture.

    Args:
        name: of the weights.
        model: class name without "Module".
        arguments: constructor arguments that are not defaults.
    """
    known = SYSTEMS.get(re.sub(r"-fold\d+$", "", name)) if name else None
    if known is not None:
        return known
    compared = (
        s for s in SYSTEMS.values() if s.row[0] and model
    )  # an ablation has the name of its weights only
    return next((s for s in compared if s.fits(str(model), arguments)), None)
