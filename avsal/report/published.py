"""Published numbers, row by row as papers and benchmark pages print them; and one set of names for everything."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from avsal.errors import DataError

#: Metric as papers print it -> its key in results files, digits after the point.
METRICS = {
    "CC": ("cc", 4), "NSS": ("nss", 3), "AUC-J": ("auc_judd", 4), "sAUC": ("sauc", 4), "SIM": ("sim", 4),
    "F1": ("f1", 2), "Recall": ("recall", 2), "Precision": ("precision", 2),
}  # fmt: skip
LABELS = {key: label for label, (key, _) in METRICS.items()}
#: Papers print these in per cent; results files hold shares.
PERCENT = ("f1", "recall", "precision")
SIX = ("DIEM", "Coutrot1", "Coutrot2", "AVAD", "ETMD", "SumMe")
#: A data set's name in the tables, by its folder in the common layout or its name in results files, where they differ.
SETS = {
    "Coutrot_db1": "Coutrot1", "Coutrot_db2": "Coutrot2", "ETMD_av": "ETMD",
    **{name.lower(): name for name in (*SIX, "Ego4D", "Aria", "DHF1K")},
}  # fmt: skip
#: Sets whose test videos are the same in every fold.
ONE_TEST_LIST = ("DIEM",)
#: CSTS, table 6.
ZERO_SHOT = "Aria, anticipation, trained on Ego4D"


@cache
def paper_files() -> dict[str, dict[str, Any]]:
    """Return the descriptions of the papers' tables, by the names that `avsal reproduce` gives the papers."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = sorted((files("avsal.report") / "paper_tables").iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): yaml.load(file.read_text(encoding="utf-8"), loader) for file in found
    }


#: The papers whose tables can be reproduced: what `avsal reproduce` calls them -> their names.
PAPERS: dict[str, str] = {key: paper["name"] for key, paper in paper_files().items()}
PAPER_NAMES = tuple(PAPERS.values())
#: Their tables that do not compare models.
_ABLATIONS = {
    (paper["name"], number)
    for paper in paper_files().values()
    for number, table in paper["tables"].items()
    if not (table.get("main") or table.get("leaderboard"))
}


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        paper: who printed it.
        table: in which table.
        data: the data set.
        model: as it is called there.
        modality: "V", "AV", "none", or "" where it is not said.
        pretraining: what the paper says about it.
        metric: key as in results files; gaze scores are shares here, per cent in the paper.
        value: the number.
        digits: digits after the point as printed.
        note: doubts, and whether the paper copied it from another.
        source: address of the paper or page.
    """

    paper: str
    table: str
    data: str
    model: str
    modality: str
    pretraining: str
    metric: str
    value: float
    digits: int
    note: str
    source: str

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The row of the paper's tables that it is in: paper, model, modality, pretraining."""
        return self.paper, self.model, self.modality, self.pretraining

    @property
    def copied(self) -> bool:
        """Whether the paper took the number over from elsewhere."""
        return self.note.startswith(("copied", "public model", "frame-by-frame image model", "second hand"))

    @property
    def main(self) -> bool:
        """Whether it is in a table that compares models."""
        return (self.paper, self.table) not in _ABLATIONS

    @property
    def board(self) -> str:
        """The data set's name in leaderboards: gaze sets have a table for each task."""
        if self.paper != "CSTS":
            return self.data
        if self.table == "6":
            return ZERO_SHOT
        return f"{self.data}, {'estimation' if self.table == '7' else 'anticipation'}"

    @property
    def place(self) -> str:
        """Paper and table."""
        return f"{self.paper}, table {self.table}" if len(self.table) < 4 else f"{self.paper}, {self.table}"


def read_cells(text: str, where: str) -> list[Cell]:
    """Read a table of published numbers (columns as in `published_results.csv`).

    Raises:
        DataError: a row is damaged; the message names it.
    """
    cells = []
    for number, row in enumerate(csv.DictReader(text.splitlines()), 2):
        try:
            printed = row["value"].strip()
            key = METRICS[row["metric"]][0] if row["metric"] in METRICS else row["metric"].lower()
            value = float(printed) / (100 if key in PERCENT else 1)
            cells.append(
                Cell(
                    row["paper"], row["table"], row["dataset"], row["model"], row["modality"], row["pretraining"], key,
                    value, len(printed.partition(".")[2]), row["note"], row["source"],
                )
            )  # fmt: skip
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where}, line {number}: {error!r}; expected paper, table, dataset, …, value, note, source."
            ) from error
    return cells


@cache
def cells() -> tuple[Cell, ...]:
    """Return all published numbers: the five papers' tables, then newer benchmarks."""
    names = ("published_results.csv", "benchmarks_cited.csv")
    texts = {name: (files("avsal.report") / name).read_text(encoding="utf-8") for name in names}
    return tuple(cell for name, text in texts.items() for cell in read_cells(text, name))
