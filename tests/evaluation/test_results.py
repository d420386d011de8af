"""The results schema: written whole, read back, refused when it is something else."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from pathlib import Path

import pytest

from avsal.errors import DataError
from avsal.evaluation.provenance import file_fingerprint, fingerprint, git_state, processor_name
from avsal.evaluation.results import Checkpoint, Data, Failure, Results
from avsal.files import sha256_of


def make(**changes) -> Results:
    fields = {
        "model": "STAViS",
        "checkpoint": Checkpoint(name="stavis-fold1.ckpt", sha256="0" * 64),
        "data": Data(name="DIEM", split="test", fold=1, fingerprint="abc"),
        "protocol": {"average": "video"},
        "conventions": {"name": "default"},
        "metrics": {"cc": 0.5, "sauc": math.nan},
        "frames": {"frames_cc": 10, "frames_sauc": 0, "frames": 10, "frames_failed": 0, "videos": 1},
        "videos": {"clip": {"cc": 0.5, "sauc": math.nan, "frames": 10}},
        "failed": [Failure(item="b", error="no prediction")],
        "seconds": 1.25,
    }
    return Results.make("test", **{**fields, **changes})


def test_round_trip_with_missing_scores_as_null(tmp_path: Path) -> None:
    written = make()
    path = written.write(tmp_path / "results")
    assert path.parent == tmp_path / "results"
    assert path.name.startswith("STAViS-stavis-fold1-DIEM-test-fold1-")
    content = json.loads(path.read_text())
    assert content["metrics"] == {"cc": 0.5, "sauc": None}
    assert {"avsal", "created", "hardware", "command", "git", "seconds", "schema_version"} <= set(content)
    back = Results.read(path)
    assert math.isnan(back.metrics["sauc"])
    assert math.isnan(back.videos["clip"]["sauc"])
    assert back.model_dump_json() == written.model_dump_json()
    second = written.write(tmp_path / "results")
    assert second != path
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no results file"),
        ('{"schema_version": 99}', "newer avsal"),
        ('{"schema_version": 1, "kind": "test"}', "created"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Results.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        Results.read(tmp_path / "missing.json")


def test_unknown_fields_and_bad_hashes_are_refused(tmp_path: Path) -> None:
    path = make().write(tmp_path / "r.json")
    content = json.loads(path.read_text())
    content["checkpoint"]["sha256"] = "short"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="sha256"):
        Results.read(path)


def test_hash_fingerprint_and_git_state(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"weights")
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"weights").hexdigest()
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "f"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert not state.dirty
    assert len(state.commit) == 40
    (tmp_path / "f").write_text("changed")
    changed = git_state(tmp_path)
    assert changed is not None
    assert changed.dirty


def test_the_processor_is_named_where_the_platform_knows_its_architecture_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: A Processor @ 2.40GHz\nprocessor\t: 1\nmodel name\t: Another\n"
    )
    monkeypatch.setattr("platform.processor", lambda: "x86_64")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert processor_name(info) == "A Processor @ 2.40GHz"
    assert processor_name(tmp_path / "missing") == "x86_64"
    monkeypatch.setattr("platform.processor", lambda: "Named")
    assert processor_name(info) == "Named"


def test_weights_are_the_same_by_their_entries_and_in_old_files_by_either_hash() -> None:
    file, entries, other = ("a" * 64, "b" * 64, "c" * 64)
    new = Checkpoint(name="x.ckpt", sha256=file, weights=entries)
    assert new.same(Checkpoint(name="registry-name", weights=entries))
    assert new.same(Checkpoint(name="old-reproduce", sha256=entries))
    assert new.same(Checkpoint(name="old-test", sha256=file))
    assert not new.same(Checkpoint(name="x.ckpt", sha256=file, weights=other))
    assert not Checkpoint(name="x").same(Checkpoint(name="x"))


def test_a_fingerprint_of_files_changes_with_names_and_sizes_and_not_with_the_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "maps").mkdir(parents=True)
        for k in range(3):
            (tmp_path / place / "maps" / f"{k}.png").write_bytes(b"x" * k)
    first, second = (tmp_path / place / "maps" for place in "ab")
    assert file_fingerprint([first]) == file_fingerprint([second])
    (second / ".hidden").write_bytes(b"left by a file browser")
    assert file_fingerprint([first]) == file_fingerprint([second])
    (second / "2.png").write_bytes(b"longer")
    assert file_fingerprint([first]) != file_fingerprint([second])
    assert file_fingerprint([tmp_path / "nothing"]) is None
