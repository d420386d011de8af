"""What the papers' tables need: which systems, on which sets, from which weights or training, against which rows.

This file is data: a sixth paper adds its systems to `SYSTEMS` and its tables to `TABLES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avsal.report.published import SIX, Cell, select

#: Constructor arguments that say how a model is trained, not what it is.
TRAINING = {
    "lr", "min_lr", "weight_decay", "schedule", "milestones", "optimizer", "backbone", "audio_backbone", "init_from",
    "bn_momentum", "freeze_bn", "freeze_audio", "freeze_image", "freeze_audio_bn", "loss", "loss_weights",
    "allow_random_frozen", "targets", "keep",
    "deep_supervision", "drop_path", "clip_norm", "alpha", "loss_frames", "motion_weights",
    "audio_weights", "image_weights", "imagenet_weights", "metric_thresholds", "av_weight", "sim_norm", "contrast_dim",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class System:
    """A model as one row of a paper's table.

    Attributes:
        name: of its weights; each fold's are `<name>-fold<k>`, in the registry or trained.
        label: as tables print it.
        paper: whose model it is.
        modality: "V" or "AV".
        model: name for `create_model`.
        arguments: constructor arguments that differ from the defaults.
        row: what the paper calls it, and its pretraining column, to find the published numbers.
        tables: the table to take them from, by data set; by default every table that compares models.
        training: (model, data) configuration files of its training stages, in order; each stage starts from the
            one before.
        folds: one checkpoint for each fold, or one for all data.
    """

    name: str
    label: str
    paper: str
    modality: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    row: tuple[str, str | None] = ("", None)
    tables: Mapping[str, str] = field(default_factory=dict)
    training: tuple[tuple[str, str], ...] = ()
    folds: bool = True

    def checkpoint(self, fold: int | None) -> str:
        """Return the name of the weights of a fold."""
        return f"{self.name}-fold{fold}" if self.folds and fold is not None else self.name

    def published(self, data: str) -> list[Cell]:
        """Return what its own paper prints for this system on a data set; a metric printed twice counts once."""
        model, pretraining = self.row
        found = select(
            paper=self.paper, data=data, model=model, modality=self.modality, pretraining=pretraining
        )
        table = self.tables.get(data)
        kept = [c for c in found if c.main and not c.copied and (not self.tables or c.table == table)]
        return list({c.metric: c for c in reversed(kept)}.values())[::-1]

    def fits(self, model: str, arguments: Mapping[str, Any]) -> bool:
        """Say whether a model with these arguments (those that are not defaults) is the paper's.

        Args:
            model: class name without "Module", as results files have it.
            arguments: how it was trained does not matter here.
        """
        from avsal.models import model_class

        same = architecture(arguments) == architecture(self.arguments)
        return same and model_class(self.model).__name__.removesuffix("Module") == model


def architecture(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that say what a model is, without those of its training."""
    found = {k: v for k, v in arguments.items() if k not in TRAINING}
    if found.get("contrast") == "post":  # CSTS's own, which its default stands for
        del found["contrast"]
    return found


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Attributes:
        paper: key of the command, such as "stavis".
        number: as the paper prints it; `aliases` are other spellings.
        title: what it shows.
        sets: the data sets.
        systems: names in `SYSTEMS`.
        metrics: keys of the scores.
        aliases: other spellings of the number.
    """

    paper: str
    number: str
    title: str
    sets: tuple[str, ...]
    systems: tuple[str, ...]
    metrics: tuple[str, ...]
    aliases: tuple[str, ...] = ()


_DHF1K, _SIX_AV = "data/dhf1k.yaml", "data/six-av.yaml"
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "stavis-audiovisual", "STAViS", "STAViS", "AV", "stavis", row=("STAViS", ""),
            training=(("stavis-visual.yaml", _SIX_AV), ("stavis.yaml", _SIX_AV)),
        ),
        System(
            "stavis-visual", "STAViS", "STAViS", "V", "stavis", {"audiovisual": False}, ("STAViS", ""),
            training=(("stavis-visual.yaml", _SIX_AV),),
        ),
        System(
            "casp-audiovisual", "CASP-Net", "CASP-Net", "AV", "caspnet", row=("CASP-Net", "DHF1K"),
            training=(("casp-visual.yaml", _DHF1K), ("casp.yaml", _SIX_AV)),
        ),
        System(
            "casp-visual", "CASP-Net", "CASP-Net", "V", "caspnet", {"audiovisual": False}, ("CASP-Net", "DHF1K"),
            training=(("casp-visual.yaml", _DHF1K), ("casp-visual.yaml", _SIX_AV)),
        ),
        System(
            "avrsp-audiovisual", "AVRSP", "AVRSP", "AV", "avrsp", row=("AVRSP", "DHF1K"),
            training=(("avrsp-visual.yaml", _DHF1K), ("avrsp.yaml", _SIX_AV)),
        ),
        System(
            "avrsp-visual", "AVRSP", "AVRSP", "V", "avrsp", {"audiovisual": False}, ("AVRSP", "DHF1K"),
            training=(("avrsp-visual.yaml", _DHF1K), ("avrsp-visual.yaml", _SIX_AV)),
        ),
        System(
            "mspi", "MSPI (MViTv2-S, 224x384)", "MSPI", "AV", "mspi",
            {"encoder": "mvitv2s", "size": [224, 384]}, ("MSPI (MViTv2-S + ConvNeXt-T, 16x224x384)", None),
            training=(("mspi.yaml", _SIX_AV),),
        ),
        System(
            "mspi-s3d", "MSPI (S3D, 224x224)", "MSPI", "AV", "mspi",
            row=("MSPI (S3D + ConvNeXt-T, 16x224x224)", None), training=(("mspi.yaml", _SIX_AV),),
        ),
        System(
            "csts-ego4d", "CSTS", "CSTS", "AV", "csts", row=("CSTS", None),
            tables={"Ego4D": "4", "Aria": "6"}, training=(("csts.yaml", "data/ego4d.yaml"),), folds=False,
        ),
        System(
            "csts-aria", "CSTS", "CSTS", "AV", "csts", {"timing": "aria"}, ("CSTS", None),
            tables={"Aria": "4"}, training=(("csts-aria.yaml", "data/aria.yaml"),), folds=False,
        ),
        System(
            "csts-ego4d-estimation", "CSTS (estimation)", "CSTS", "AV", "csts", {"task": "estimation"}, ("CSTS", None),
            tables={"Ego4D": "7"}, training=(("csts.yaml", "data/ego4d.yaml"),), folds=False,
        ),
        System(
            "csts-aria-estimation", "CSTS (estimation)", "CSTS", "AV", "csts",
            {"task": "estimation", "timing": "aria"}, ("CSTS", None),
            tables={"Aria": "7"}, training=(("csts-aria.yaml", "data/aria.yaml"),), folds=False,
        ),
    )
}  # fmt: skip

_SALIENCY, _GAZE = ("cc", "nss", "auc_judd", "sauc", "sim"), ("f1", "recall", "precision")
_FIRST, _SECOND = ("DIEM", "Coutrot1", "Coutrot2"), ("AVAD", "ETMD", "SumMe")
TABLES: tuple[PaperTable, ...] = (
    PaperTable("stavis", "2", "STAViS on DIEM and Coutrot", _FIRST, ("stavis-audiovisual", "stavis-visual"), _SALIENCY),
    PaperTable(
        "stavis", "3", "STAViS on AVAD, SumMe and ETMD", ("AVAD", "SumMe", "ETMD"),
        ("stavis-audiovisual", "stavis-visual"), _SALIENCY,
    ),
    PaperTable("casp", "4", "CASP-Net on DIEM and Coutrot", _FIRST, ("casp-audiovisual", "casp-visual"), _SALIENCY),
    PaperTable(
        "casp", "5", "CASP-Net on AVAD, ETMD and SumMe", _SECOND, ("casp-audiovisual", "casp-visual"), _SALIENCY
    ),
    PaperTable(
        "avrsp", "I", "AVRSP on DIEM, ETMD and AVAD", ("DIEM", "ETMD", "AVAD"), ("avrsp-audiovisual", "avrsp-visual"),
        _SALIENCY, ("1",),
    ),
    PaperTable(
        "avrsp", "II", "AVRSP on Coutrot and SumMe", ("Coutrot1", "Coutrot2", "SumMe"),
        ("avrsp-audiovisual", "avrsp-visual"), _SALIENCY, ("2",),
    ),
    PaperTable("mspi", "1", "MSPI on six sets", SIX, ("mspi", "mspi-s3d"), _SALIENCY),
    PaperTable("csts", "4", "CSTS, gaze anticipation", ("Ego4D", "Aria"), ("csts-ego4d", "csts-aria"), _GAZE),
    PaperTable("csts", "6", "CSTS, trained on Ego4D, tested on Aria", ("Aria",), ("csts-ego4d",), _GAZE),
    PaperTable(
        "csts", "7", "CSTS, gaze estimation", ("Ego4D", "Aria"),
        ("csts-ego4d-estimation", "csts-aria-estimation"), _GAZE,
    ),
)  # fmt: skip
PAPERS = tuple(dict.fromkeys(table.paper for table in TABLES))


def system_of(name: str | None, model: str | None, arguments: Mapping[str, Any]) -> System | None:
    """Return the paper's system that a result belongs to: by the name of its weights, else by its architecture.

    Args:
        name: of the weights.
        model: class name without "Module".
        arguments: constructor arguments that are not defaults.
    """
    import re

    known = SYSTEMS.get(re.sub(r"-fold\d+$", "", name)) if name else None
    if known is not None:
        return known
    return next((s for s in SYSTEMS.values() if model and s.fits(model, arguments)), None)
