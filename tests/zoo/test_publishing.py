"""Publishing through the real client: the card, what is refused, and that the result loads again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from avsal.checkpoints.registry import Scores
from avsal.errors import ConfigError, WeightsError
from avsal.evaluation.provenance import weights_hash
from avsal.evaluation.results import Results
from avsal.models.stavis import STAViSModule
from avsal.zoo import from_pretrained, publish, save_pretrained
from tests.zoo.conftest import TOKEN, same
from tests.zoo.hub_server import sha256

SCORES = Scores(data="DIEM", source="avsal test", metrics={"CC": 0.41, "NSS": 1.5})
OWN = {"licence": "cc-by-4.0", "notice": "Trained on made-up clips, for tests.", "data": ["SynthAV"]}


def results(folder: Path, module: STAViSModule | None = None, **fields) -> Path:
    if module is not None:
        fields["checkpoint"] = {"weights": weights_hash(module)}
    made = Results.make(
        "test",
        **{
            "data": {"name": "AVAD", "split": "test", "fold": 2},
            "protocol": {},
            "conventions": {},
            "metrics": {"cc": 0.612345, "auc_judd": 0.9, "nss": float("nan")},
            "frames": {},
            "videos": {},
            "seconds": 1.0,
            **fields,
        },
    )
    return made.write(folder / "result.json")


def test_a_published_module_loads_again_and_publishing_it_again_changes_nothing(server, cache, module):
    address = publish(module, "user/tiny", results=[SCORES], **OWN)
    assert address == f"{server.url}/user/tiny"
    assert same(from_pretrained("user/tiny"), module)
    assert same(STAViSModule.from_pretrained("user/tiny"), module)
    repo = server.repos["user/tiny"]
    commits = len(repo.commits)
    assert set(repo.commits[repo.branches["main"]]) == {"model.safetensors", "config.json", "README.md"}
    publish(module, "user/tiny", results=[SCORES], **OWN)
    assert len(repo.commits) == commits
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    publish(module, "user/tiny", results=[SCORES], **OWN)
    assert len(repo.commits) == commits + 1
    assert same(from_pretrained("user/tiny"), module)


def test_the_mixin_conventions_of_the_hub_hold(server, cache, module, tmp_path):
    module.push_to_hub("user/pushed", results=[SCORES], private=True, commit_message="words", **OWN)
    assert same(STAViSModule.from_pretrained("user/pushed", revision="main", local_files_only=False), module)
    module.save_pretrained(tmp_path / "here", push_to_hub=True, repo_id="user/saved", results=[SCORES], **OWN)
    assert same(STAViSModule.from_pretrained(tmp_path / "here"), module)
    assert same(from_pretrained("user/saved"), module)
    with pytest.raises(ConfigError, match="takes no licence unless push_to_hub"):
        module.save_pretrained(tmp_path / "there", licence="mit")


def test_a_branch_and_half_precision(server, cache, module):
    publish(module, "user/tiny", results=[SCORES], **OWN)
    publish(module, "user/tiny", results=[SCORES], dtype=torch.float16, branch="half", **OWN)
    half = from_pretrained("user/tiny", revision="half")
    assert not same(half, module)
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=2e-3, atol=1e-4)


def test_the_card_says_what_is_known(server, cache, module, tmp_path):
    file = results(tmp_path, module)
    out = Path(publish(module, "user/tiny", results=[file], out=tmp_path / "out", **OWN))
    assert server.requests == []
    text = (out / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["library_name"] == "avsal"
    (index,) = metadata["model-index"]
    found = {
        (result["dataset"]["name"], metric["name"]): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {("AVAD", "CC"): 0.6123, ("AVAD", "AUC-J"): 0.9}
    for words in (
        'avsal.from_pretrained("user/tiny")',
        "trained on | SynthAV",
        "16 frames of 32x32",
        "## Limits",
        "test split, fold 2",
        "Trained on made-up clips",
    ):
        assert words in text
    assert json.loads((out / "config.json").read_text())["licence"]["weights"] == "cc-by-4.0"


def test_a_registry_entry_brings_its_facts(server, cache, module, tmp_path, add_entry):
    folder = save_pretrained(module, tmp_path / "saved")
    content = (folder / "model.safetensors").read_bytes()
    commit = server.repo("user/model", {"model.safetensors": content})
    add_entry("tiny", [{"kind": "hub", "repo": "user/model", "revision": commit, "sha256": sha256(content)}])
    out = Path(publish("tiny", "user/copy", results=[SCORES], out=tmp_path / "out"))
    text = (out / "README.md").read_text()
    assert text.index("## Measured") < text.index("## Published in the paper")
    assert "A. Author (2024). A paper. A conference." in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == "tiny"


def test_gaps_are_refused_with_what_to_give(server, cache, module):
    with pytest.raises(WeightsError) as raised:
        publish(module, "user/tiny")
    for word in ("--licence", "--notice", "--data", "--results"):
        assert word in str(raised.value)
    with pytest.raises(WeightsError, match=r"metrics: results="):
        publish(module, "user/tiny", **OWN)
    assert server.requests == []


def test_a_licence_that_is_not_stated_needs_the_rights(server, cache, module):
    options = {**OWN, "licence": "not-stated", "results": [SCORES]}
    with pytest.raises(WeightsError, match=r"hold the rights.*--i-hold-the-rights"):
        publish(module, "user/tiny", **options)
    assert server.requests == []
    publish(module, "user/tiny", hold_rights=True, **options)
    repo = server.repos["user/tiny"]
    card = repo.commits[repo.branches["main"]]["README.md"].decode()
    assert "states that they hold the rights" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"


def test_scores_of_another_checkpoint_are_refused(server, cache, module, tmp_path):
    folder = save_pretrained(module, tmp_path / "saved")
    file = folder / "model.safetensors"
    right = results(tmp_path / "a", checkpoint={"name": "x", "sha256": sha256(file.read_bytes())})
    wrong = results(tmp_path / "b", checkpoint={"name": "x", "sha256": "0" * 64})
    publish(file, "user/tiny", results=[right], out=tmp_path / "out", **OWN)
    with pytest.raises(WeightsError, match="another checkpoint"):
        publish(file, "user/tiny", results=[wrong], out=tmp_path / "out", **OWN)


def test_scores_are_those_of_the_weights_however_these_are_given(server, cache, module, tmp_path):
    folder = save_pretrained(module, tmp_path / "saved")
    right = results(tmp_path / "a", module)
    nameless = results(tmp_path / "b")
    torch.manual_seed(1)
    wrong = results(tmp_path / "c", STAViSModule(**module.hparams))
    for source in (module, folder, folder / "model.safetensors"):
        publish(source, "user/tiny", results=[right], out=tmp_path / "out", **OWN)
        with pytest.raises(WeightsError, match="another checkpoint"):
            publish(source, "user/tiny", results=[right, wrong], out=tmp_path / "out", **OWN)
        with pytest.raises(WeightsError, match="does not say which weights"):
            publish(source, "user/tiny", results=[nameless], out=tmp_path / "out", **OWN)


def test_a_refusal_of_the_hub_is_told_without_the_token(server, cache, module):
    server.misbehave("POST", "commit", ("status", 403))
    with pytest.raises(WeightsError, match="Publishing failed") as raised:
        publish(module, "user/tiny", results=[SCORES], token=TOKEN, **OWN)
    assert TOKEN not in str(raised.value)
