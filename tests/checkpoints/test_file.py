"""Our checkpoint files: they rebuild their module, and say what is wrong when they cannot."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import tarfile
import traceback
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors import safe_open

import avsal
from avsal.checkpoints import registry
from avsal.checkpoints.file import read_pickle, write_checkpoint
from avsal.checkpoints.registry import Checkpoint
from avsal.errors import WeightsError
from avsal.models.stavis import STAViSModule
from avsal.zoo import from_pretrained, load_state, save_pretrained
from tests.zoo.conftest import entry, same
from tests.zoo.hub_server import sha256


def test_a_folder_and_a_single_file_rebuild_the_module(module, tmp_path):
    folder = save_pretrained(module, tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    for source in (folder, str(folder), folder / "model.safetensors", alone):
        loaded = from_pretrained(source)
        assert same(loaded, module)
        assert dict(loaded.hparams) == dict(module.hparams)
    assert load_state(alone).keys() == module.state_dict().keys()


def test_equal_modules_give_equal_files(module, tmp_path):
    saved = [save_pretrained(module, tmp_path / str(k)) / "model.safetensors" for k in range(8)]
    assert len({path.read_bytes() for path in saved}) == 1
    with safe_open(saved[0], framework="pt") as file:
        assert set(file.metadata()) == {"avsal", "format"}


def test_a_lightning_checkpoint_rebuilds_the_module(module, tmp_path):
    trainer = L.Trainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(from_pretrained(tmp_path / "last.ckpt"), module)
    assert load_state(tmp_path / "last.ckpt").keys() == module.state_dict().keys()


def test_where_a_training_started_is_not_part_of_the_checkpoint(tmp_path):
    started = STAViSModule(
        audiovisual=False, size=(32, 32), width=2, dsam_maps=2, backbone="resnet3d50-kinetics"
    )
    folder = save_pretrained(started, tmp_path / "saved")
    assert from_pretrained(folder).hparams["backbone"] is None


def test_half_precision_on_disk_is_float32_in_memory(module, tmp_path):
    with torch.no_grad():
        module.network.trunk.bn1.running_var[0] = 1e6  # would be infinite in float16
    folder = save_pretrained(module, tmp_path / "half", dtype=torch.float16)
    full = save_pretrained(module, tmp_path / "full")
    assert (folder / "model.safetensors").stat().st_size < 0.7 * (full / "model.safetensors").stat().st_size
    loaded = from_pretrained(folder)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert loaded.network.trunk.bn1.running_var[0] == 1e6
    assert next(from_pretrained(folder, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_entries_that_do_not_fit_are_named(module, tmp_path, caplog):
    folder = save_pretrained(module, tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    state = load_state(folder)
    value = state.pop("network.fuse.bias")
    state["network.stranger"] = value
    from avsal.checkpoints.file import write_checkpoint

    broken = write_checkpoint(tmp_path / "broken", state, config)
    with pytest.raises(
        WeightsError, match=r"missing \(1\): network\.fuse\.bias; unexpected \(1\): network\.stranger"
    ):
        from_pretrained(broken)
    loaded = from_pretrained(broken, strict=False)
    assert torch.equal(loaded.network.fuse.weight, module.network.fuse.weight)
    assert "network.fuse.bias" in caplog.text
    assert "network.stranger" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "checkpoint format 99"),
        ({"model": "alexnet"}, "no model 'alexnet'"),
        ({"arguments": {"colour": True}}, "no argument colour"),
        ({"model": None}, "does not say which model"),
    ],
)
def test_a_configuration_of_another_avsal_is_told(module, tmp_path, change, words):
    from avsal.checkpoints.file import write_checkpoint

    config = {**json.loads((save_pretrained(module, tmp_path / "a") / "config.json").read_text()), **change}
    broken = write_checkpoint(tmp_path / "b", module.state_dict(), config)
    with pytest.raises(WeightsError, match=words):
        from_pretrained(broken)


def test_damaged_and_foreign_files_are_told(module, tmp_path):
    folder = save_pretrained(module, tmp_path / "saved")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        from_pretrained(cut)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="does not say which model"):
        from_pretrained(tmp_path / "foreign.safetensors")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "authors.pth")
    with pytest.raises(WeightsError, match="avsal convert FORMAT FILE"):
        from_pretrained(tmp_path / "authors.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="it is empty"):
        from_pretrained(tmp_path / "empty")
    for missing in ("nothing.ckpt", "./nothing", "some/where/else.safetensors"):
        with pytest.raises(WeightsError, match="no such file"):
            from_pretrained(missing)


def test_a_packaged_file_is_loaded_without_cache_or_network(module, tmp_path, monkeypatch, cache):
    folder = save_pretrained(module, tmp_path / "weights")
    content = (folder / "model.safetensors").read_bytes()
    source = {
        "kind": "packaged",
        "file": "weights/model.safetensors",
        "sha256": sha256(content),
        "size": len(content),
    }
    shipped = Checkpoint.model_validate({"name": "tiny", **entry([source], status="shipped")})
    monkeypatch.setattr(
        registry, "_registered", {"tiny": (shipped, next(iter(registry._shipped().citations.values())))}
    )
    monkeypatch.setattr("avsal.checkpoints.fetch.files", lambda package: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same(avsal.from_pretrained("tiny"), module)
    (folder / "model.safetensors").write_bytes(content[:-1] + b"?")
    with pytest.raises(WeightsError, match="reinstall avsal"):
        avsal.from_pretrained("tiny")


def test_a_save_that_fails_leaves_the_earlier_one(module, tmp_path, monkeypatch):
    folder = save_pretrained(module, tmp_path / "saved")
    before = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(module, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


class _Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize("kind", ["pickle", "whole module", "script", "old tar"])
def test_a_refused_file_never_brings_the_advice_to_switch_the_safety_off(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "evil.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": print}))
    elif kind == "whole module":
        torch.save({"avsal": 1, "state_dict": torch.nn.Linear(1, 1)}, path)
    elif kind == "script":
        torch.jit.trace(_Program(), torch.ones(1)).save(str(path))
    else:
        with tarfile.open(path, "w") as bundle:
            for name in ("pickle", "storages", "tensors", "sys_info"):
                bundle.addfile(tarfile.TarInfo(name), io.BytesIO())
    from avsal.training import check_checkpoint

    doors = (
        read_pickle,
        from_pretrained,
        lambda file: check_checkpoint(file, STAViSModule(audiovisual=False)),
    )
    for door in doors:
        with pytest.raises(WeightsError) as caught:
            door(path)
        said = "".join(traceback.format_exception(caught.value))
        assert "could run code" in said
        assert not re.search(r"weights_only.{0,40}False|add_safe_globals", said)


def test_a_damaged_pytorch_file_is_an_error_of_its_own_whatever_bit_is_flipped(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.arange(4.0), "b": torch.ones(2, 2).half()}}, whole, pickle_protocol=2
    )
    old = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(4.0)}}, old, _use_new_zipfile_serialization=False)
    for content in (whole.getvalue(), old.getvalue()):
        for place in range(0, len(content), 5):
            (tmp_path / "x.pt").write_bytes(
                content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]
            )
            with contextlib.suppress(WeightsError):
                read_pickle(tmp_path / "x.pt")


# -- weights that are not numbers, and networks without bound ----------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_nan_and_infinite_weights_are_refused_by_name(module, tmp_path, value, strict):
    with torch.no_grad():
        module.network.trunk.conv1.weight[0, 0, 0, 0, 0] = value
    folder = save_pretrained(module, tmp_path / "bad")
    with pytest.raises(
        WeightsError, match=r"NaN or infinite values in 1 entries: network\.trunk\.conv1\.weight"
    ):
        from_pretrained(folder, strict=strict)
    other = STAViSModule(**dict(module.hparams))
    with pytest.raises(WeightsError, match="NaN or infinite"):
        other.initialise_from(str(folder))


def test_weights_that_overflow_the_type_asked_for_are_refused(module, tmp_path):
    with torch.no_grad():
        module.network.trunk.conv1.weight[0, 0, 0, 0, 0] = 1e6
    folder = save_pretrained(module, tmp_path / "large")
    assert same(from_pretrained(folder), module)
    with pytest.raises(WeightsError, match="as float16: NaN or infinite"):
        from_pretrained(folder, dtype=torch.float16)


def test_batch_norms_keep_their_precision_beside_halves(module, tmp_path):
    loaded = from_pretrained(save_pretrained(module, tmp_path / "m"), dtype=torch.float16)
    assert loaded.network.trunk.conv1.weight.dtype == torch.float16
    assert torch.equal(loaded.network.trunk.bn1.running_var, module.network.trunk.bn1.running_var)


@pytest.mark.parametrize(
    "changes",
    [{"width": 100_000}, {"width": 2**40}, {"size": [100_000, 100_000]}, {"blocks": [10**7, 1, 1]},
     {"dsam_maps": 10**9}, {"frames": 10**8}],
)  # fmt: skip
def test_a_checkpoint_that_asks_for_a_network_without_bound_is_refused_before_it_is_built(
    module, tmp_path, monkeypatch, changes
):
    folder = save_pretrained(module, tmp_path / "big")
    text = json.loads((folder / "config.json").read_text())
    text["arguments"] |= {"blocks": [1, 1, 1]} | changes
    state = load_state(folder)
    write_checkpoint(folder, state, text)
    built = []
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda value, **_: built.append(value.is_meta))
    with pytest.raises(WeightsError, match=r"AVSAL_MAX_|20,000 parts|can be built|fit this avsal"):
        from_pretrained(folder)
    assert all(built)


def test_a_limit_can_be_raised(module, tmp_path, monkeypatch):
    folder = save_pretrained(module, tmp_path / "m")
    monkeypatch.setenv("AVSAL_MAX_PARAMETERS", "1000")
    with pytest.raises(WeightsError, match="set the environment variable AVSAL_MAX_PARAMETERS"):
        from_pretrained(folder)
    monkeypatch.setenv("AVSAL_MAX_PARAMETERS", "100000000")
    monkeypatch.setenv("AVSAL_MAX_CLIP_VALUES", "1000")
    with pytest.raises(WeightsError, match="set the environment variable AVSAL_MAX_CLIP_VALUES"):
        from_pretrained(folder)
    monkeypatch.delenv("AVSAL_MAX_CLIP_VALUES")
    assert same(from_pretrained(folder), module)


@pytest.mark.parametrize(
    "arguments", [{"width": "wide"}, {"width": -3}, {"size": 5}, {"blocks": None}, {"size": [0, 0]}]
)
def test_arguments_that_build_no_network_are_an_error_of_the_file(module, tmp_path, arguments):
    folder = save_pretrained(module, tmp_path / "odd")
    text = json.loads((folder / "config.json").read_text())
    text["arguments"] |= arguments
    write_checkpoint(folder, load_state(folder), text)
    with pytest.raises(WeightsError):
        from_pretrained(folder)
