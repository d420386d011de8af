"""A pack gives the batches of the folder, bit by bit, and is never half there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from avsal.data import pack as packing
from avsal.data.items import Counts, VideoItem
from avsal.data.sets.audiovisual import LayoutDataModule
from avsal.data.sets.salicon import SALICONDataModule
from avsal.data.sets.synthav import SynthAVDataModule
from avsal.data.sets.video_database import HEVC33DataModule
from avsal.data.synthetic import generate
from avsal.errors import ConfigError, DataError, OutputError
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
    assert folder.pack(tmp_path / "set.h5", spec) == []
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
    folder.pack(tmp_path / "set.h5", SPEC)
    packed = SynthAVDataModule(tmp_path / "set.h5", **options)
    a, b = folder.eval_dataset("val")[0], packed.eval_dataset("val")[0]
    same(a, b)
    assert set(a["observer"].unique().tolist()) >= {0, 1, 2}


def test_conditions_are_chosen_from_a_pack(tmp_path):
    made = generate(tmp_path / "set", clips=24, seconds=1.0, observers=2)
    options = {"spec": SPEC, "num_workers": 0}
    SynthAVDataModule(made, **options).pack(tmp_path / "set.h5", SPEC)
    for chosen in (["congruent"], ["silent", "offscreen"]):
        packed = SynthAVDataModule(
            tmp_path / "set.h5", conditions=chosen, test_conditions=["silent"], **options
        )
        folder = SynthAVDataModule(made, conditions=chosen, test_conditions=["silent"], **options)
        for split in ("train", "val", "test"):
            names = {item.name for item in packed.split_items(split)}
            assert names == {item.name for item in folder.split_items(split)}
    SynthAVDataModule(made, conditions=["silent"], **options).pack(tmp_path / "silent.h5", SPEC)
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
    folder.pack(tmp_path / "salicon.h5", spec)
    same(
        folder.eval_dataset("test")[0],
        SALICONDataModule(tmp_path / "salicon.h5", spec=spec).eval_dataset("test")[0],
    )


def test_a_pack_for_another_input_is_refused(root, tmp_path):
    data = LayoutDataModule(root, sets=["SynthAV_silent"], spec=SPEC)
    data.pack(tmp_path / "set.h5", SPEC)
    other = LayoutDataModule(tmp_path / "set.h5", sets=["SynthAV_silent"], spec=replace(SPEC, size=(48, 48)))
    with pytest.raises(DataError, match=r"size=\[40, 56\].*size=\[48, 48\]"):
        other.setup("fit")
    deaf = LayoutDataModule(
        tmp_path / "set.h5", sets=["SynthAV_silent"], spec=replace(SPEC, audio=None), num_workers=0
    )
    assert "audio" not in deaf.train_dataset()[0, 0]
    with pytest.raises(ConfigError, match="exists already"):
        data.pack(tmp_path / "set.h5", SPEC)
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
        LayoutDataModule(root, sets=["SynthAV_congruent"], spec=SPEC).pack(tmp_path / "set.h5", SPEC)
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


# -- damaged and forged packs ------------------------------------------------------------------------------


def packed(root: Path, path: Path) -> list[str]:
    SynthAVDataModule(root, num_workers=0).pack(path, SPEC)
    with h5py.File(path) as file:
        return json.loads(file.attrs["splits"])["train"]


def read_all(item: VideoItem) -> None:
    """Read everything that is stored of a video."""
    opened = item.open(None)
    opened.frames.resized(range(opened.count))
    opened.frames.read(range(opened.count))
    opened.audio.read(0, opened.audio.length)
    opened.annotation.union()
    for k in range(opened.count):
        opened.annotation.density(k)


def train(path: Path) -> SynthAVDataModule:
    """Go through two epochs of training and one of validation."""
    data = SynthAVDataModule(path, spec=SPEC, num_workers=0, batch_size=2)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.train_dataloader(), data.val_dataloader()):
        assert len(list(loader)) > 0
    return data


def flip(path: Path, name: str, part: str) -> None:
    """Change one bit of stored values, as a failing disk does."""
    with h5py.File(path) as file:
        data = file[f"{name}/{part}"]
        info = data.id.get_chunk_info(data.id.get_num_chunks() // 2)
        place = info.byte_offset + info.size // 2
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(bytes(content))


@pytest.mark.filterwarnings("ignore:SynthAVDataModule")
@pytest.mark.parametrize("part", ["frames", "times", "sound", "annotation/maps", "annotation/points"])
def test_a_flipped_bit_is_noticed_and_costs_one_video(root, tmp_path, part):
    path = tmp_path / "p.h5"
    bad = packed(root, path)[0]
    flip(path, bad, part)
    found = {}
    for item in packing.packed_items(path, "train", SPEC):
        try:
            read_all(item)
        except DataError as error:
            found[item.name] = str(error)
    assert list(found) == [bad]
    assert found[bad].startswith(f"{bad}: damaged in the pack {path}")
    train(path)


def spoil(path: Path, name: str, kind: str, other: Path) -> None:
    """Forge or damage what is stored of one video."""
    with h5py.File(path, "r+") as file:
        group = file[name]
        if kind == "no frames":
            del group["frames"]
        elif kind == "no rate":
            del group.attrs["fps"]
        elif kind == "rate in words":
            group.attrs["fps"] = "fast"
        elif kind == "frames of another form":
            del group["frames"]
            group["frames"] = np.zeros((5, 4), np.uint8)
        elif kind == "gone":
            del file[name]
        elif kind == "external link":
            del group["frames"]
            group["frames"] = h5py.ExternalLink(str(other), f"{name}/frames")
        elif kind == "external group":
            del file[name]
            file[name] = h5py.ExternalLink(str(other), name)
        elif kind == "soft link":
            del group["frames"]
            group["frames"] = h5py.SoftLink("/nowhere")
        elif kind == "external storage":
            secret = path.with_name("secret")
            secret.write_bytes(b"s" * 8 * len(group["times"]))
            times = len(group["times"])
            del group["times"]
            group.create_dataset("times", (times,), np.float64, external=[(str(secret), 0, 8 * times)])
        elif kind == "virtual":
            frames = group["frames"]
            layout = h5py.VirtualLayout(frames.shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(other), f"{name}/frames", frames.shape)
            del group["frames"]
            group.create_virtual_dataset("frames", layout)
        else:
            assert kind == "announces terabytes"
            del group["times"]
            group.create_dataset("times", (2**40,), np.float64, chunks=(2**16,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SynthAVDataModule")
@pytest.mark.parametrize(
    "kind",
    ["no frames", "no rate", "rate in words", "frames of another form", "gone", "external link", "external group",
     "soft link", "external storage", "virtual", "announces terabytes"],
)  # fmt: skip
def test_a_damaged_or_forged_video_is_left_out_and_nothing_outside_the_pack_is_read(root, tmp_path, kind):
    path, other = tmp_path / "p.h5", tmp_path / "other.h5"
    bad = packed(root, path)[0]
    other.write_bytes(path.read_bytes())
    spoil(path, bad, kind, other)
    found = {}
    for item in packing.packed_items(path, "train", SPEC):
        try:
            read_all(item.counted())
        except DataError as error:
            found[item.name] = str(error)
    assert list(found) == [bad]
    assert f"{bad}: damaged in the pack" in found[bad]
    data = train(path)
    assert bad in data.left_out
    assert bad not in [item.name for item in data.split_items("train")] or kind != "gone"


@pytest.mark.parametrize("attribute", ["spec", "splits"])
@pytest.mark.parametrize("value", ["{", "[1, 2]", 5])
def test_a_pack_with_a_damaged_table_of_contents_is_refused(root, tmp_path, attribute, value):
    packed(root, tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5", "r+") as file:
        file.attrs[attribute] = value
    with pytest.raises(DataError, match="not a complete pack"):
        packing.packed_items(tmp_path / "p.h5", "train", SPEC)


def test_a_full_disk_leaves_no_pack_and_is_said(root, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError("[Errno 28] Can't write data (errno = 28, error message = 'No space left on device')")

    monkeypatch.setattr(packing, "_write_sound", full)
    with pytest.raises(OutputError, match=r"p\.h5: cannot be written \(No space left on device\)"):
        SynthAVDataModule(root, num_workers=0).pack(tmp_path / "p.h5", SPEC)
    assert list(tmp_path.iterdir()) == []
