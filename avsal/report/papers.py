"""Every table and figure of the five papers: its rows with their networks, and its columns.

This file is data: a sixth paper adds its tables to `TABLES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from avsal.models import csts, mspi, stavis
from avsal.report.published import PAPERS, SIX, cells
from avsal.report.systems import AVRSP_MODULES, CSTS_ITSELF, SYSTEMS, System, slug, system_of

__all__ = ["KEYS", "SYSTEMS", "TABLES", "PaperTable", "Row", "System", "system_of"]


@dataclass(frozen=True)
class Row:
    """A row of a paper's table.

    Attributes:
        labels: what it prints in its leading columns, one for each of the table's `heads`.
        cell: (model, modality, pretraining) of its numbers in `published_results.csv`.
        systems: data set -> name in `SYSTEMS`; empty for other people's models, of which only the print is shown.
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
        main: whether it is run where no table is named.
        note: what must be said below it.
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
        """Say whether a user may mean it: "2", "II", "F5", "fig5", "Figure 5"."""
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


# -- tables ------------------------------------------------------------------------------------------------------

Key = tuple[str, str, str]


def _each(sets: Iterable[str], system: str) -> dict[str, str]:
    return dict.fromkeys(sets, system)


def _printed(paper: str, table: str) -> list[Key]:
    """Return the rows of a table of the CSV file, from top to bottom."""
    found = (c for c in cells() if c.paper == PAPERS[paper] and c.table == table)
    return list(dict.fromkeys((c.model, c.modality, c.pretraining) for c in found))


_FIVE, _FOUR, _TURNED = (
    ("CC", "NSS", "AUC-J", "sAUC", "SIM"), ("CC", "NSS", "AUC-J", "SIM"), ("SIM", "CC", "NSS", "AUC-J"),
)  # fmt: skip
_FIRST, _SECOND = ("DIEM", "Coutrot1", "Coutrot2"), ("AVAD", "SumMe", "ETMD")
_GAZE_SETS = ("Ego4D", "Aria")


def _stavis_tables() -> Iterable[PaperTable]:
    ablation = {row: f"stavis-{slug(row)}" for row in stavis.VARIANTS}
    ablation |= {"Visual": "stavis-visual", "L3mul + S3av": "stavis-audiovisual"}
    compared = {("STAViS", "AV", ""): "stavis-audiovisual", ("STAViS", "V", ""): "stavis-visual"}
    names = {("STAViS", "AV", ""): "STAViS [STA]", ("STAViS", "V", ""): "STAViS [ST]"}

    def rows(table: str, sets: Iterable[str], merged: bool) -> tuple[Row, ...]:
        found = []
        for key in _printed("stavis", table):
            system = ablation.get(key[0]) if merged else compared.get(key)
            found.append(Row((names.get(key, key[0]),), key, _each(sets, system) if system else {}))
        return tuple(found)

    yield PaperTable(
        "stavis", "1", "localisation and fusion, all videos together", rows("1", SIX, True), SIX, _FIVE, mean="overall",
        note="The paper does not say how its one column weighs the six sets; the supplement calls it the results for "
        "all videos. Here every test video counts once.",
    )  # fmt: skip
    for number, sets in (("2", _FIRST), ("3", _SECOND)):
        yield PaperTable(
            "stavis", number, f"STAViS on {', '.join(sets)}", rows(number, sets, False), sets, _FIVE, main=True
        )  # fmt: skip
    for number, sets in (("7", _FIRST), ("8", _SECOND)):
        title = f"supplement: Tables 1 and 2 or 3 together, on {', '.join(sets)}"
        yield PaperTable("stavis", number, title, rows(number, sets, True), sets, _FIVE)


def _casp_tables() -> Iterable[PaperTable]:
    note = "Trained on AVAD and ETMD without DHF1K, as the paper says of all ablations."
    pair = ("AVAD", "ETMD")

    def rows(table: str, slugs: Iterable[str], labels: Iterable[str] = ()) -> tuple[Row, ...]:
        keys = _printed("casp", table)
        named = zip(keys, slugs, list(labels) or [key[0] for key in keys], strict=True)
        return tuple(Row((label,), key, _each(pair, f"casp-ablation-{slug}")) for key, slug, label in named)

    decoders = rows("1", ("fcn", "unet", "visual"))
    yield PaperTable(
        "casp", "1", "decoders, visual-only", decoders, pair, ("CC", "NSS", "SIM"), form="long",
        counts={"#Params": "decoder"}, note=note,
    )  # fmt: skip
    parts = rows("2", ("visual", "bilinear", "quadratic", "linear", "n3"))
    yield PaperTable("casp", "2", "parts of the network", parts, pair, ("CC", "SIM"), note=note)
    stages = rows("3", ("stage1", "stage2", "stage3", "stage4", "stage234", "linear"),
                  ("1", "2", "3", "4", "2,3,4", "1,2,3,4"))  # fmt: skip
    yield PaperTable(
        "casp", "3", "AVIM at which stages of the video encoder", stages, pair, ("CC", "SIM"), ("Stages",), "turned",
        note=note,
    )  # fmt: skip
    own = {
        ("CASP-Net", "V", "none"): "casp-visual-scratch", ("CASP-Net", "AV", "none"): "casp-audiovisual-scratch",
        ("CASP-Net", "V", "DHF1K"): "casp-visual", ("CASP-Net", "AV", "DHF1K"): "casp-audiovisual",
    }  # fmt: skip
    for number, sets in (("4", _FIRST), ("5", ("AVAD", "ETMD", "SumMe"))):
        compared = tuple(
            Row((f"{k[0]}({k[1]})", "-" if k[2] == "none" else "DHF1k"), k, _each(sets, own[k]) if k in own else {})
            for k in _printed("casp", number)
        )  # fmt: skip
        title = f"CASP-Net on {', '.join(sets)}, without and with DHF1K"
        yield PaperTable("casp", number, title, compared, sets, _FOUR, ("Method", "Pretrained"), main=True)
    names = {n: f"casp-ablation-n{n}" if n else "casp-ablation-linear" for n in range(6)}
    iterations = tuple(
        Row((str(n),), ("", "AV", ""), _each(("AVAD", "DIEM"), name)) for n, name in names.items()
    )
    yield PaperTable(
        "casp", "F5", "iterations of predictive coding", iterations, ("AVAD", "DIEM"), _FOUR, ("Iterations",),
        note=f"{note} So DIEM is a set that was not trained on. The paper draws curves and prints no numbers.",
    )  # fmt: skip


def _avrsp_tables() -> Iterable[PaperTable]:
    pair = ("DIEM", "AVAD")
    note = "Trained on DIEM and AVAD, as the paper says, from the visual branch that learnt from DHF1K."
    for number, sets in (("I", ("DIEM", "ETMD", "AVAD")), ("II", ("Coutrot1", "Coutrot2", "SumMe"))):
        own = {("AVRSP", "V", "DHF1K"): "avrsp-visual", ("AVRSP", "AV", "DHF1K"): "avrsp-audiovisual"}
        compared = tuple(
            Row((f"{'Ours' if k in own else k[0]}({k[1]})",), k, _each(sets, own[k]) if k in own else {})
            for k in _printed("avrsp", number)
        )
        title = f"AVRSP on {', '.join(sets)}"
        yield PaperTable("avrsp", number, title, compared, sets, _TURNED, main=True)
    slugs = [f"{k}-{m}" for k in ("v", "av") for m in AVRSP_MODULES]
    marks = [(a, *m) for a in ("", "✓") for m in (("", ""), ("✓", ""), ("", "✓"), ("✓", "✓"))]
    modules = tuple(
        Row(("AVRSP", *mark), key, _each(pair, f"avrsp-ablation-{slug}"))
        for key, slug, mark in zip(_printed("avrsp", "III"), slugs, marks, strict=True)
    )
    yield PaperTable(
        "avrsp", "III", "MS and MRG", modules, pair, _TURNED, ("Model", "Audio", "MS", "MRG"), note=note
    )  # fmt: skip
    levels = {
        4: ("X3, X2, X1, X0", "X3, X2, X1, X0"), 3: ("X3, X2, X1, X0", "X3, X2, X1"), 2: ("X3, X2, X1", "X3, X2"),
        1: ("X3, X2", "X3"), 0: ("Null", "Null"),
    }  # fmt: skip
    kinds = [(k, name, n) for k, name in (("v", "Visual-only"), ("av", "Audio-Visual")) for n in levels]
    pairs = tuple(
        Row(
            (name, str(n), *levels[n]), key, {"DIEM": f"avrsp-ablation-{k}-{'both' if n == 3 else f'{n}-pairs'}"}
        )
        for key, (k, name, n) in zip(_printed("avrsp", "IV"), kinds, strict=True)
    )  # fmt: skip
    yield PaperTable(
        "avrsp", "IV", "number of MS and MRG pairs", pairs, ("DIEM",), _FOUR, ("Model", "Number", "Input", "Output"),
        note=note,
    )  # fmt: skip
    slugs = ["v-both", "add", "multiply", "concat", "bilinear", "mbt", "av-both"]
    fusions = tuple(
        Row((key[0].removeprefix("AVRSP (").removesuffix(")"),), key, _each(pair, f"avrsp-ablation-{slug}"))
        for key, slug in zip(_printed("avrsp", "V"), slugs, strict=True)
    )
    yield PaperTable("avrsp", "V", "fusion methods", fusions, pair, _TURNED, ("Fusion Methods",), note=note)
    yield PaperTable(
        "avrsp", "F6", "what relates to the sound: Ret_A and Ret_V with the right and with another clip's sound",
        (Row(("AVRSP",), ("", "AV", ""), _each(("DIEM",), "avrsp-audiovisual")),), ("DIEM",), form="retention",
        note="Means over blocks, heads, moments of sound and time, scaled to 0..1 over both sounds; the paper's scale "
        "is not stated.",
    )  # fmt: skip


def _mspi_tables() -> Iterable[PaperTable]:
    sets = ("DIEM", "ETMD", "SumMe", "AVAD", "Coutrot1", "Coutrot2")
    metrics = ("CC", "NSS", "AUC", "sAUC", "SIM")
    damaged = "The copy that the numbers were read from is damaged here: those that a second place confirms are shown."
    pretraining = next(c.pretraining for c in cells() if c.paper == PAPERS["mspi"] and c.pretraining)

    def row(label: Iterable[str], model: str, system: str, modality: str = "AV", **more: bool) -> Row:
        key = (model, modality, pretraining if model.startswith("MSPI") else "")
        return Row(tuple(label), key, _each(sets, system), **more)

    ours = "MSPI ({} + ConvNeXt-T, 16x224x{})"
    again = "STAViS (retrained by the authors of MSPI, 16x224x384)"
    yield PaperTable(
        "mspi", "1", "MSPI on six sets, two encoders at two sizes",
        (
            row(("STAViS*", "16x224x384"), again, "stavis-audiovisual-224x384", extra=True),
            row(("Ours (S3D)", "16x224x224"), ours.format("S3D", 224), "mspi-s3d"),
            row(("Ours (S3D)", "16x224x384"), ours.format("S3D", 384), "mspi-s3d-224x384"),
            row(("Ours (MViTv2-S)", "16x224x224"), ours.format("MViTv2-S", 224), "mspi-mvitv2s-224x224"),
            row(("Ours (MViTv2-S)", "16x224x384"), ours.format("MViTv2-S", 384), "mspi"),
        ),
        sets, metrics, ("Method", "Size"), main=True, note=damaged,
    )  # fmt: skip
    mobile = "MSPI (S3D + MobileNetV2, 16x224x224)"
    losses = {"baseline": "L_sal", "V1": "L_total", "V2": "L_sal", "V3": "L_sal"}
    streams = {"baseline": "", "V1": "", "V6": "ConvNeXt-T*", "V7": "ConvNeXt-T†"}
    printed = {"V3": f"{mobile} without audio-visual loss", "V4": mobile, "V5": ours.format("S3D", 224)}
    yield PaperTable(
        "mspi", "2", "image-saliency features and audio-visual fusion",
        tuple(
            row(
                (name, "" if name in ("baseline", "V2") else "✓", losses.get(name, "L_total"),
                 streams.get(name, "MobileNetV2" if name < "V5" else "ConvNeXt-T")),
                printed.get(name, ""), "mspi-s3d" if name == "V5" else f"mspi-{name.lower()}",
                "V" if name in ("baseline", "V2") else "AV",
            )
            for name in mspi.VARIANTS
        ),
        sets, metrics, ("Variant", "A", "L", "E_IS"),
        note=f"{damaged} V6's encoder begins with ImageNet's weights and trains with the rest, since its transitions "
        "have none; V7's maps come from an image-saliency network trained here, since the released one makes none.",
    )  # fmt: skip
    yield PaperTable(
        "mspi", "3", "image-saliency networks on their own validation sets",
        tuple(
            Row((label,), (f"{label} image saliency encoder", "V", pretraining),
                {"SALICON": f"isp-{slug}-salicon", "MIT1003": f"isp-{slug}-mit1003"})
            for label, slug in (("MobileNetV2", "mobilenetv2"), ("ConvNeXt-T", "convnext"))
        ),
        ("SALICON", "MIT1003"), ("CC", "NSS"), ("Encoder",),
        note="The NSS of MIT1003 cannot be read in the copy that the numbers were read from. Which 103 images of "
        "MIT1003 validate is not stated: here a tenth of them, chosen by name.",
    )  # fmt: skip
    lambdas = {
        "0": "mspi-v3",
        "0.1": "mspi-lambda-0.1",
        "0.5": "mspi-lambda-0.5",
        "1": "mspi-v4",
        "3": "mspi-lambda-3",
    }
    fusions = {
        "bilinear + Avg + C": "mspi-bilinear-avg", "bilinear + Max + S": "mspi-bilinear-max", "AVIM": "mspi-avim",
        "AVIM+CPC": "mspi-avim-cpc", "AVFB": "mspi-v4",
    }  # fmt: skip
    for number, head, word, rows in (("4", "λ", "lambda", lambdas), ("5", "Method", "fusion", fusions)):
        title = "weight of the audio-visual loss" if number == "4" else "audio-visual fusion methods"
        shown = tuple(row((name,), f"{mobile}, {word} {name}", system) for name, system in rows.items())
        yield PaperTable("mspi", number, title, shown, sets, metrics, (head,), mean="average of six")
    encoders = {
        "s3d": "S3D", "x3dl": "X3D-L", "slowfast4x16": "SlowFast-4x16", "morphmlps": "MorphMLP-S",
        "videoswins": "VideoSwin-S", "uniformerb": "Uniformer-B", "mvitv2s": "MViTv2-S",
    }  # fmt: skip
    names = {"s3d": "mspi-s3d", "mvitv2s": "mspi-mvitv2s-224x224"}
    models = {e: f"MSPI ({label}, 16x224x224)" for e, label in encoders.items()} | {
        "s3d": ours.format("S3D", 224)
    }
    yield PaperTable(
        "mspi", "6", "motion encoders",
        tuple(row((label,), models[e], names.get(e, f"mspi-{e}")) for e, label in encoders.items()),
        sets, metrics, ("E_V",), counts={"Params (M)": "parameters", "MACs (G)": "multiply-adds"},
        note=f"{damaged} SlowFast begins with the public 8x8 weights, which fit a lateral kernel of 7; the authors "
        "took those of the 4x16 network in caffe2's format.",
    )  # fmt: skip


def _csts_tables() -> Iterable[PaperTable]:
    metrics = ("F1 Score", "Recall", "Precision")
    vision = {data: f"csts-{data.lower()}-vision-only" for data in _GAZE_SETS}

    def systems(row: str) -> dict[str, str]:
        ending = "" if row in CSTS_ITSELF else f"-{slug(row)}"
        return {data: f"csts-{data.lower()}{ending}" for data in _GAZE_SETS}

    variants = {row.rstrip("."): row for row in csts.VARIANTS}
    for number, title in (
        ("1", "parts of the network"), ("2", "fusion strategies"), ("3", "contrastive learning"),
        ("8", "forms of the contrastive loss (supplement)"),
    ):  # fmt: skip
        rows = tuple(Row((k[0],), k, systems(variants[k[0].rstrip(".")])) for k in _printed("csts", number))
        yield PaperTable("csts", number, title, rows, _GAZE_SETS, metrics)
    own: dict[str, dict[str, dict[str, str]]] = {
        "4": {"CSTS": {d: f"csts-{d.lower()}" for d in _GAZE_SETS}, "MViT": vision},
        "6": {"CSTS": {"Aria": "csts-ego4d"}, "MViT": {"Aria": "csts-ego4d-vision-only"}},
        "7": {
            "CSTS": {d: f"csts-{d.lower()}-estimation" for d in _GAZE_SETS},
            "MViT": {d: f"csts-{d.lower()}-estimation-vision-only" for d in _GAZE_SETS},
        },
    }  # fmt: skip
    for number, title in (
        ("4", "gaze anticipation"), ("6", "trained on Ego4D, tested on Aria (supplement)"),
        ("7", "gaze estimation (supplement)"),
    ):  # fmt: skip
        compared = tuple(
            Row((k[0],), k, own[number].get(k[0], {}), k[0] == "MViT") for k in _printed("csts", number)
        )
        sets = ("Aria",) if number == "6" else _GAZE_SETS
        yield PaperTable("csts", number, title, compared, sets, metrics, ("Methods",), main=True)
    steps = tuple(Row((name,), ("", "", ""), own["4"][name], name == "MViT") for name in ("MViT", "CSTS"))
    yield PaperTable(
        "csts", "F3", "F1 at each moment ahead", steps, _GAZE_SETS, ("F1 Score",), form="steps",
        note="The paper draws curves and prints no numbers; MViT is the network that sees only. One threshold for all "
        "moments.",
    )  # fmt: skip


def _not_run() -> Iterable[PaperTable]:
    pictures = (
        "pictures of chosen frames, which the paper does not name: avsal predict draws them for any video"
    )
    drawing = "a drawing of the network: avsal info {} lists what it is made of"
    others = "the paper's figure needs networks of other people: avsal predict draws ours for any video"
    lists = {
        "stavis": {
            "4": ("configuration of the 3D ResNet", "a description, not a result: avsal info stavis"),
            "5": ("configuration of the audio network", "a description, not a result: avsal info stavis"),
            "6": ("videos of the three splits", "lists, not results: the fold lists of the data set hold them"),
            "F1": ("frames of a bell tolling", pictures), "F2": ("the network", drawing), "F3": ("DSAM", drawing),
            "F4": ("frames of Coutrot1 and NSS over time", "--table 2 --figures DIR draws NSS over the time of a video "
                   "of each set; which the paper shows is not stated"),
            "F5": ("frames of Coutrot2 and NSS over time", "as Figure 4"),
            "F6": ("frames of four sets", others), "F7": ("the bottleneck block", drawing),
        },
        "casp": {
            "F1": ("maps over a video", pictures), "F2": ("the network", drawing), "F3": ("AVIM", drawing),
            "F4": ("predictive coding", drawing),
            "F6": ("maps after each iteration", "chosen frames, not named; --table F5 trains a network for each number "
                   "of iterations"),
            "F7": ("frames of four sets", others),
        },
        "mspi": {
            "F1": ("kinds of networks", drawing), "F2": ("the network", drawing), "F3": ("ISP, its features", drawing),
            "F4": ("image-saliency features", pictures), "F5": ("frames of six sets", others),
            "F6": ("variants against the baseline", "differences of Table 2's rows, averaged: --table 2"),
            "F7": ("gradient norms in training", "needs the gradients of the authors' training, which nothing stores"),
            "F8": ("motion encoders against MViTv2-S", "differences of rows of Tables 6 and 1: --table 6, --table 1"),
            "F9": ("frames in reversed order", "avsal does not test videos backwards"), "F10": ("failures", pictures),
        },
        "avrsp": {
            "F1": ("maps with and without relevant sound", pictures), "F2": ("the network", drawing),
            "F3": ("RAVF", drawing), "F4": ("MS and MRG", drawing), "F5": ("frames of three sets", others),
        },
        "csts": {
            "5": ("methods of other papers", "a survey, without numbers"),
            "9": ("configuration of the network", "a description, not a result: avsal info csts"),
            "F1": ("the task", "a drawing"), "F2": ("the network", drawing), "F4": ("predictions", others),
            "F5": ("correlation of places with the sound", "avsal predict --correlation draws it for any video; which "
                   "the paper shows is not stated"),
            "F6": ("further predictions (supplement)", others), "F7": ("failures (supplement)", pictures),
        },
    }  # fmt: skip
    models = {"casp": "caspnet"}
    for paper, items in lists.items():
        for number, (title, reason) in items.items():
            yield PaperTable(paper, number, title, reason=reason.format(models.get(paper, paper)))


def _order(table: PaperTable) -> tuple[int, bool, int]:
    roman = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5}
    plain = table.number.removeprefix("F")
    return list(PAPERS).index(table.paper), table.number[0] == "F", roman.get(plain) or int(plain)


_MADE = (_stavis_tables, _casp_tables, _mspi_tables, _avrsp_tables, _csts_tables, _not_run)
#: Every table and figure of the five papers.
TABLES: tuple[PaperTable, ...] = tuple(sorted((t for made in _MADE for t in made()), key=_order))
