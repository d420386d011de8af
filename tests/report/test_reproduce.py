"""Every table of the five papers by a command: what there is, what is trained on what, and each on miniature data."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from avsal.cli import main
from avsal.errors import WeightsError
from avsal.report import recipes
from avsal.report.layout import paper_table
from avsal.report.measured import entry_of
from avsal.report.papers import SYSTEMS, TABLES, PaperTable
from avsal.report.published import PAPERS, SIX, cells
from avsal.report.recipes import Training, chain
from avsal.report.records import read
from avsal.report.testing import Options
from tests.report.fake import results, write
from tests.report.miniature import make


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets in miniature."""
    return make(tmp_path_factory.mktemp("mini"))


def arguments(data: Path | None, out: Path, **more: Any) -> Options:
    return Options(data=data, out=out, **{"accelerator": "cpu", "batch_size": 4, "num_workers": 0, **more})


def table(paper: str, number: str) -> PaperTable:
    return next(t for t in TABLES if (t.paper, t.number) == (paper, number))


# -- what there is -------------------------------------------------------------------------------------------------

#: Paper -> its tables, number of figures, and what a command must run.
PRINTED = {
    "stavis": ("1 2 3 4 5 6 7 8", 7, "1 2 3 7 8"),
    "casp": ("1 2 3 4 5", 7, "1 2 3 4 5 F5"),
    "mspi": ("1 2 3 4 5 6", 10, "1 2 3 4 5 6"),
    "avrsp": ("I II III IV V", 6, "I II III IV V F6"),
    "csts": ("1 2 3 4 5 6 7 8 9", 7, "1 2 3 4 6 7 8 F3"),
}


@pytest.mark.parametrize("paper", PRINTED)
def test_every_table_and_figure_is_listed_with_its_command_or_the_reason_why_not(
    paper: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, figures, run = PRINTED[paper]
    everything = numbers.split() + [f"F{k + 1}" for k in range(figures)]
    assert main(["reproduce", paper, "--list"]) == 0
    blocks = re.split(r"^(?=(?:Table|Figure) )", capsys.readouterr().out, flags=re.M)[1:]
    found = {}
    for block in blocks:
        kind, number = re.match(r"(Table|Figure) (\w+):", block).groups()  # type: ignore[union-attr]
        found[number if kind == "Table" else f"F{number}"] = block
    assert list(found) == everything
    for number, block in found.items():
        if number in run.split():
            assert f"avsal reproduce {paper} --table {number} --data ROOT" in block
            assert "data: test on" in block
            assert re.search(
                r"estimated, not measured: [\d.]+ hours of training and [\d.]+ of tests on one RTX", block
            )
        else:
            assert "not run: " in block
            assert main(["reproduce", paper, "--table", number]) == 2
            assert "is not run" in capsys.readouterr().err


def test_a_figure_is_found_by_any_of_its_names() -> None:
    figure = table("casp", "F5")
    assert all(figure.is_called(name) for name in ("F5", "f5", "fig5", "Fig. 5", "Figure 5", "figure 5"))
    assert not any(figure.is_called(name) for name in ("5", "Table 5", "F4"))
    assert table("avrsp", "IV").is_called("4")
    assert table("avrsp", "IV").is_called("iv")
    assert not table("stavis", "7").is_called("F7")


def test_every_named_network_and_every_start_is_known() -> None:
    names = {name for t in TABLES for name in t.systems}
    starts = {w for s in SYSTEMS.values() for w in s.weights.values()}
    assert names <= SYSTEMS.keys()
    assert SYSTEMS.keys() - names - starts == set()
    files = {recipes.EXAMPLES / file for s in SYSTEMS.values() for file in s.recipe}
    assert sorted(str(path) for path in files if not path.is_file()) == []


def test_the_described_rows_are_those_of_the_printed_numbers() -> None:
    """Two files hold each row's name: a misspelt one would show no number, or hide a printed row."""
    for t in (t for t in TABLES if not t.reason):
        printed = {c.row for c in cells() if (c.paper, c.table) == (PAPERS[t.paper], t.number)}
        rows = {(PAPERS[t.paper], *row.cell) for row in t.rows if row.cell[0]}
        assert printed - rows == set(), (t.paper, t.number)
        if (t.paper, t.number) not in (("mspi", "1"), ("mspi", "2")):  # damaged in the copy that was read
            assert rows - printed == set(), (t.paper, t.number)


def test_the_rows_of_the_supplement_agree_with_the_papers_own_tables() -> None:
    """Tables 7 and 8 repeat 2 and 3; the two numbers in which they differ say so."""
    same = {"Visual": "STAViS", "L3mul + S3av": "STAViS"}
    printed = {(c.table, c.data, c.model, c.modality, c.metric): c for c in cells() if c.paper == "STAViS"}
    compared, other = 0, []
    for (number, data, model, modality, metric), cell in printed.items():
        if number not in ("7", "8"):
            continue
        old = printed.get(("2" if number == "7" else "3", data, same.get(model, model), modality, metric))
        if old is not None:
            compared += 1
            if old.value != cell.value:
                other.append((data, metric, old.value, cell.value))
                assert f"has {old.value}" in cell.note
    assert compared == 9 * 15 * 2
    assert other == [("SumMe", "nss", 2.04, 2.03), ("ETMD", "nss", 2.94, 2.93)]
    assert Counter(number for number, *_ in printed)["7"] == 20 * 15


# -- what is trained on what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("casp-ablation-n3", {"AVAD", "ETMD_av"}),
        ("avrsp-ablation-mbt", {"DIEM", "AVAD"}),
        ("casp-visual", set(recipes.SIZES) - {"DHF1K", "SALICON", "MIT1003", "Ego4D", "Aria"}),
        ("mspi-v1", set(recipes.SIZES) - {"DHF1K", "SALICON", "MIT1003", "Ego4D", "Aria"}),
        ("avrsp-visual-dhf1k", {"DHF1K"}),
    ],
)
def test_networks_learn_from_the_sets_that_their_papers_name(
    name: str, sets: set[str], mini: Path, tmp_path: Path
) -> None:
    data = Training(
        SYSTEMS[name], 1 if SYSTEMS[name].folds else None, arguments(mini, tmp_path)
    ).data_module()
    assert {item.name.split("/")[0] for item in data.split_items("train")} == sets
    assert set(recipes.training_sets(SYSTEMS[name])) == sets


def test_visual_rows_see_as_many_clips_as_their_audio_visual_twins(mini: Path, tmp_path: Path) -> None:
    for paper in ("casp", "avrsp"):
        seen = []
        for name in (f"{paper}-visual", f"{paper}-audiovisual"):
            training = Training(SYSTEMS[name], 1, arguments(mini, tmp_path))
            data = training.data_module()
            data.use_spec(training.small().spec)
            seen.append((len(data.train_dataset()), data.segment, data.batch_size))
        assert seen[0] == seen[1]


def test_a_network_starts_from_the_one_before_it(tmp_path: Path) -> None:
    args = arguments(Path("six"), tmp_path, dhf1k=Path("dhf1k"), devices="4", strategy="ddp")
    order = [t.system.checkpoint(t.fold) for t in chain(SYSTEMS["casp-audiovisual"], 2, args)]
    assert order == ["casp-visual-dhf1k", "casp-audiovisual-fold2"]
    first, second = chain(SYSTEMS["casp-audiovisual"], 2, args)
    assert "--data.init_args.root=dhf1k" in first.command()
    assert "--model.init_args.init_from=<best .ckpt of casp-visual-dhf1k>" in second.command()
    assert {"--data.init_args.root=six", "--data.init_args.fold=2", "--trainer.devices=4"} <= set(
        second.command()
    )
    (first.folder / "version_0").mkdir(parents=True)
    best = first.folder / "version_0" / "best-epoch=001.ckpt"
    best.touch()
    assert len(chain(SYSTEMS["casp-audiovisual"], 2, args)) == 2  # not finished yet
    (first.folder / "finished").touch()
    (left,) = chain(SYSTEMS["casp-audiovisual"], 2, args)
    assert f"--model.init_args.init_from={best}" in left.command()
    # The authors' own weights start the ablations of STAViS, and a file of the user's in their place.
    (only,) = chain(SYSTEMS["stavis-l3-s2av"], 3, args)
    assert "--model.init_args.init_from=stavis-visual-fold3" in only.command()
    args = replace(args, weights={"stavis-visual": best, "stavis-l3-s2av-fold1": best})
    (only,) = chain(SYSTEMS["stavis-l3-s2av"], 3, args)
    assert f"--model.init_args.init_from={best}" in only.command()
    assert chain(SYSTEMS["stavis-l3-s2av"], 1, args) == []


@pytest.mark.parametrize(
    "name",
    ["stavis-l1-s1av", "casp-visual", "avrsp-ablation-v-2-pairs", "mspi-slowfast4x16", "mspi-baseline",
     "isp-mobilenetv2-mit1003", "csts-aria-vision-only"],
)  # fmt: skip
def test_the_commands_words_are_understood_as_they_are_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from avsal.training import main as lightning

    system = SYSTEMS[name]
    training = Training(system, 2 if system.folds else None, arguments(tmp_path, tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["avsal", *training.command(), "--print_config"])
    with pytest.raises(SystemExit):
        lightning()
    parsed = yaml.safe_load(capsys.readouterr().out)
    model, data = parsed["model"], parsed["data"]
    assert model["class_path"].endswith(training.recipe["model"]["class_path"].split(".")[-1])
    wanted = {**training.recipe["model"]["init_args"], **training.model_arguments()}
    assert {k: model["init_args"][k] for k in wanted} == wanted
    assert data["class_path"].endswith(training.recipe["data"]["class_path"].split(".")[-1])
    wanted = {**training.recipe["data"]["init_args"], **training.data_arguments()}
    assert {k: data["init_args"][k] for k in wanted} == wanted
    assert parsed["trainer"]["max_epochs"] == training.recipe["trainer"]["max_epochs"]


# -- what is missing is said before anything is trained ------------------------------------------------------------


def test_missing_data_and_weights_are_said_before_anything_is_trained(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(self: Training) -> None:
        raise AssertionError("a training began")

    monkeypatch.setattr(Training, "run", never)
    six = tmp_path / "six"
    six.mkdir()
    for part in ("fold_lists", "annotations", "video"):
        (six / part).symlink_to(mini / part)
    words = [
        "reproduce",
        "casp",
        "--table",
        "4",
        "--out",
        str(tmp_path / "out"),
        "--num-workers",
        "0",
        "--train",
    ]
    assert main([*words, "--data", str(six)]) == 2
    said = capsys.readouterr().err
    assert "training needs data that is not there" in said
    assert "DHF1K" in said
    words = [
        "reproduce",
        "mspi",
        "--table",
        "6",
        "--out",
        str(tmp_path / "out"),
        "--num-workers",
        "0",
        "--train",
    ]
    assert main([*words, "--data", str(mini)]) == 2
    said = capsys.readouterr().err
    for name in ("morphmlps-kinetics", "uniformerb-kinetics", "resnet18-vggsound"):
        assert f"--weights {name}=FILE" in said
    assert "videoswins-kinetics" not in said  # is fetched by itself
    assert main([*words, "--data", str(mini), "--weights", "uniformerb-kinetics"]) == 2
    assert "expected NAME=FILE" in capsys.readouterr().err


def test_a_failed_training_is_noted_once_and_the_other_rows_are_run(
    mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []
    plain = Training.run

    def run(self: Training) -> None:
        began.append(self.system.name)
        if self.system.name == "casp-visual-dhf1k":
            raise WeightsError("the machine went away")
        plain(self)

    monkeypatch.setattr(Training, "run", run)
    words = ["reproduce", "casp", "--table", "4", "--sets", "DIEM", "--fast", "--format", "markdown"]
    words += ["--data", str(mini), "--out", str(tmp_path), "--accelerator", "cpu", "--num-workers", "0"]
    assert main(words) == 1
    found = capsys.readouterr()
    assert sorted(began) == ["casp-audiovisual-scratch", "casp-visual-dhf1k", "casp-visual-scratch"]
    measured = [row for row in tables_of(found.out)["Table 4"] if row["line"] == "measured"]
    assert [(row["Method"], row["Pretrained"]) for row in measured] == [
        ("CASP-Net(V)", "-"),
        ("CASP-Net(AV)", "-"),
    ]
    assert "the machine went away" in found.err
    assert "starts from casp-visual-dhf1k, whose training failed" in found.err


# -- numbers -------------------------------------------------------------------------------------------------------


def test_overall_is_the_mean_over_all_videos_and_the_average_of_six_that_over_sets(tmp_path: Path) -> None:
    found, videos, sets = {}, [], []
    for place, data in enumerate(SIX):
        runs = [results(data, k, name="stavis-visual", level=0.3 + place / 10) for k in (1, 2, 3)]
        paths = write(tmp_path / data, *runs)
        found["stavis-visual", data] = entry_of(read(paths, []), 50)
        rows: dict[str, list[float]] = {}
        for run in runs:
            for name, row in run.videos.items():
                rows.setdefault(name, []).append(row["cc"])
        means = [float(np.mean(values)) for values in rows.values()]  # DIEM's videos stand in every fold
        videos += means
        sets.append(np.mean(means))
    args = arguments(None, tmp_path)
    shown = paper_table(table("stavis", "1"), found, args)
    line = next(row for row in shown.rows if (row[0].text, row[1].text) == ("Visual", "measured"))
    assert line[shown.columns.index("overall CC")].sort == pytest.approx(np.mean(videos), abs=1e-9)
    named = {("mspi-v4", data): entry for (_, data), entry in found.items()}
    shown = paper_table(table("mspi", "5"), named, args)
    line = next(row for row in shown.rows if (row[0].text, row[1].text) == ("AVFB", "measured"))
    assert line[shown.columns.index("average of six CC")].sort == pytest.approx(np.mean(sets), abs=1e-9)
    del named["mspi-v4", "SumMe"]  # without one of the six there is no average
    assert not any(r[1].text == "measured" for r in paper_table(table("mspi", "5"), named, args).rows)


# -- every table, on miniature data --------------------------------------------------------------------------------


def _wide(sets: str, metrics: str) -> list[str]:
    return [f"{data} {metric.replace('_', ' ')}" for data in sets.split() for metric in metrics.split()]


_FIVE, _FOUR, _SIM_FIRST = "CC NSS AUC-J sAUC SIM", "CC NSS AUC-J SIM", "SIM CC NSS AUC-J"
_GAZE = "F1_Score Recall Precision"
_OTHERS = ["DeepNet", "DVA", "SAM", "SalGAN", "ACLNet", "DeepVS", "TASED"]
_LOCALISATION = [
    "Visual", "L1 AudioOnly", "L2 AudioOnly", "L3 AudioOnly", "L1 + S1av", "L2 + S1av", "L3 + S1av", "L1 + S2av",
    "L2 + S2av", "L3 + S2av", "L3mul + S~2av", "L3mul + S3av", "L3mul + Sfusav",
]  # fmt: skip
_BEFORE_CASP = [
    "ACLNet(V) -", "TASED-Net(V) -", "STAViS(V) -", "STAViS(AV) -", "CASP-Net(V) -", "CASP-Net(AV) -", "ViNet(V) DHF1k",
    "ViNet(AV) DHF1k", "TSFP-Net(V) DHF1k", "TSFP-Net(AV) DHF1k", "CASP-Net(V) DHF1k", "CASP-Net(AV) DHF1k",
]  # fmt: skip
_BEFORE_AVRSP = [
    "TASED-Net(V)", "STAViS(V)", "ViNet(V)", "CASP-Net(V)", "TSFP-Net(V)", "Ours(V)", "STAViS(AV)", "ViNet(AV)",
    "CASP-Net(AV)", "TSFP-Net(AV)", "DAVS(AV)", "Ours(AV)",
]  # fmt: skip
_PAIRS = [
    "4 X3, X2, X1, X0 X3, X2, X1, X0",
    "3 X3, X2, X1, X0 X3, X2, X1",
    "2 X3, X2, X1 X3, X2",
    "1 X3, X2 X3",
    "0 Null Null",
]
_OURS = _wide("DIEM ETMD SumMe AVAD Coutrot1 Coutrot2", "CC NSS AUC sAUC SIM")
_AVERAGE = [f"average of six {metric}" for metric in ("CC", "NSS", "AUC", "sAUC", "SIM")]
_EGO = ["Center Prior", "GazeMLE", "AttnTrans", "I3D-R50", "MViT", "GLC"]


#: (paper, table) -> rows from top to bottom, columns from left to right, and which rows are measured (all if None), as
#: typed from the papers.
LAYOUT: dict[tuple[str, str], tuple[list[str], list[str], list[str] | None]] = {
    ("stavis", "1"): (_LOCALISATION, _wide("overall", _FIVE), None),
    ("stavis", "2"): (["STAViS [STA]", "STAViS [ST]", *_OTHERS], _wide("DIEM Coutrot1 Coutrot2", _FIVE),
                      ["STAViS [STA]", "STAViS [ST]"]),
    ("stavis", "3"): (["STAViS [STA]", "STAViS [ST]", *_OTHERS], _wide("AVAD SumMe ETMD", _FIVE),
                      ["STAViS [STA]", "STAViS [ST]"]),
    ("stavis", "7"): ([*_LOCALISATION, *_OTHERS], _wide("DIEM Coutrot1 Coutrot2", _FIVE), _LOCALISATION),
    ("stavis", "8"): ([*_LOCALISATION, *_OTHERS], _wide("AVAD SumMe ETMD", _FIVE), _LOCALISATION),
    ("casp", "1"): ([f"{d} CASP-Net({k})" for d in ("AVAD", "ETMD") for k in ("FCN", "UNet", "Sal")],
                    ["#Params", "CC", "NSS", "SIM"], None),
    ("casp", "2"): (["Visual-Only", "V+A+Bilinear", "V+A+I_Quadratic", "V+A+I_Linear", "V+A+I_Linear+C"],
                    _wide("AVAD ETMD", "CC SIM"), None),
    ("casp", "3"): (["AVAD CC", "AVAD SIM", "ETMD CC", "ETMD SIM"],
                    [f"Stage {s}" for s in ("1", "2", "3", "4", "2,3,4", "1,2,3,4")], None),
    ("casp", "4"): (_BEFORE_CASP, _wide("DIEM Coutrot1 Coutrot2", _FOUR), [r for r in _BEFORE_CASP if "CASP" in r]),
    ("casp", "5"): (_BEFORE_CASP, _wide("AVAD ETMD SumMe", _FOUR), [r for r in _BEFORE_CASP if "CASP" in r]),
    ("casp", "F5"): ([str(n) for n in range(6)], _wide("AVAD DIEM", _FOUR), None),
    ("mspi", "1"): (["STAViS* 16x224x384",
                     *(f"Ours ({e}) 16x224x{w}" for e in ("S3D", "MViTv2-S") for w in (224, 384))],
                    _OURS, None),
    ("mspi", "2"): (["baseline L_sal", "V1 ✓ L_total", "V2 L_sal MobileNetV2", "V3 ✓ L_sal MobileNetV2",
                     "V4 ✓ L_total MobileNetV2", "V5 ✓ L_total ConvNeXt-T", "V6 ✓ L_total ConvNeXt-T*",
                     "V7 ✓ L_total ConvNeXt-T†"],
                    _OURS, None),
    ("mspi", "3"): (["MobileNetV2", "ConvNeXt-T"], _wide("SALICON MIT1003", "CC NSS"), None),
    ("mspi", "4"): (["0", "0.1", "0.5", "1", "3"], _AVERAGE, None),
    ("mspi", "5"): (["bilinear + Avg + C", "bilinear + Max + S", "AVIM", "AVIM+CPC", "AVFB"],
                    _AVERAGE, None),
    ("mspi", "6"): (["S3D", "X3D-L", "SlowFast-4x16", "MorphMLP-S", "VideoSwin-S", "Uniformer-B", "MViTv2-S"],
                    ["Params (M)", "MACs (G)", *_OURS], None),
    ("avrsp", "I"): (_BEFORE_AVRSP, _wide("DIEM ETMD AVAD", _SIM_FIRST), ["Ours(V)", "Ours(AV)"]),
    ("avrsp", "II"): (_BEFORE_AVRSP, _wide("Coutrot1 Coutrot2 SumMe", _SIM_FIRST), ["Ours(V)", "Ours(AV)"]),
    ("avrsp", "III"): ([f"AVRSP{m}" for m in ("", " ✓", " ✓", " ✓ ✓", " ✓", " ✓ ✓", " ✓ ✓", " ✓ ✓ ✓")],
                       _wide("DIEM AVAD", _SIM_FIRST), None),
    ("avrsp", "IV"): ([f"{kind} {pairs}" for kind in ("Visual-only", "Audio-Visual") for pairs in _PAIRS],
                      _wide("DIEM", _FOUR), None),
    ("avrsp", "V"): (["Visual-only baseline", "Element-wise addition", "Element-wise multiplication", "Concatenation",
                      "Bilinear", "MBT", "RAVF"], _wide("DIEM AVAD", _SIM_FIRST), None),
    ("csts", "1"): (["Vision only", "S-fusion", "T-fusion", "STS", "CSTS"], _wide("Ego4D Aria", _GAZE), None),
    ("csts", "2"): (["Vision only", "Linear", "Bilinear", "Concat", "Vanilla SA", "STS"],
                    _wide("Ego4D Aria", _GAZE), None),
    ("csts", "3"): (["Vanilla SA", "SA + Vanilla Contr", "SA + Post Contr", "STS", "STS + Vanilla Contr",
                     "STS + Post Contr"],
                    _wide("Ego4D Aria", _GAZE), None),
    ("csts", "4"): ([*_EGO, "DFG", "DFG+", "CSTS"], _wide("Ego4D Aria", _GAZE), ["MViT", "CSTS"]),
    ("csts", "6"): ([*_EGO[1:], "DFG", "DFG+", "CSTS"], _wide("Aria", _GAZE), ["MViT", "CSTS"]),
    ("csts", "7"): ([*_EGO, "CSTS"], _wide("Ego4D Aria", _GAZE), ["MViT", "CSTS"]),
    ("csts", "8"): (["STS + Vanilla Contr", "STS + S-Contr", "STS + T-Contr", "STS + Cross Contr", "STS + Post Contr"],
                    _wide("Ego4D Aria", _GAZE), None),
    ("csts", "F3"): (["MViT", "CSTS"], [f"{d} step {k}" for d in ("Ego4D", "Aria") for k in range(1, 9)], None),
}  # fmt: skip
#: A few numbers as printed: paper, table, row, column.
SOME = [
    ("stavis", "1", "L3mul + Sfusav", "overall SIM", "0.4290"), ("stavis", "7", "L1 + S2av", "Coutrot2 NSS", "3.90"),
    ("stavis", "8", "L3mul + S~2av", "ETMD sAUC", "0.7333"), ("casp", "1", "AVAD CASP-Net(UNet)", "#Params", "3.94"),
    ("casp", "3", "ETMD CC", "Stage 2,3,4", "0.613"), ("casp", "5", "CASP-Net(AV) -", "AVAD NSS", "3.77"),
    ("casp", "5", "CASP-Net(AV) DHF1k", "AVAD NSS", "3.81"), ("mspi", "3", "ConvNeXt-T", "MIT1003 CC", "0.7564"),
    ("mspi", "6", "Uniformer-B", "MACs (G)", "202"), ("mspi", "5", "AVIM+CPC", "average of six NSS", "3.4233"),
    ("avrsp", "V", "MBT", "AVAD SIM", "0.541"), ("csts", "6", "CSTS", "Aria F1 Score", "50.8"),
    ("csts", "2", "Bilinear", "Ego4D Recall", "52.8"),
]  # fmt: skip


@pytest.fixture
def _small_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """The motion encoders of full size take minutes: fewer blocks, and a MorphMLP whose segments fit small frames."""
    from avsal.nn import morphmlp, uniformer
    from avsal.nn.motion import MotionEncoder

    monkeypatch.setattr(morphmlp, "_SEGMENTS", (1, 1, 1, 1))
    monkeypatch.setattr(morphmlp, "_DEPTHS", (1, 1, 1, 1))
    monkeypatch.setattr(morphmlp.MorphMLPS, "check_size", MotionEncoder.check_size)
    monkeypatch.setattr(uniformer, "_DEPTHS", (1, 1, 1, 1))
    monkeypatch.setattr(recipes, "FULL_SIZE", {})


def tables_of(page: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown page: "Table 2" -> its rows, by heading."""
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.split(r"^## ", page.replace("\\", ""), flags=re.M)[1:]:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if not lines:
            continue
        heads, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found[block.split(":")[0]] = [dict(zip(heads, row, strict=True)) for row in rows[1:]]
    return found


#: What is run of each paper; of MSPI's many and large networks one data set is enough where no mean needs all.
COMMANDS = {"mspi": [f"--table {n}" + (" --sets AVAD" if n in "126" else "") for n in "123456"]}


@pytest.mark.slow
@pytest.mark.usefixtures("_small_motion")
@pytest.mark.parametrize("paper", PRINTED)
def test_every_table_runs_on_miniature_data_and_is_printed_as_in_the_paper(
    paper: str,
    mini: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--fast", "--format", "markdown", "--data", str(mini), "--out", str(tmp_path)]
    words += ["--accelerator", "cpu", "--num-workers", "0", "--batch-size", "4"]

    commands = COMMANDS.get(paper, ["--table all"])

    def run(commands: list[str]) -> tuple[dict[str, list[dict[str, str]]], str]:
        for command in commands:
            assert main(["reproduce", paper, *command.split(), *words]) == 0
        printed = capsys.readouterr()
        return tables_of(printed.out), printed.err

    page, _ = run(commands)
    described = [number for name, number in LAYOUT if name == paper]
    assert list(page) == [f"Figure {n[1:]}" if n[0] == "F" else f"Table {n}" for n in described]
    for number in described:
        rows, columns, ours = LAYOUT[paper, number]
        if table(paper, number).form != "steps":  # whose columns are known with the numbers
            bare = paper_table(table(paper, number), {}, arguments(None, tmp_path)).columns
            assert bare[bare.index("line") + 1 :] == columns, number
        lines = page[f"Figure {number[1:]}" if number[0] == "F" else f"Table {number}"]
        if paper == "mspi" and number in ("1", "2", "6"):
            columns = [c for c in columns if c.split()[0] in ("AVAD", "Params", "MACs")]
        heads = list(lines[0])
        assert heads[heads.index("line") + 1 :] == columns, number
        names = heads[: heads.index("line")]
        seen = [(" ".join(line[n] for n in names if line[n]), line) for line in lines]
        # A row has several lines; rows of one name follow each other (AVRSP's table III).
        starts = [
            name for name, line in seen if line["line"] == seen[0][1]["line"] or line["line"] == "published"
        ]
        measured = [(name, line) for name, line in seen if line["line"] == "measured"]
        if any(line["line"] == "published" for _, line in seen):
            shown = list(dict.fromkeys(name for name, _ in seen)) if len(set(rows)) == len(rows) else starts
            assert shown == rows, number
        assert [name for name, _ in measured] == (rows if ours is None else ours), number
        for name, line in measured:
            assert all(line[c] for c in columns), (number, name)
        for _, where, row, column, value in (s for s in SOME if s[:2] == (paper, number)):
            assert where == number
            assert (
                next(x[column] for name, x in seen if (name, x["line"]) == (row, "published")).rstrip("?")
                == value
            )
    drawn = sorted(path.name for path in (tmp_path / "fast" / "figures").glob("*.png"))
    assert [name for name in drawn if paper in name] == drawn
    assert bool(drawn) == any(n[0] == "F" for n in PRINTED[paper][2].split())
    # Once more: nothing is trained or tested again, and the same is printed.
    monkeypatch.setattr(Training, "run", None)
    monkeypatch.setattr("avsal.evaluation.testing.evaluate", None)
    again, said_again = run(commands[:3])
    assert again == {name: page[name] for name in again}
    assert "training " not in said_again
    assert said_again.count("done before") > 0
    assert "(" + str(tmp_path) not in said_again
