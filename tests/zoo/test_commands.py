"""`avsal zoo`, `avsal info`, `avsal convert` and `avsal publish` as a user runs them."""

from __future__ import annotations

import re

import pytest
import yaml

from avsal.checkpoints.registry import default_checkpoint
from avsal.cli import main
from avsal.zoo import list_checkpoints, save_pretrained
from tests.checkpoints.test_registry import PAGE
from tests.zoo.conftest import CITATION, entry


def test_zoo_list_prints_a_table_with_its_legend(cache, capsys):
    assert main(["zoo", "list", "--model", "stavis"]) == 0
    out = capsys.readouterr().out
    assert "stavis-audiovisual-fold1" in out
    assert "CC: DIEM 0.5795" in out
    assert "unverified: the authors' release" in out
    assert main(["zoo", "list", "--model", "nothing"]) == 1


@pytest.mark.slow
def test_the_recommended_checkpoints_can_be_used_today_and_the_default_is_one_of_them(cache, capsys):
    chosen = list_checkpoints(recommended=True)
    assert default_checkpoint() in chosen
    for name, checkpoint in chosen.items():
        assert checkpoint.data != ["SynthAV"], name
        assert checkpoint.status == "shipped", name
    assert main(["zoo", "list", "--recommended"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == [
        "purpose",
        "name",
        "hears?",
        "trained",
        "on",
        "input",
        "fps",
        "here",
        "licence",
        "offline?",
    ]
    row = next(line for line in rows if default_checkpoint() in line)
    speed = float(re.search(r"(\d+)\s+Apache-2\.0", row)[1])
    assert speed > 0


def test_zoo_check_validates_a_file(cache, tmp_path, capsys):
    assert main(["zoo", "check"]) == 0
    assert "all valid" in capsys.readouterr().out
    wrong = {"tiny": entry([PAGE], arguments={"colour": True}), "other": entry([PAGE], model="alexnet")}
    path = tmp_path / "ours.yaml"
    path.write_text(
        yaml.safe_dump({"format_version": 1, "citations": {"paper": CITATION}, "checkpoints": wrong})
    )
    assert main(["zoo", "check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "tiny: stavis takes no argument colour" in out
    assert "other: there is no model 'alexnet'" in out
    path.write_text("checkpoints: [")
    assert main(["zoo", "check", str(path)]) == 2
    assert "not valid registry YAML" in capsys.readouterr().err


def test_zoo_check_asks_every_address(server, cache, tmp_path, capsys):
    server.files["here.pth"] = b"weights"
    server.files["page.html"] = b"<html>"
    server.repo("authors/paper", {"ego4d.pyth": b"x"})
    server.releases["authors/paper/releases/tags/v1"] = {"assets": [{"name": "s1.pt"}]}
    hub = {"kind": "hub-origin", "repo": "authors/paper"}
    release = {"kind": "release", "repo": "authors/paper", "tag": "v1"}
    checkpoints = {
        "here": entry([{"kind": "url", "url": server.url + "/files/here.pth"}]),
        "gone": entry([{"kind": "url", "url": server.url + "/files/gone.pth"}]),
        "hub": entry([{**hub, "match": ["*ego4d*"]}]),
        "hub-gone": entry([{**hub, "match": ["*aria*"]}]),
        "release": entry([{**release, "match": ["s1*"]}]),
        "release-gone": entry([{**release, "match": ["s2*"]}]),
    }
    path = tmp_path / "ours.yaml"
    path.write_text(
        yaml.safe_dump({"format_version": 1, "citations": {"paper": CITATION}, "checkpoints": checkpoints})
    )
    assert main(["zoo", "check", str(path), "--online"]) == 1
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines()[:-1]] == ["gone", "hub-gone", "release-gone"]
    assert "404" in out


@pytest.mark.parametrize("name", ["stavis-visual-fold1", "stavis"])
def test_info_tells_size_cost_and_input(cache, capsys, name):
    words = [] if name != "stavis" else ["--set", "audiovisual=false"]
    assert main(["info", name, *words]) == 0
    out = capsys.readouterr().out
    # The authors' own class, counted with another tool: 17,695,445 parameters, 9.692 G multiply-adds.
    assert "17,695,445" in out
    assert "9.69 G" in out
    assert "16 frames of 112x112" in out
    if name != "stavis":
        assert "not-stated" in out
        assert "pretrained_models" in out
        assert "no (cache" in out


def test_info_of_a_file_and_of_nothing(module, cache, tmp_path, capsys):
    folder = save_pretrained(module, tmp_path / "saved")
    assert main(["info", str(folder)]) == 0
    assert "16 frames of 32x32" in capsys.readouterr().out
    assert main(["info", "stavi"]) == 2
    err = capsys.readouterr().err
    assert "Models:" in err
    assert "stavis" in err


def test_publish_dry_run_and_refusal(module, cache, tmp_path, capsys):
    folder = save_pretrained(module, tmp_path / "saved")
    assert main(["publish", str(folder), "--repo", "user/tiny"]) == 2
    assert "--licence cc-by-4.0" in capsys.readouterr().err


def test_bad_words_are_usage_errors(cache, tmp_path, capsys):
    assert main(["convert", "stavis", str(tmp_path / "none.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "some.pth").write_bytes(b"x")
    assert (
        main(["convert", "stavis", str(tmp_path / "some.pth"), "--out", str(tmp_path / "out"), "--set", "a"])
        == 2
    )
    assert "KEY=VALUE" in capsys.readouterr().err
    name = ["--name", "stavis-visual-fold1", "--member", "x"]
    assert main(["convert", "stavis", str(tmp_path / "some.pth"), *name]) == 2
    assert "--member goes with --out" in capsys.readouterr().err
