"""The networks of the papers' tables: what each is, what it learns from, and what its training starts from.

This file is data: a sixth paper adds its networks to `SYSTEMS`, and its tables to `avsal.report.papers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avsal.models import avrsp, caspnet, class_named, csts, model_class, mspi, stavis
from avsal.report.published import PAPERS, Cell, select


@dataclass(frozen=True, eq=False)
class System:
    """A network as it stands in a row of a paper's table, or as the start of another one's training.

    Attributes:
        name: of its weights; each fold's are `<name>-fold<k>`, in the registry or trained.
        label: as tables print it.
        paper: whose model it is.
        modality: "V" or "AV".
        model: name for `create_model`.
        arguments: constructor arguments that differ from the defaults.
        row: what the paper calls it where it compares models, and its pretraining column.
        tables: the table to take these numbers from, by data set; by default every table that compares models.
        recipe: configuration files of its training, in `examples/`; later ones win.
        data: arguments of its training data that differ from the recipe's.
        weights: constructor argument -> weights that training starts from: a system's name (of the same fold), else
            a name of the registry or one that `--weights` gives.
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
    recipe: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
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
        cls = model_class(self.model)
        same = cls.architecture(arguments) == cls.architecture(self.arguments)
        return same and cls is class_named(model)


_STAVIS, _CASP, _MSPI, _AVRSP, _CSTS = PAPERS.values()


# -- networks ----------------------------------------------------------------------------------------------------

_AVAD_ETMD, _DIEM_AVAD = {"sets": ["AVAD", "ETMD_av"]}, {"sets": ["DIEM", "AVAD"]}


def _stavis() -> Iterable[System]:
    def system(name: str, arguments: Mapping[str, Any], paper: str = _STAVIS, **more: Any) -> System:
        hears = stavis.MODULE.modality(arguments)
        recipe = ("stavis.yaml" if hears == "AV" else "stavis-visual.yaml",)
        first = {"init_from": name.replace("audiovisual", "visual")} if hears == "AV" else {}
        return System(
            name=name, paper=paper, modality=hears, model="stavis", arguments=arguments,
            **{"label": "STAViS", "recipe": recipe, "weights": first, "row": ("STAViS", ""), **more},
        )  # fmt: skip

    yield system("stavis-audiovisual", {})
    yield system("stavis-visual", {"audiovisual": False})
    for row, arguments in stavis.VARIANTS.items():
        if row not in ("Visual", "L3mul + S3av"):
            yield system(
                f"stavis-{slug(row)}", arguments, label=f"STAViS ({row})", weights={"init_from": "stavis-visual"},
                row=("", None),
            )  # fmt: skip
    large = {"size": [224, 384], "via": None}
    yield system("stavis-visual-224x384", {"audiovisual": False, **large}, _MSPI, row=("", None))
    yield system(
        "stavis-audiovisual-224x384", large, _MSPI, label="STAViS*", row=("", None),
        weights={"init_from": "stavis-visual-224x384"},
    )  # fmt: skip


def _casp() -> Iterable[System]:
    def system(name: str, arguments: Mapping[str, Any], label: str = "CASP-Net", **more: Any) -> System:
        return System(
            name, label, _CASP, caspnet.MODULE.modality(arguments), "caspnet", arguments,
            **{"recipe": ("casp.yaml",), **more},
        )  # fmt: skip

    first = {"init_from": "casp-visual-dhf1k"}
    yield system("casp-audiovisual", {}, row=("CASP-Net", "DHF1K"), weights=first)
    yield system("casp-visual", {"audiovisual": False}, row=("CASP-Net", "DHF1K"), weights=first)
    yield system("casp-visual-dhf1k", {"audiovisual": False}, recipe=("casp-visual.yaml",), folds=False)
    yield system("casp-audiovisual-scratch", {}, row=("CASP-Net", "none"))
    yield system("casp-visual-scratch", {"audiovisual": False}, row=("CASP-Net", "none"))
    for ending, variant in _CASP_ROWS.items():
        yield system(
            f"casp-ablation-{ending}", caspnet.VARIANTS[variant], f"CASP-Net ({variant})", data=_AVAD_ETMD
        )


_CASP_ROWS = {
    "visual": "V (visual-only), Sal decoder", "fcn": "V, FCN decoder", "unet": "V, UNet decoder",
    "bilinear": "V+A+Bilinear", "quadratic": "V+A+I_Quadratic", "linear": "V+A+I_Linear",
    **{f"stage{s.replace(' ', '')}": f"V+A+I_Linear, AVIM at stage {s}" for s in ("1", "2", "3", "4", "2 3 4")},
    **{f"n{n}": f"V+A+I_Linear+C, N = {n}" for n in range(1, 6)},
}  # fmt: skip


def _avrsp() -> Iterable[System]:
    def system(name: str, arguments: Mapping[str, Any], label: str = "AVRSP", **more: Any) -> System:
        first = {"init_from": "avrsp-visual-dhf1k"}
        return System(
            name, label, _AVRSP, avrsp.MODULE.modality(arguments), "avrsp", arguments,
            **{"recipe": ("avrsp.yaml",), "weights": first, **more},
        )  # fmt: skip

    yield system("avrsp-audiovisual", {}, row=("AVRSP", "DHF1K"))
    yield system("avrsp-visual", {"audiovisual": False}, row=("AVRSP", "DHF1K"))
    yield system(
        "avrsp-visual-dhf1k", {"audiovisual": False}, recipe=("avrsp-visual.yaml",), weights={}, folds=False
    )
    for ending, variant in _AVRSP_ROWS.items():
        yield system(
            f"avrsp-ablation-{ending}", avrsp.VARIANTS[variant], f"AVRSP ({variant})", data=_DIEM_AVAD
        )


AVRSP_MODULES = {"none": "neither", "ms": "MS", "mrg": "MRG", "both": "MS and MRG"}
_AVRSP_ROWS = {
    **{f"{k}-{m}": f"III: {sound}, {words}" for k, sound in (("v", "visual"), ("av", "audio-visual"))
        for m, words in AVRSP_MODULES.items()},
    **{f"{k}-{n}-pairs": f"IV: {sound}, {n} pairs" for k, sound in (("v", "visual"), ("av", "audio-visual"))
        for n in (4, 2, 1, 0)},
    **{name: f"V: {name}" for name in ("add", "multiply", "concat", "bilinear", "mbt")},
}  # fmt: skip

#: Motion encoder -> its Kinetics weights (those that the registry has not are given by --weights), and the options
#: that fit the public port of them.
_MOTION: dict[str, tuple[str, dict[str, Any]]] = {
    "s3d": ("s3d-kinetics", {}),
    "x3dl": ("x3dl-kinetics", {"shortcut_norm": False}),
    "slowfast4x16": ("slowfast8x8-kinetics", {"lateral_kernel": 7}),
    "morphmlps": ("morphmlps-kinetics", {}),
    "videoswins": ("videoswins-kinetics", {"patch_norm": True}),
    "uniformerb": ("uniformerb-kinetics", {}),
    "mvitv2s": ("mvitv2s-kinetics", {}),
}
_MOBILE = {"image_encoder": "mobilenetv2_100"}


def _mspi() -> Iterable[System]:
    def system(
        name: str, arguments: Mapping[str, Any], label: str = "", pictures: str = "", **more: Any
    ) -> System:
        motion, options = _MOTION[arguments.get("encoder", "s3d")]
        weights = {"motion_weights": motion}
        if arguments.get("audio", True):
            weights["audio_weights"] = "resnet18-vggsound"
        if arguments.get("image_stream") != "none":
            mobile = arguments.get("image_encoder") == "mobilenetv2_100"
            argument, _, source = pictures.rpartition("=")
            default = "isp-mobilenetv2-mit1003" if mobile else "isp-convnext-tiny"
            weights[argument or "image_weights"] = source or default
        arguments = {**arguments, **({"encoder_options": options} if options else {})}
        large = {"batch_size": 2} if "size" in arguments else {}  # for 12 GB, as the released configuration
        hears = mspi.MODULE.modality(arguments)
        return System(
            name, label or f"MSPI ({name.removeprefix('mspi-')})", _MSPI, hears, "mspi", arguments,
            recipe=("mspi.yaml",), data=large, weights=weights, **more,
        )  # fmt: skip

    row = "MSPI ({} + ConvNeXt-T, 16x224x{})"
    yield system(
        "mspi", {"encoder": "mvitv2s", "size": [224, 384]}, "MSPI (MViTv2-S, 224x384)",
        row=(row.format("MViTv2-S", 384), None),
    )  # fmt: skip
    yield system("mspi-s3d", {}, "MSPI (S3D, 224x224)", row=(row.format("S3D", 224), None))
    yield system("mspi-s3d-224x384", {"size": [224, 384]}, row=(row.format("S3D", 384), None))
    yield system("mspi-mvitv2s-224x224", {"encoder": "mvitv2s"}, row=(row.format("MViTv2-S", 224), None))
    for name, arguments in mspi.VARIANTS.items():
        if name == "V6":
            yield system("mspi-v6", arguments, pictures="imagenet_weights=convnext-tiny-imagenet")
        elif name != "V5":
            maps = "isp-convnext-mit1003" if name == "V7" else ""  # the released encoder makes no maps
            yield system(f"mspi-{name.lower()}", arguments, pictures=maps)
    for weight in (0.1, 0.5, 3.0):
        yield system(f"mspi-lambda-{weight:g}", {**_MOBILE, "av_weight": weight})
    for fusion in ("bilinear_avg", "bilinear_max", "avim", "avim_cpc"):
        yield system(f"mspi-{slug(fusion)}", {**_MOBILE, "fusion": fusion})
    for encoder in mspi.TABLE6:
        if encoder not in ("s3d", "mvitv2s"):
            yield system(f"mspi-{encoder}", {"encoder": encoder})
    for ending, encoder in (("convnext", "convnext_tiny"), ("mobilenetv2", "mobilenetv2_100")):
        for data, recipe, start in (
            ("salicon", "isp.yaml", {"imagenet_weights": f"{encoder.removesuffix('_100').replace('_', '-')}-imagenet"}),
            ("mit1003", "isp-mit1003.yaml", {"init_from": f"isp-{ending}-salicon"}),
        ):  # fmt: skip
            yield System(
                f"isp-{ending}-{data}", f"ISP ({encoder}, {data})", _MSPI, "V", "isp",
                {"encoder": encoder} if ending != "convnext" else {}, recipe=(recipe,), weights=start,
                folds=False,
            )  # fmt: skip


def _csts() -> Iterable[System]:
    def system(data: str, arguments: Mapping[str, Any], ending: str = "", **more: Any) -> System:
        arguments = {**arguments, **({"timing": "aria"} if data == "aria" else {})}
        recipe = ("csts.yaml" if data == "ego4d" else "csts-aria.yaml", f"data/{data}.yaml")
        hears = csts.MODULE.modality(arguments)
        return System(
            f"csts-{data}{ending}", more.pop("label", f"CSTS ({ending[1:]})"), _CSTS, hears, "csts", arguments,
            recipe=recipe, folds=False, **more,
        )  # fmt: skip

    own: dict[str, Any] = {"row": ("CSTS", None), "label": "CSTS"}
    yield system("ego4d", {}, tables={"Ego4D": "4", "Aria": "6"}, **own)
    yield system("aria", {}, tables={"Aria": "4"}, **own)
    own["label"] = "CSTS (estimation)"
    for data, name in (("ego4d", "Ego4D"), ("aria", "Aria")):
        task = {"task": "estimation"}
        yield system(data, task, "-estimation", tables={name: "7"}, **own)
        silent = {**csts.VARIANTS["Vision only"], **task}
        yield system(data, silent, "-estimation-vision-only", label="CSTS (vision only, estimation)")
        for row, arguments in csts.VARIANTS.items():
            if row not in CSTS_ITSELF:
                yield system(data, arguments, f"-{slug(row)}", label=f"CSTS ({row})")


CSTS_ITSELF = ("CSTS", "STS + Post Contr")


def slug(words: str) -> str:
    """Return a row's name as a part of its weights' name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


SYSTEMS: dict[str, System] = {
    system.name: system for made in (_stavis, _casp, _avrsp, _mspi, _csts) for system in made()
}


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
    compared = (s for s in SYSTEMS.values() if s.row[0] and model)  # an ablation is known by its name only
    return next((s for s in compared if s.fits(str(model), arguments)), None)
