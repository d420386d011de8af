"""Every DataModule's test loop on frames of ordinary size, with several threads, as on a user's machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import avsal.data
from avsal.data.sets.egocentric import GazeDataModule
from avsal.models.base import SaliencyModule, SaliencyNetwork
from avsal.models.csts import CSTSModule
from avsal.types import ClipSpec
from tests.media import picture, tone, write_clip

SIZE = HEIGHT, WIDTH = 480, 640
FRAMES = 4


class Tiny(SaliencyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.spec = ClipSpec(frames=2, size=(24, 32), target=1)
        self.conv = torch.nn.Conv2d(3, 1, 5, padding=2)

    def core(self, video, audio_input=None):
        return self.output(self.conv(video[:, :, 1]))


class TinyModule(SaliencyModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = Tiny()


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def points(k: int) -> np.ndarray:
    """Fixations (row, column) of frame k of every miniature, in one form or another."""
    return np.array([[100, 200], [301, 402], [250, 33]]) + 5 * (k % FRAMES)


def points_map(k: int) -> np.ndarray:
    grey = np.zeros(SIZE, np.uint8)
    grey[tuple(points(k).T)] = 255
    return grey


def density() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (255 * np.exp(-((y - 250) ** 2 + (x - 300) ** 2) / 5000)).astype(np.uint8)


def clip(path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, **{"frames": FRAMES, "fps": 25, "height": HEIGHT, "width": WIDTH} | options)


# -- miniatures --------------------------------------------------------------------------------------------


def layout(root: Path) -> None:
    """The six audio-visual sets, fold 1."""
    for name in avsal.data.AVSaliencyDataModule.sets:
        for split in ("train", "test"):
            clip(root / "video" / name / f"{split}.mp4", sound=tone(FRAMES / 25, 8000), rate=8000)
            annotation = root / "annotations" / name / split
            for k in range(1, FRAMES + 1):
                save(annotation / "maps" / f"eyeMap_{k:05d}.jpg", density())
                savemat(annotation / f"fixMap_{k:05d}.mat", {"eyeMap": points_map(k) // 255})
            for fold in ("", "_1"):
                path = root / "fold_lists" / f"{name}_list_{split}{fold}_fps.txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{split} {FRAMES} 25\n")


def generated(root: Path) -> None:
    """SynthAV, whose frames are small: its batches are made large instead."""
    avsal.data.generate(root, clips=12, seconds=1.0, observers=4)


def folder(root: Path) -> None:
    for name in "abcd":
        clip(root / f"{name}.mp4")
        rows = [f"{k / 25 + 0.01},{c / WIDTH},{r / HEIGHT}" for k in range(FRAMES) for r, c in points(k)]
        (root / f"{name}.csv").write_text("\n".join(["time_s,x_norm,y_norm", *rows]))


def database(root: Path) -> None:
    names = np.array(["one", "two", "three"], dtype=object)
    rows = [[1, v, 40 * k + 1, 38, c, r] for v in (1, 2, 3) for k in range(FRAMES) for r, c in points(k)]
    info = {"name_list": names, "size": np.array([[WIDTH, HEIGHT]] * 3), "frames": np.full(3, float(FRAMES)),
            "framerate_fps": np.full(3, 25.0), "class": names}  # fmt: skip
    content = {"videos_info": info, "video_names_list": names, "fixdata": np.array(rows, dtype=float)}
    savemat(root / "video_database.mat", {"video_database": content})
    for name in names:
        clip(root / f"{name}.mp4")


def dhf1k(root: Path) -> None:
    for number in (1, 601):
        clip(root / "video" / f"{number:03d}.AVI", codec="mpeg4")
        for k in range(1, FRAMES + 1):
            save(root / "annotation" / f"{number:04d}" / "maps" / f"{k:04d}.png", density())
            save(root / "annotation" / f"{number:04d}" / "fixation" / f"{k:04d}.png", points_map(k))


def clip_folders(root: Path) -> None:
    for split in ("training", "testing"):
        for k in range(FRAMES):
            for kind, image in (
                ("images", picture(k, *SIZE)),
                ("maps", density()),
                ("fixation", points_map(k)),
            ):
                save(root / split / "clip" / kind / f"clip_{k:03d}.png", image)


def salicon(root: Path) -> None:
    for part in ("train", "val"):
        for k in range(4):
            stem = f"COCO_{part}2014_{k:012d}"
            save(root / "images" / f"{stem}.jpg", picture(k, *SIZE))
            save(root / "maps" / part / f"{stem}.png", density())
            kind = [("location", object), ("timestamp", object), ("fixations", object)]
            gaze = np.empty(2, dtype=kind)
            gaze[:] = [(np.zeros((0, 2)), np.zeros(0), points(k)[:, ::-1] + 1.0)] * 2
            (root / "fixations" / part).mkdir(parents=True, exist_ok=True)
            content = {"image": stem, "resolution": list(SIZE), "gaze": gaze}
            savemat(root / "fixations" / part / f"{stem}.mat", content)


def mit1003(root: Path) -> None:
    for k in range(30):
        save(root / "ALLSTIMULI" / f"i{k}.jpeg", picture(k, *SIZE))
        save(root / "ALLFIXATIONMAPS" / f"i{k}_fixPts.jpg", points_map(k))
        save(root / "ALLFIXATIONMAPS" / f"i{k}_fixMap.jpg", density())


def photos(root: Path) -> None:
    for k in range(30):
        save(root / "own" / "images" / f"i{k}.jpg", picture(k, *SIZE))
    rows = [f"i{k},0,{n},{c / WIDTH},{r / HEIGHT}" for k in range(30) for n, (r, c) in enumerate(points(k))]
    (root / "own" / "fixations.csv").write_text("\n".join(["image,observer,order,x,y", *rows]))


def crowd(root: Path) -> None:
    """AViMoS, NTIRE 2026 and CrowdSAL in one folder."""
    for name, part in (("a", "Train"), ("b", "Train"), ("c", "Test")):
        for video in (root / "Videos", root / part / "Videos"):
            clip(video / f"{name}.mp4")
        clip(root / part / "Saliency" / f"{name}.mp4", pix_fmt="gray")
        (root / part / "Fixations").mkdir(exist_ok=True)
        (root / part / "Fixations" / f"{name}.json").write_text(
            json.dumps([points(k).tolist() for k in range(FRAMES)])
        )
    split = {"train": ["a.mp4", "b.mp4"], "public_test": ["c.mp4"]}
    (root / "TrainTestSplit.json").write_text(json.dumps(split))


def wearers(root: Path) -> None:
    """One clip of Ego4D and one of Aria after the authors' scripts."""
    for parts, name, label in (("clips.gaze", "ego4d", "a_frame_label"), ("clips", "aria", "a")):
        fps, start = (30, 5) if name == "ego4d" else (20, 2)
        stem = f"a_t{start}_t{start + (5 if name == 'ego4d' else 4)}"
        clip(root / parts / "a" / f"{stem}.mp4", frames=5 * fps, fps=fps)
        clip(root / "clips.audio_24kHz" / "a" / f"{stem}.wav", frames=0, sound=tone(5, 24000), rate=24000,
             audio_codec="pcm_s16le")  # fmt: skip
        stamp = "timestamps_ns," if name == "aria" else ""
        lines = [f"{k},{f'{k * 50_000_000},' if stamp else ''}0.4,0.6,0" for k in range((start + 5) * fps)]
        (root / "gaze_frame_label").mkdir(exist_ok=True)
        (root / "gaze_frame_label" / f"{label}.csv").write_text(
            "\n".join([f"frame,{stamp}x,y,gaze_type", *lines])
        )
        (root / f"test_{name}_gaze.csv").write_text(f"a/{stem}.mp4\n")


MINIATURES: dict[str, Callable[[Path], None]] = {
    "LayoutDataModule": layout, "AVSaliencyDataModule": layout, "DIEMDataModule": layout,
    "Coutrot1DataModule": layout, "Coutrot2DataModule": layout, "AVADDataModule": layout, "ETMDDataModule": layout,
    "SumMeDataModule": layout, "SynthAVDataModule": generated, "FolderDataModule": folder,
    "HEVC33DataModule": database, "FindWhoDataModule": database, "MVVADataModule": database,
    "LEDOVDataModule": database, "DHF1KDataModule": dhf1k, "Hollywood2DataModule": clip_folders,
    "UCFSportsDataModule": clip_folders, "SALICONDataModule": salicon, "MIT1003DataModule": mit1003,
    "PhotosDataModule": photos, "AViMoSDataModule": crowd, "NTIRE2026DataModule": crowd, "CrowdSALDataModule": crowd,
    "Ego4DGazeDataModule": wearers, "AriaGazeDataModule": wearers,
}  # fmt: skip
OPTIONS = {
    "LayoutDataModule": {"sets": ["AVAD"]}, "PhotosDataModule": {"sets": ["own"]},
    "SynthAVDataModule": {"eval_batch_size": 25},
    **{name: {"folds": 3} for name, make in MINIATURES.items() if make is database},
}  # fmt: skip


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where a module's miniature is; each is made once."""
    made: dict[Callable[[Path], None], Path] = {}

    def root(name: str) -> Path:
        make = MINIATURES[name]
        if make not in made:
            made[make] = tmp_path_factory.mktemp(make.__name__)
            if make is generated:
                made[make] = made[make] / "synthav"
            make(made[make])
        return made[make]

    return root


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_module_has_a_miniature() -> None:
    modules = {name for name in avsal.data.__all__ if name.endswith("DataModule")}
    assert modules - {"SaliencyDataModule"} == set(MINIATURES)


@pytest.mark.slow
@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("name", MINIATURES)
def test_a_test_loop_scores_ordinary_frames(name: str, roots: Callable[[str], Path], tmp_path: Path) -> None:
    options = {"num_workers": 0, "eval_batch_size": 4, **OPTIONS.get(name, {})}
    data = getattr(avsal.data, name)(roots(name), **options)
    module: SaliencyModule = TinyModule()
    if isinstance(data, GazeDataModule):
        timing = "aria" if "Aria" in name else "ego4d"
        module = CSTSModule(timing=timing, size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), contrast="none")
    data.use_spec(module.spec)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                        enable_checkpointing=False, default_root_dir=tmp_path)  # fmt: skip
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert scores
    assert np.isfinite(list(scores.values())).all(), scores
    used = module.metrics("test").frames_used()
    assert used["frames"] > 0
    assert used.get("frames_failed", 0) == 0
