"""The registry file: every entry, the schema's faults, and the table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

import avsal
from avsal.checkpoints import registry
from avsal.checkpoints.registry import entries, read_registry, registry_path
from avsal.errors import ConfigError, WeightsError
from avsal.zoo import list_checkpoints, register
from avsal.zoo.commands import check_entry
from tests.zoo.conftest import CITATION, entry

PAGE = {"kind": "page", "url": "https://example.org", "how": "take the file from there"}

HUB = {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "sha256": "0" * 64}


def write(path: Path, **changes) -> Path:
    content = {
        "format_version": 1,
        "citations": {"paper": CITATION},
        "checkpoints": {"tiny": entry([PAGE])},
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", sorted(entries()))
def test_every_entry_fits_its_model_and_its_files(name):
    assert check_entry(entries()[name]) == []


def test_every_published_checkpoint_has_an_entry():
    names = set(entries())
    assert {f"stavis-{kind}-fold{fold}" for kind in ("visual", "audiovisual") for fold in (1, 2, 3)} <= names
    assert {f"mspi-fold{fold}" for fold in (1, 2, 3)} | {"isp-convnext-tiny"} <= names
    assert {"csts-ego4d", "csts-aria", "csts-ego4d-estimation", "csts-aria-estimation"} <= names
    backbones = {
        "s3d-kinetics",
        "resnet3d50-kinetics",
        "mvit-b-kinetics",
        "soundnet8",
        "vggish",
        "resnet18-vggsound",
    }
    assert backbones <= set(list_checkpoints(task="backbone"))


def test_published_numbers_are_those_of_the_papers_tables():
    # The leaderboard's copy of the tables was read from the papers on its own.
    table = Path(avsal.__file__).parent / "report" / "published_results.csv"
    papers: dict[tuple[str, str, str, str], set[float]] = {}
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                key = (row["paper"], row["table"], row["dataset"], row["metric"])
                papers.setdefault(key, set()).add(float(row["value"]))
            except ValueError:
                continue
    compared = 0
    for checkpoint in entries().values():
        for scores in checkpoint.published:
            paper, sign, number = scores.source.partition(", table ")
            for metric, value in scores.metrics.items():
                if sign and (paper, number, scores.data, metric) in papers:
                    assert value in papers[paper, number, scores.data, metric], (
                        checkpoint.name,
                        scores.data,
                        metric,
                    )
                    compared += 1
    assert compared >= 200


def test_the_list_is_narrowed_and_prints_as_a_table(cache):
    assert set(list_checkpoints(model="stavis", data="etmd")) >= {
        "stavis-visual-fold1",
        "stavis-audiovisual-fold3",
    }
    assert set(list_checkpoints(task="gaze-anticipation")) >= {"csts-ego4d", "csts-aria"}
    # Zero-shot numbers count: the Ego4D checkpoint was scored on Aria.
    assert "csts-ego4d" in list_checkpoints(data="Aria")
    text = repr(list_checkpoints(model="csts"))
    assert "csts-ego4d" in text
    assert "F1: Ego4D 39.7" in text
    assert "stavis" not in text


def test_an_unknown_name_gets_the_nearest_ones(cache):
    with pytest.raises(WeightsError, match=r"stavis-audiovisual-fold1.*avsal zoo list"):
        avsal.from_pretrained("stavis-audiovisual-fold")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version"),
        ({"checkpoints": {"Tiny": entry([PAGE])}}, "lower-case"),
        ({"checkpoints": {"../tiny": entry([PAGE])}}, "lower-case"),
        ({"checkpoints": {"tiny": entry([PAGE], citation="none")}}, "citation 'none'"),
        ({"checkpoints": {"tiny": entry([PAGE], licens="MIT")}}, "licens"),
        ({"checkpoints": {"tiny": entry([PAGE], status="unverified")}}, "needs a source that can be fetched"),
        ({"checkpoints": {"tiny": entry([{**PAGE, "member": "../../x"}])}}, "relative path inside"),
        ({"checkpoints": {"tiny": entry([{**PAGE, "member": "C:\\x"}])}}, "relative path inside"),
        ({"checkpoints": {"tiny": entry([{"kind": "url", "url": "file:///etc/passwd"}])}}, "url"),
        (
            {
                "checkpoints": {
                    "tiny": entry(
                        [PAGE, {"kind": "hub", "repo": "a/b", "revision": "main", "sha256": "0" * 64}]
                    )
                }
            },
            "revision",
        ),
        (
            {
                "checkpoints": {
                    "tiny": entry(
                        [PAGE, {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "sha256": "0" * 64}]
                    )
                }
            },
            "order packaged, hub, origin",
        ),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_place(tmp_path, change, words):
    with pytest.raises(ConfigError) as raised:
        read_registry(write(tmp_path / "faulty.yaml", **change))
    assert words in str(raised.value)
    assert "faulty.yaml" in str(raised.value)


def test_a_name_that_stands_twice_is_a_fault(tmp_path):
    path = write(tmp_path / "twice.yaml")
    text = path.read_text()
    block = text[text.index("  tiny:") : text.index("citations:")]
    path.write_text(text.replace(block, block + block))
    with pytest.raises(ConfigError, match="'tiny' stands twice"):
        read_registry(path)


def test_names_of_a_group_are_added(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    path = write(tmp_path / "ours.yaml", checkpoints={"mygroup-tiny": entry([PAGE])})
    assert register(path) == ["mygroup-tiny"]
    assert register(path) == ["mygroup-tiny"]
    assert list_checkpoints(data="DIEM")["mygroup-tiny"].licence.weights == "cc-by-4.0"
    other = write(tmp_path / "theirs.yaml", checkpoints={"mygroup-tiny": entry([PAGE], data=["AVAD"])})
    with pytest.raises(ConfigError, match="is taken"):
        register(other)


def test_the_documentation_tells_of_every_entry_that_is_fetched():
    """Entries whose file a person must fetch say how themselves (`avsal info NAME`)."""
    text = (registry_path().parent / "docs" / "zoo.md").read_text()
    fetched = [name for name, entry in entries().items() if entry.status != "manual"]
    missing = [name for name in fetched if f"`{name}`" not in text]
    assert missing == []


def test_the_table_of_the_command_line_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from avsal.cli import main; status = main(['zoo', 'list', '--json']); "
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == set(read_registry(registry_path()).checkpoints)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stavis", "stavis"),
        ("STAViS", "stavis"),
        ("stavsi", "stavis"),
        ("caspnet", "caspnet"),
        ("mspi-s3", "mspi"),
    ],
)
def test_a_wrong_name_is_answered_with_checkpoints_of_that_model(name, expected):
    with pytest.raises(WeightsError) as raised:
        registry.find(name)
    near = str(raised.value).split("Similar names: ")[1].split(". `")[0].split(", ")
    assert registry.find(near[0]).model == expected


def test_a_misspelt_name_is_answered_with_the_nearest():
    for wrong, right in (("stavis-tiny-synthv", "stavis-tiny-synthav"), ("vgish", "vggish")):
        with pytest.raises(WeightsError, match=f"Similar names: .*{right}"):
            registry.find(wrong)


def test_data_sets_and_models_match_without_regard_to_case_and_hyphens():
    for word in ("hevc33", "HEVC-33", "hevc_33"):
        assert "stavis-tiny-visual-hevc33" in list_checkpoints(data=word)
    assert list_checkpoints(model="STAViS").keys() == list_checkpoints(model="stavis").keys()
    assert list(list_checkpoints(task="Gaze Anticipation"))
