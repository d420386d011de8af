"""A pack gives the batches of the folder, bit by bit, and is never half there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avsal.data import pack as packing
from avsal.data.counts import Counts
from avsal.data.pack import pack
from avsal.data.sets.audiovisual import LayoutDataModule, SynthAVDataModule
from avsal.data.sets.salicon import SALICONDataModule
from avsal.data.sets.video_database import HEVC33DataModule
from avsal.data.synthetic import generate
from avsal.errors import ConfigError, DataError
from avsal.types import AudioSpec, ClipSpec

SPEC = ClipSpec(
    frames=8,
    size=(40, 56),
    target=4,
    via=(60, 80),
    mean=(1.0, 2.0, 3.0),
    audio=AudioSpec(None, 0.5, 0.5, window="hann"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("s") / "set", clips=12, seconds=1.2, observers=4, per_frame=True)


def same(one, two) -> None:
    assert set(one) == set(two)
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == two[key].dtype, key
            assert torch.equal(value, two[key]), key
        else:
            assert value == two[key], key


@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, audio=AudioSpec(16000, seconds=0.5)), replace(SPEC, audio=None)]
)
def test_batches_of_a_pack_are_those_of_the_folder(root, tmp_path, spec):
    options = {"spec": spec, "num_workers": 0, "batch_size": 2, "eval_batch_size": 7}
    sets = ["SynthAV_congruent", "SynthAV_silent"]
    folder = LayoutDataModule(root, sets=sets, **options)
    assert pack(folder, tmp_path / "set.h5", spec) == []
    packed = LayoutDataModule(tmp_path / "set.h5", sets=sets, **options)
    packed.setup("fit")
    for a, b in zip(folder.train_dataloader(), packed.train_dataloader(), strict=True):
        same(a, b)
    for split in ("val", "test"):
        for a, b in zip(folder._eval_loader(split), packed._eval_loader(split), strict=True):
            same(a, b)


def test_points_are_packed_with_their_observers(tmp_path):
    made = generate(tmp_path / "points", clips=12, seconds=1.0, observers=3)
    options = {"spec": SPEC, "num_workers": 0, "eval_batch_size": 25, "conditions": ["congruent"]}
    folder = SynthAVDataModule(made, **options)
    pack(folder, tmp_path / "set.h5", SPEC)
    packed = SynthAVDataModule(tmp_path / "set.h5", **options)
    a, b = folder.eval_dataset("val")[0], packed.eval_dataset("val")[0]
    same(a, b)
    assert set(a["observer"].unique().tolist()) >= {0, 1, 2}


def test_conditions_are_chosen_from_a_pack(tmp_path):
    made = generate(tmp_path / "set", clips=24, seconds=1.0, observers=2)
    options = {"spec": SPEC, "num_workers": 0}
    pack(SynthAVDataModule(made, **options), tmp_path / "set.h5", SPEC)
    for chosen in (["congruent"], ["silent", "offscreen"]):
        packed = SynthAVDataModule(
            tmp_path / "set.h5", conditions=chosen, test_conditions=["silent"], **options
        )
        folder = SynthAVDataModule(made, conditions=chosen, test_conditions=["silent"], **options)
        for split in ("train", "val", "test"):
            names = {item.name for item in packed.split_items(split)}
            assert names == {item.name for item in folder.split_items(split)}
    pack(SynthAVDataModule(made, conditions=["silent"], **options), tmp_path / "silent.h5", SPEC)
    lacking = SynthAVDataModule(tmp_path / "silent.h5", conditions=["congruent"], **options)
    with pytest.raises(DataError, match=r"holds SynthAV_silent in its train split, not .* congruent"):
        lacking.split_items("train")


def test_images_keep_their_negatives(tmp_path):
    from tests.data.test_readers import (
        test_salicon_keeps_observers_and_takes_negatives_from_other_images as make,
    )

    make(tmp_path)
    spec = replace(SPEC, audio=None)
    folder = SALICONDataModule(tmp_path, spec=spec, num_workers=0)
    pack(folder, tmp_path / "salicon.h5", spec)
    same(
        folder.eval_dataset("test")[0],
        SALICONDataModule(tmp_path / "salicon.h5", spec=spec).eval_dataset("test")[0],
    )


def test_a_pack_for_another_input_is_refused(root, tmp_path):
    data = LayoutDataModule(root, sets=["SynthAV_silent"], spec=SPEC)
    pack(data, tmp_path / "set.h5", SPEC)
    other = LayoutDataModule(tmp_path / "set.h5", sets=["SynthAV_silent"], spec=replace(SPEC, size=(48, 48)))
    with pytest.raises(DataError, match=r"size=\[40, 56\].*size=\[48, 48\]"):
        other.setup("fit")
    deaf = LayoutDataModule(
        tmp_path / "set.h5", sets=["SynthAV_silent"], spec=replace(SPEC, audio=None), num_workers=0
    )
    assert "audio" not in deaf.train_dataset()[0, 0]
    with pytest.raises(ConfigError, match="exists already"):
        pack(data, tmp_path / "set.h5", SPEC)
    (tmp_path / "no.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a pack"):
        LayoutDataModule(tmp_path / "no.h5", sets=["x"], spec=SPEC).setup("fit")


def test_an_interrupted_pack_leaves_nothing(root, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    original = packing._write_video
    monkeypatch.setattr(packing, "_write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(LayoutDataModule(root, sets=["SynthAV_congruent"], spec=SPEC), tmp_path / "set.h5", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_frames_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    from tests.data.test_readers import _database
    from tests.media import write_clip

    _database(tmp_path, "v5")
    opened: list[str] = []
    monkeypatch.setattr("avsal.data.items.VideoItem.counted", _spy(opened))

    def index() -> list[int | None]:
        data = HEVC33DataModule(tmp_path)
        counts = Counts(data.root)
        found = [counts.counted(item).frames for item in data.all_items()]
        counts.save()
        return found

    assert index() == [25, 25]
    assert index() == [25, 25]
    assert len(opened) == 2
    write_clip(tmp_path / "one.mp4", frames=30, fps=25, height=32, width=48)
    assert index() == [30, 25]
    assert opened == ["HEVC33/one", "HEVC33/two", "HEVC33/one"]


def _spy(opened):
    from avsal.data.items import VideoItem

    original = VideoItem.counted

    def counted(self):
        opened.append(self.name)
        return original(self)

    return counted
