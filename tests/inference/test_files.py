"""`avsal predict` from files to folders of results, with a small untrained STAViS saved as users save theirs."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from avsal.checkpoints.registry import default_checkpoint
from avsal.cli import main as avsal
from avsal.data.frames import FramePreprocessor
from avsal.data.gaze.options import Reading
from avsal.errors import DataError
from avsal.inference.files import (
    advice,
    expand,
    gaze_points,
    predict_files,
    result_folders,
    weights_sha256,
)
from avsal.inference.overlay import Artist
from avsal.inference.video import predict_video
from avsal.io.audio import load_audio
from avsal.io.video import VideoStream, probe
from avsal.models import create_model
from avsal.models.base import SaliencyModule
from avsal.zoo import from_pretrained, save_pretrained
from tests.media import cut, frame_number, picture, tone, write_clip

Run = Callable[..., int]


@pytest.fixture(scope="module")
def stavis() -> SaliencyModule:
    """A small STAViS with weights under which its maps differ from pixel to pixel and from frame to frame."""
    torch.manual_seed(0)
    small = {"width": 8, "blocks": [1, 1, 1], "dsam_maps": 4, "hidden": 16, "audio_width": 4, "via": None}
    module = create_model("stavis", size=(48, 64), **small).eval()
    network = module.network
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "upscale" not in name:
                torch.nn.init.kaiming_normal_(parameter)
        pictures = np.stack([picture(number) for number in range(16)])
        logits = network(FramePreprocessor(network.spec)(pictures)[None], torch.from_numpy(tone(0.6))).logits
        network.fuse_av.bias -= logits.mean()
        network.fuse_av.weight *= 2 / logits.std()
        network.fuse_av.bias *= 2 / logits.std()
    return module


@pytest.fixture(scope="module")
def checkpoint(stavis: SaliencyModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(stavis, tmp_path_factory.mktemp("weights") / "small-stavis")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(
        tmp_path_factory.mktemp("clips") / "clip.mp4", frames=24, fps=25, height=96, width=128,
        sound=tone(0.96),
    )  # fmt: skip


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Run:
    """`avsal predict …` into tmp_path/out, returning the exit status."""

    def command(*words: object, out: Path = tmp_path / "out", device: str = "cpu") -> int:
        options = ["--checkpoint", checkpoint, "--out", out, "--device", device, "--quiet"]
        return avsal(["predict", *map(str, [*words, *options])])

    return command


def frames_of(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with VideoStream(path) as stream:
        kept = [(frame.image.copy(), frame.time) for frame in stream]
    return [image for image, _ in kept], [time for _, time in kept]


def stored_times(path: Path) -> list[float]:
    """The presentation times in the file itself, also where it starts late."""
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_folder_of_a_video_holds_maps_videos_and_a_summary(
    run: Run, clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert run(clip) == 0
    folder = tmp_path / "out" / "clip"
    assert sorted(p.name for p in folder.iterdir()) == [
        "maps.npy",
        "overlay.mp4",
        "saliency.mkv",
        "summary.json",
    ]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["clip"]

    maps = np.load(folder / "maps.npy", mmap_mode="r")
    expected = list(predict_video(from_pretrained(checkpoint), clip))
    assert maps.shape == (24, 48, 64)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, torch.stack([r.map for r in expected]).numpy(), atol=1e-6)
    assert np.abs(np.diff(maps, axis=0)).max() > 0.1  # so a map in the wrong place would be seen

    _, shown = frames_of(clip)
    greys, grey_times = frames_of(folder / "saliency.mkv")
    assert np.allclose(grey_times, shown, atol=1e-3)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    stretched = 255 * (maps - low) / (high - low)
    assert np.abs(np.stack(greys)[..., 0] - stretched).max() <= 2  # a grey step, and grey to RGB and back

    summary = summary_of(folder)
    assert (summary["frames"], summary["fps"], summary["has_audio"]) == (24, 25.0, True)
    assert (summary["width"], summary["height"], summary["map_width"], summary["map_height"]) == (
        128,
        96,
        64,
        48,
    )
    assert summary["seconds"] > 0
    assert summary["warning"] is None
    for row, map_, result in zip(summary["peaks"], maps, expected, strict=True):
        r, c = np.unravel_index(map_.argmax(), map_.shape)
        assert (row["frame"], row["time"]) == (result.index, pytest.approx(result.time, abs=1e-6))
        assert (row["x"], row["y"]) == (
            pytest.approx((c + 0.5) / 64, abs=1e-4),
            pytest.approx((r + 0.5) / 48, abs=1e-4),
        )


def test_the_overlay_keeps_pictures_times_and_sound(run: Run, clip: Path, tmp_path: Path) -> None:
    assert run(clip, "--alpha", "0") == 0
    images, times = frames_of(tmp_path / "out" / "clip" / "overlay.mp4")
    originals, shown = frames_of(clip)
    assert np.allclose(times, shown, atol=1e-4)
    assert [frame_number(image) for image in images] == list(range(24))
    assert np.abs(np.stack(images).astype(int) - np.stack(originals)).mean() < 3
    ours, rate, has = load_audio(tmp_path / "out" / "clip" / "overlay.mp4")
    theirs, their_rate, _ = load_audio(clip)
    assert has
    assert rate == their_rate
    torch.testing.assert_close(ours, theirs)  # copied, not coded again


def test_the_heat_map_lies_where_the_map_says(run: Run, clip: Path, tmp_path: Path) -> None:
    assert run(clip) == 0
    images, _ = frames_of(tmp_path / "out" / "clip" / "overlay.mp4")
    originals, _ = frames_of(clip)
    maps = np.load(tmp_path / "out" / "clip" / "maps.npy")
    for image, original, map_ in zip(images, originals, maps, strict=True):
        changed = np.abs(image.astype(int) - original).sum(-1)
        large = np.asarray(Image.fromarray(map_).resize((128, 96)))
        strong, weak = large > np.quantile(large, 0.95), large < np.quantile(large, 0.3)
        assert changed[strong].mean() > 2 * changed[weak].mean() + 10


def test_one_bad_file_does_not_stop_the_others(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = write_clip(tmp_path / "mute.mp4", frames=10, fps=25)
    text = tmp_path / "text.mp4"
    text.write_text("These are words.\n")
    short = cut(write_clip(tmp_path / "whole.mkv", frames=60, fps=25), tmp_path / "short.mkv", 0.6)
    (tmp_path / "nothing").mkdir()
    assert run(text, mute, tmp_path / "missing.mp4", short, tmp_path / "nothing", clip) == 1
    out, err = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip", "mute", "short"]
    assert "3 of 6 inputs failed" in err
    for name in ("text.mp4", "missing.mp4", "nothing"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert "out/mute: 10 frames" in out

    quiet = summary_of(tmp_path / "out" / "mute")
    assert (quiet["has_audio"], quiet["sound_used"]) == (False, False)
    assert "no sound track" in quiet["warning"]
    assert not load_audio(tmp_path / "out" / "mute" / "overlay.mp4")[2]
    left = summary_of(tmp_path / "out" / "short")
    assert 5 < left["frames"] < 60
    assert "short.mkv" in left["warning"]
    assert left["warning"] in err


def test_results_are_kept_unless_asked(
    run: Run, clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "out" / "clip"
    assert run(clip) == 0
    written = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}

    def state() -> dict[str, tuple[int, int]]:
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}

    with monkeypatch.context() as patch:  # what is there needs no model
        patch.setattr("avsal.zoo.load.from_pretrained", lambda *_, **__: pytest.fail("loaded a model"))
        patch.setattr(
            "avsal.zoo.from_pretrained", lambda *_, **__: pytest.fail("loaded a model"), raising=False
        )
        assert run(clip) == 0
        assert "already there" in capsys.readouterr().out
        assert run(clip, "--stride", 2) == 1
        assert "--overwrite" in capsys.readouterr().err
    assert state() == written

    assert run(clip, "--stride", 2, "--overwrite") == 0
    assert summary_of(folder)["frames"] == 12
    assert [row["frame"] for row in summary_of(folder)["peaks"]] == list(range(0, 24, 2))
    assert len(frames_of(folder / "overlay.mp4")[0]) == 12
    assert [p.name for p in folder.parent.iterdir()] == ["clip"]

    # The same name, trained further: other weights.
    module = from_pretrained(checkpoint)
    weights = checkpoint / "model.safetensors"
    before = weights.read_bytes()
    try:
        with torch.no_grad():
            next(iter(module.parameters())).add_(1.0)
        save_pretrained(module, checkpoint)
        assert run(clip, "--stride", 2) == 1
    finally:
        weights.write_bytes(before)
    assert run(clip, "--stride", 2) == 0


def test_a_folder_that_is_no_result_is_left_alone(run: Run, clip: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "clip"
    mine.mkdir(parents=True)
    (mine / "summary.json").write_text("{ not json")
    assert run(clip) == 1
    assert (mine / "summary.json").read_text() == "{ not json"


def test_inputs_that_share_a_name_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = [Path(p) for p in ("a/clip.mp4", "b/clip.mp4", "b/clip.mkv", "c/clip.mp4.avi", "other.mp4")]
    folders = result_folders(paths, tmp_path)
    names = [folder.name for folder in folders.values()]
    assert len(set(names)) == len(names)
    assert (names[0], names[3], names[4]) == ("clip", "clip.mp4", "other")
    assert all(name.startswith("clip-") for name in names[1:3])
    # What is added to a stem follows from the input alone.
    assert result_folders([paths[0], paths[2], paths[1]], tmp_path)[paths[1]] == folders[paths[1]]


def test_an_input_keeps_its_folder_whatever_is_predicted_with_it(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [tmp_path / name / "clip.mp4" for name in ("a", "b")]
    for number, path in enumerate(same):
        path.parent.mkdir()
        write_clip(path, frames=4 + number, fps=25)
    out = tmp_path / "out"
    assert run(same[0]) == 0
    first = (out / "clip" / "summary.json").read_bytes()
    assert run(same[1], same[0]) == 0  # the newcomer first: it does not take the other's folder
    assert "clip: already there" in capsys.readouterr().out
    (second,) = out.glob("clip-*")
    assert summary_of(second)["frames"] == 5
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for inputs in ([same[0]], [same[1]], same, [clip, *same]):
        assert run(*inputs) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.iterdir())) == 3
    assert run(same[1], "--overwrite") == 0  # its own result, nobody else's
    assert (out / "clip" / "summary.json").read_bytes() == first
    same[0].rename(tmp_path / "clip.mp4.moved")  # a file that is gone leaves its folder to its successor
    assert run(same[1], "--overwrite") == 0
    assert (out / "clip" / "summary.json").read_bytes() == first


def test_folders_are_searched_and_files_named_twice_run_once(run: Run, tmp_path: Path) -> None:
    inside = tmp_path / "videos [1080p]"
    inside.mkdir()
    one = write_clip(inside / "one [x].mp4", frames=4, fps=25)
    write_clip(inside / "two.mkv", frames=4, fps=25)
    (inside / ".hidden").write_text("not to be found")
    assert [p.name for p in expand([str(inside), str(one), str(inside / "two.mkv")])] == [
        "one [x].mp4",
        "two.mkv",
    ]
    assert run(inside, one) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one [x]", "two"]


def test_a_still_picture_gives_pictures(run: Run, tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 60, dtype=np.uint8)[:, None, None]
    picture = np.broadcast_to(rows, (60, 90, 3)).copy()
    picture[20:40, 30:60] = (255, 0, 0)
    for name in ("photo.jpg", "drawing.png"):
        Image.fromarray(picture).save(tmp_path / name)
    assert run(tmp_path / "photo.jpg", tmp_path / "drawing.png") == 0
    for name in ("photo", "drawing"):
        folder = tmp_path / "out" / name
        names = sorted(p.name for p in folder.iterdir())
        assert names == ["maps.npy", "overlay.png", "saliency.png", "summary.json"]
        assert Image.open(folder / "overlay.png").size == (90, 60)
        map_ = np.load(folder / "maps.npy")[0]
        grey = np.asarray(Image.open(folder / "saliency.png")).astype(float)
        assert np.corrcoef(grey.ravel(), map_.ravel())[0, 1] > 0.999


def test_variable_frame_rate_keeps_every_frame_at_its_time(run: Run, tmp_path: Path) -> None:
    times = (
        [k * 0.04 for k in range(10)] + [0.9 + k * 0.1 for k in range(6)] + [1.6 + k * 0.02 for k in range(8)]
    )
    path = write_clip(
        tmp_path / "vfr.mp4", frames=24, fps=25, times=times, height=96, width=128, sound=tone(1.8)
    )
    assert run(path, "--alpha", 0) == 0
    folder = tmp_path / "out" / "vfr"
    images, overlaid = frames_of(folder / "overlay.mp4")
    _, grey = frames_of(folder / "saliency.mkv")
    assert np.allclose(overlaid, times, atol=1.1e-3)
    assert np.allclose(grey, times, atol=1.1e-3)
    assert [frame_number(image) for image in images] == list(range(24))
    assert np.allclose([row["time"] for row in summary_of(folder)["peaks"]], times, atol=1.1e-3)


def test_a_late_video_stays_late_and_its_sound_in_place(run: Run, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mp4", frames=12, fps=25, start=0.5, sound=tone(1.0))
    assert run(path, "--alpha", 0) == 0
    overlay = tmp_path / "out" / "late" / "overlay.mp4"
    assert np.allclose(frames_of(overlay)[1], frames_of(path)[1], atol=1e-3)
    for name in ("overlay.mp4", "saliency.mkv"):
        assert np.allclose(
            stored_times(overlay.with_name(name)), [0.5 + k / 25 for k in range(12)], atol=1e-3
        )
    torch.testing.assert_close(load_audio(overlay)[0], load_audio(path)[0])


@pytest.mark.parametrize("rotation", [90, 180])
def test_a_rotated_video_is_upright_in_every_result(run: Run, tmp_path: Path, rotation: int) -> None:
    path = write_clip(tmp_path / "turned.mp4", frames=8, fps=25, height=96, width=128, rotation=rotation)
    assert run(path, "--alpha", 0) == 0
    upright, _ = frames_of(path)
    overlay = tmp_path / "out" / "turned" / "overlay.mp4"
    assert probe(overlay).rotation == 0
    images, _ = frames_of(overlay)
    assert images[0].shape == ((128, 96, 3) if rotation == 90 else (96, 128, 3))
    assert np.abs(np.stack(images).astype(int) - np.stack(upright)).mean() < 3


MEDIA = Path(__file__).parents[1] / "io" / "media"


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("drop2.ts", 50, "encoded again"),
        ("nanaudio.mkv", 13, "not numbers"),
        ("cat.ts", 100, "the parts follow each other"),
        ("trfs_97.mp4", 29, "1 of 30 packets"),
        ("flip_webm_17.webm", 19, "19 of about 30"),
    ],
)
def test_what_was_wrong_with_a_file_is_in_the_summary_and_costs_no_maps(
    run: Run, tmp_path: Path, name: str, count: int, words: str
) -> None:
    assert run(MEDIA / name) == 0
    folder = tmp_path / "out" / Path(name).stem
    assert np.load(folder / "maps.npy").shape[0] == count
    assert len(frames_of(folder / "overlay.mp4")[0]) == count
    assert load_audio(folder / "overlay.mp4")[2]
    assert words in summary_of(folder)["warning"]


def test_a_cut_picture_is_said_to_be_cut(run: Run, tmp_path: Path) -> None:
    assert run(MEDIA / "cutimage.jpg") == 0
    assert "cut or damaged" in summary_of(tmp_path / "out" / "cutimage")["warning"]


@pytest.mark.parametrize("broken", ["write", "close", "__init__"])
def test_videos_that_cannot_be_written_cost_no_maps(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    from avsal.io.render import VideoWriter

    original = getattr(VideoWriter, broken)

    def fail(self: VideoWriter, *args: Any, **options: Any) -> Any:
        path = args[0] if broken == "__init__" else self.path
        if Path(path).name == "overlay.mp4":
            raise av.InvalidDataError(1, "the muxer refuses")
        return original(self, *args, **options)

    monkeypatch.setattr(VideoWriter, broken, fail)
    assert run(clip) == 0
    folder = tmp_path / "out" / "clip"
    assert np.load(folder / "maps.npy").shape[0] == 24
    assert sorted(p.name for p in folder.iterdir()) == ["maps.npy", "saliency.mkv", "summary.json"]
    assert "overlay.mp4 could not be written" in summary_of(folder)["warning"]


def test_the_pixel_aspect_survives_into_overlay_and_summary(run: Run, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "wide.mp4", frames=4, height=144, width=180, pixel_aspect=Fraction(64, 45))
    assert run(clip) == 0
    folder = tmp_path / "out" / "wide"
    assert probe(folder / "overlay.mp4").pixel_aspect == pytest.approx(64 / 45)
    assert summary_of(folder)["pixel_aspect"] == pytest.approx(64 / 45)


def test_odd_sizes_and_odd_frame_rates(run: Run, tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "odd.mkv", frames=12, fps=Fraction(30000, 1001), height=51, width=77, codec="ffv1"
    )
    assert run(path, "--alpha", 0) == 0
    _, times = frames_of(tmp_path / "out" / "odd" / "overlay.mp4")
    assert np.allclose(times, [k * 1001 / 30000 for k in range(12)], atol=1e-3)


def test_authors_coverage_leaves_out_the_first_frames(
    run: Run, clip: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run(clip, "--coverage", "authors", "--no-overlay") == 0
    folder = tmp_path / "out" / "clip"
    assert not (folder / "overlay.mp4").exists()
    assert [row["frame"] for row in summary_of(folder)["peaks"]] == list(range(8, 24))
    assert np.allclose(stored_times(folder / "saliency.mkv"), [k / 25 for k in range(8, 24)], atol=1e-3)
    # A video with fewer frames than that has none to score; nothing is written for it.
    short = write_clip(tmp_path / "short.mp4", frames=4, fps=25)
    assert run(short, "--coverage", "authors") == 1
    assert "--coverage full" in capsys.readouterr().err
    assert not (tmp_path / "out" / "short").exists()


def test_anticipation_writes_one_map_for_each_future_moment(tmp_path: Path) -> None:
    small = {
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "spectrogram": (32, 32),
        "window": 60,
        "contrast_dim": 8,
    }
    module = create_model("csts", size=(32, 32), init_std=0.3, **small).eval()
    path = write_clip(tmp_path / "ego.mp4", frames=30, fps=25, height=96, width=128, sound=tone(1.2))
    (outcome,) = predict_files(
        path, module=module, out=tmp_path / "out", stride=10, correlation=True, quiet=True
    )
    assert outcome.status == "done", outcome.message
    folder = tmp_path / "out" / "ego"
    maps = np.load(folder / "maps.npy")
    assert maps.shape == (3, 8, 8, 8)
    assert np.allclose(maps.sum((2, 3)), 1, atol=1e-4)
    for row, time in zip(summary_of(folder)["peaks"], (0.0, 0.4, 0.8), strict=True):
        assert row["time"] == pytest.approx(time)
        assert np.allclose(row["targets"], [time + (1 + 9 * i) / 30 for i in range(8)])
        # The middle square of 96 x 128 is what the network sees.
        assert all(0.125 <= x <= 0.875 for x in row["x"])
        assert len(row["y"]) == 8
    for name in ("overlay.mp4", "correlation.mp4"):
        assert np.allclose(frames_of(folder / name)[1], (0.0, 0.4, 0.8), atol=1e-3)


# -- gaze ----------------------------------------------------------------------------------------------------


def gaze_file(path: Path, header: str, rows: Sequence[Sequence[float]]) -> Path:
    path.write_text("\n".join([header, *(",".join(f"{v:g}" for v in row) for row in rows)]) + "\n")
    return path


def moved(folder: Path, reference: Path, frame: int) -> tuple[float, float]:
    """Where (x, y, in shares) the overlay of one frame differs from a reference without gaze."""
    with_gaze, without = (frames_of(f / "overlay.mp4")[0][frame].astype(int) for f in (folder, reference))
    changed = np.abs(with_gaze - without).sum(-1)
    row, column = np.argwhere(changed > 0.5 * changed.max()).mean(0)
    return (column + 0.5) / 128, (row + 0.5) / 96


def test_gaze_outside_the_picture_on_any_side_is_counted_and_not_drawn(
    run: Run, clip: Path, tmp_path: Path
) -> None:
    places = [(0.5, 0.5), (1.6, 0.5), (-0.6, 0.5), (0.5, 1.6), (0.5, -0.6), (1.6, 1.6), (0, 0), (0.25, 0.75)]
    # 24 frames at 25 fps, to 0.92 s; the last sample comes after them.
    rows = [(0.1 * k, *place) for k, place in enumerate(places)] + [(0.95, 0.5, 0.5)]
    gaze = gaze_file(tmp_path / "gaze.csv", "time_s,x_norm,y_norm", rows)
    assert run(clip, "--gaze", gaze) == 0
    folder = tmp_path / "out" / "clip"
    assert summary_of(folder)["gaze"] == {"samples": 9, "lost": 1, "outside": 5, "drawn": 2}
    assert run(clip, out=tmp_path / "plain") == 0
    assert summary_of(tmp_path / "plain" / "clip")["gaze"] is None
    assert moved(folder, tmp_path / "plain" / "clip", 3) == pytest.approx((0.5, 0.5), abs=0.02)
    assert moved(folder, tmp_path / "plain" / "clip", 22) == pytest.approx((0.25, 0.75), abs=0.02)
    # With every 20th frame only (0 and 0.8 s), the samples of the half second before them are seen.
    rows = [(0.1 * k, 0.5, 0.5) for k in range(10)]
    gaze_file(gaze, "time_s,x_norm,y_norm", rows)
    assert run(clip, "--gaze", gaze, "--stride", 20, "--overwrite") == 0
    assert summary_of(folder)["gaze"] == {"samples": 10, "lost": 0, "outside": 0, "drawn": 6}
    gaze_file(gaze, "time_s,x_norm,y_norm", [(0.1 * k, 1.4, 0.5) for k in range(10)])
    assert run(clip, "--gaze", gaze, "--overwrite") == 0
    assert "none of its 10 samples" in summary_of(folder)["warning"]


def test_a_result_with_other_gaze_is_not_kept(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gaze = gaze_file(tmp_path / "gaze.csv", "time_s,x_norm,y_norm", [(0.05 * k, 0.5, 0.5) for k in range(18)])
    assert run(clip) == 0
    assert run(clip, "--gaze", gaze) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(clip, "--gaze", gaze, "--overwrite") == 0
    capsys.readouterr()
    assert run(clip, "--gaze", gaze) == 0
    assert "already there" in capsys.readouterr().out
    assert run(clip) == 1
    for words in (
        ["--gaze-offset", 0.1], ["--gaze-units", "normalised"], ["--gaze-time-unit", "s"], ["--gaze-size", "9x9"],
    ):  # fmt: skip
        assert run(clip, "--gaze", gaze, *words) == 1
    gaze_file(gaze, "time_s,x_norm,y_norm", [(0.05 * k, 0.5, 0.6) for k in range(18)])
    assert run(clip, "--gaze", gaze) == 1  # the same name, other samples


def test_weights_of_a_registered_checkpoint_are_part_of_the_settings() -> None:
    import hashlib

    import avsal as package

    packaged = Path(package.__file__).parent / "weights" / "stavis-tiny-synthav.safetensors"
    assert weights_sha256("stavis-tiny-synthav") == hashlib.sha256(packaged.read_bytes()).hexdigest()
    assert weights_sha256("someone/else") is None


def test_gaze_that_is_not_certain_is_refused_and_the_options_settle_it(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(clip, out=tmp_path / "plain") == 0
    plain, folder = tmp_path / "plain" / "clip", tmp_path / "out" / "clip"
    capsys.readouterr()
    # Pixels of a picture of 40x30, where the video has 128x96.
    small = gaze_file(tmp_path / "small.csv", "time_s,x,y", [(0.02 * k, 36, 24) for k in range(45)])
    assert run(clip, "--gaze", small) == 1
    error = capsys.readouterr().err
    assert "upper left of a picture of 128x96" in error
    assert "--gaze-size" in error
    assert run(clip, "--gaze", small, "--gaze-size", "40x30") == 0
    assert moved(folder, plain, 12) == pytest.approx((0.9, 0.8), abs=0.02)
    assert run(clip, "--gaze", small, "--gaze-units", "pixels", "--overwrite") == 0
    assert moved(folder, plain, 12) == pytest.approx((36 / 128, 24 / 96), abs=0.02)
    # Frame numbers under a name for times look like milliseconds.
    capsys.readouterr()
    frames = gaze_file(tmp_path / "frames.csv", "t,x_norm,y_norm", [(k, 0.5, 0.5) for k in range(24)])
    assert run(clip, "--gaze", frames, "--overwrite") == 1
    assert "--gaze-time-unit" in capsys.readouterr().err
    assert run(clip, "--gaze", frames, "--gaze-time-unit", "ms", "--overwrite") == 0
    # Another clock.
    late = gaze_file(
        tmp_path / "late.csv", "time_s,x_norm,y_norm", [(99 + 0.1 * k, 0.2 + 0.05 * k, 0.5) for k in range(9)]
    )
    capsys.readouterr()
    assert run(clip, "--gaze", late, "--overwrite") == 1
    assert "--gaze-offset" in capsys.readouterr().err
    assert run(clip, "--gaze", late, "--gaze-offset", 98.9, "--overwrite") == 0
    # The first sample is at 0.1 s: the fourth frame (0.12 s) shows it alone.
    assert moved(folder, plain, 3) == pytest.approx((0.2, 0.5), abs=0.02)
    assert summary_of(folder)["gaze"]["drawn"] == 9


def test_frame_numbers_count_from_the_first_picture_of_a_late_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "late.mp4", frames=12, fps=25, start=0.5, sound=tone(1.0))
    gaze = gaze_file(tmp_path / "gaze.csv", "frame,x_norm,y_norm", [(k, 0.5, 0.5) for k in range(12)])
    points, _ = gaze_points(gaze, Reading(), probe(path))
    np.testing.assert_allclose(points[:, 0], stored_times(path), atol=1e-3)


def test_late_gaze_of_a_video_of_unknown_duration_is_taken(clip: Path, tmp_path: Path) -> None:
    gaze = gaze_file(
        tmp_path / "gaze.csv", "time_s,x_norm,y_norm", [(0.5 + 0.02 * k, 0.5, 0.5) for k in range(20)]
    )
    info = replace(probe(clip), duration=None)
    points, counts = gaze_points(gaze, Reading(), info)
    assert len(points) == 20
    assert counts == {"samples": 20, "lost": 0, "outside": 0}
    with pytest.raises(DataError, match="different clocks"):  # it ends before the video begins
        gaze_points(gaze, Reading(), replace(info, start=5.0))


def test_late_gaze_of_a_real_video_of_unknown_duration(run: Run, real_data: Path, tmp_path: Path) -> None:
    gaze = gaze_file(
        tmp_path / "gaze.csv", "time_s,x_norm,y_norm", [(0.5 + 0.02 * k, 0.5, 0.5) for k in range(20)]
    )
    assert run(real_data / "media" / "no_duration.webm", "--gaze", gaze, "--stride", 5) == 0
    assert summary_of(tmp_path / "out" / "no_duration")["gaze"]["drawn"] > 0


def test_options_for_videos_are_told_where_the_input_is_a_picture(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(0, 96, 128)).save(tmp_path / "photo.png")
    gaze = gaze_file(tmp_path / "gaze.csv", "time_s,x_norm,y_norm", [(0, 0.5, 0.5), (0.1, 0.5, 0.5)])
    assert run(tmp_path / "photo.png", "--gaze", gaze) == 2
    assert "this is a picture" in capsys.readouterr().err
    module = create_model("csts", size=(32, 32), embed_dim=8, depths=[1, 1, 1, 1], contrast_dim=8).eval()
    (outcome,) = predict_files(
        tmp_path / "photo.png", module=module, out=tmp_path / "out", correlation=True, quiet=True
    )
    assert outcome.status == "done", outcome.message
    assert "picture has no sound" in str(outcome.message)
    assert not (tmp_path / "out" / "photo" / "correlation.mp4").exists()


KILLED = """
    import sys, time
    import torch
    from avsal.inference.overlay import Artist
    torch.set_num_threads(1)
    add, count = Artist.add, 0

    def slow(self, result):
        global count
        row, count = add(self, result), count + 1
        if count == 20:
            print("in the middle", flush=True)
            time.sleep(600)
        return row

    Artist.add = slow
    from avsal.cli import main
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_written(
    run: Run, clip: Path, checkpoint: Path, tmp_path: Path
) -> None:
    first = write_clip(tmp_path / "first.mp4", frames=10, fps=25)
    out = tmp_path / "out"
    words: Sequence[object] = ["predict", first, clip, "--checkpoint", checkpoint, "--out", out, "--quiet"]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, words)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert any("in the middle" in line for line in child.stdout)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (out / "first" / "summary.json").is_file()  # finished work is there
    assert not (out / "clip").exists()
    (left,) = [p.name for p in out.iterdir() if p.name != "first"]
    assert left.startswith(".clip.")
    assert run(first, clip) == 0
    assert sorted(p.name for p in out.iterdir()) == ["clip", "first"]
    assert summary_of(out / "clip")["frames"] == 24


def test_an_interrupted_run_cleans_up(
    run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Artist, result: object) -> None:
        raise KeyboardInterrupt

    first = write_clip(tmp_path / "first.mp4", frames=3, fps=25)
    assert run(first) == 0
    capsys.readouterr()
    monkeypatch.setattr(Artist, "add", stop)
    assert run(first, clip, "--overwrite") == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first"]
    assert summary_of(tmp_path / "out" / "first")["frames"] == 3  # the old result outlives a broken overwrite


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--alpha", "1.5"], "--alpha 1.5"),
        (["--stride", "0"], "--stride 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--device", "quantum"], "--device quantum"),
        (["--gaze", "gaze.csv", "second.mp4"], "--gaze belongs to one video"),
        (["--gaze", "gaze.csv"], "gaze.csv: there is no such gaze file"),
        (["--gaze", "gaze.csv", "--no-overlay"], "which --no-overlay leaves out"),
        (["--gaze-offset", "3"], "--gaze-offset tells how to read the file of --gaze"),
        (["--gaze-size", "160x90"], "--gaze-size tells how"),
        (["--gaze-size", "160"], "WIDTHxHEIGHT"),
        (["--correlation"], "no spatial audio-visual correlation"),
    ],
)
def test_wrong_options_end_before_any_work(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    status = run(clip, *words) if words[0] != "--device" else run(clip, device=words[1])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_cannot_go_where_a_file_is(
    run: Run, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(clip, out=tmp_path / "file") == 2
    assert "file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["realshort.mp4", "flipping_a_pancake.mkv", "no_duration.webm"])
def test_real_recordings(run: Run, real_data: Path, tmp_path: Path, name: str) -> None:
    path = real_data / "media" / name
    assert run(path, "--stride", 25) == 0
    folder = tmp_path / "out" / path.stem
    with VideoStream(path) as stream:
        times = [frame.time for frame in stream][::25]
        has_audio = stream.info.has_audio
    for video in ("overlay.mp4", "saliency.mkv"):
        assert np.allclose(frames_of(folder / video)[1], times, atol=2e-3)
    summary = summary_of(folder)
    assert np.allclose([row["time"] for row in summary["peaks"]], times, atol=1e-6)
    assert summary["has_audio"] == has_audio
    if has_audio:
        wave, rate, _ = load_audio(path)
        kept, kept_rate, _ = load_audio(folder / "overlay.mp4")
        assert len(kept) / kept_rate == pytest.approx(len(wave) / rate, abs=0.1)


def test_a_network_of_generated_clips_says_on_real_video_what_to_use_instead(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(clip), "--stride", "24", "--quiet", "--no-overlay", "--device", "cpu"]
    assert avsal([*command, "--checkpoint", "stavis-tiny-synthav", "--out", str(tmp_path / "synthav")]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "generated clips" in line]
    assert len(notes) == 1
    assert f"--checkpoint {default_checkpoint()}" in notes[0]
    assert summary_of(tmp_path / "synthav" / "clip")["advice"] == notes[0].removeprefix("note: ")
    # Without --checkpoint the recommended one runs, and there is nothing to say.
    assert avsal([*command, "--out", str(tmp_path / "default")]) == 0
    assert "generated clips" not in capsys.readouterr().err
    summary = summary_of(tmp_path / "default" / "clip")
    assert summary["settings"]["checkpoint"] == default_checkpoint()
    assert summary["advice"] is None
    # Pictures alone have a default of their own.
    Image.fromarray(picture(0)).save(tmp_path / "photo.png")
    assert avsal(["predict", str(tmp_path / "photo.png"), "--quiet", "--out", str(tmp_path / "default")]) == 0
    used = summary_of(tmp_path / "default" / "photo")["settings"]["checkpoint"]
    assert used == default_checkpoint("picture") != default_checkpoint()
    # On the clips that it was made for, the network needs no word of warning.
    assert advice("stavis-tiny-synthav", Path("video/SynthAV_congruent/c0001_easy.mp4")) is None


def test_one_bad_path_does_not_stop_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small = write_clip(tmp_path / "small.mp4", frames=3, fps=25)
    loop, folder, closed = tmp_path / "loop.mp4", tmp_path / "folder", tmp_path / "closed"
    loop.symlink_to(loop)
    folder.mkdir()
    closed.mkdir()
    (folder / "one.mp4").write_bytes(small.read_bytes())
    (folder / "lost.mp4").symlink_to(tmp_path / "nowhere.mp4")
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff\xfed\n.mp4")
    long = tmp_path / ("n" * 251 + ".mp4")
    for path in (strange, long):
        Path(path).write_bytes(small.read_bytes())
    listed = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    too_long = tmp_path / ("x" * 300 + ".mp4")
    words = [small, loop, too_long, closed, closed / "in.mp4", folder, strange, long, "last\nline.mp4"]
    assert run(*words) == 1
    done = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"small", "one", long.stem} <= done
    assert not [name for name in done if name.startswith(".")]
    said = capfd.readouterr().err
    assert "6 of 10 inputs failed" in said
    for part in ("loop.mp4: cannot be opened (Too many levels", "cannot be opened (File name too long)",
                 "closed: cannot be opened (Permission denied)", "lost.mp4: there is no such file",
                 "last\\x0aline.mp4"):  # fmt: skip
        assert part in said, said


def test_runs_that_share_an_output_folder_lose_nothing(
    stavis: SaliencyModule, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begun = threading.Barrier(3)

    def work(_: int) -> list[str]:
        begun.wait()
        options = {"out": out, "overlay": False, "overwrite": True, "quiet": True}
        return [one.status for one in predict_files(clip, module=stavis, **options)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [["done"]] * 3
    assert [path.name for path in out.iterdir()] == ["clip"]
    assert summary_of(out / "clip")["frames"] == 24
    assert len(np.load(out / "clip" / "maps.npy")) == 24


def test_weights_that_give_nan_fail_the_file_and_are_named(
    stavis: SaliencyModule, clip: Path, tmp_path: Path
) -> None:
    broken = copy.deepcopy(stavis)
    with torch.no_grad():
        next(broken.network.parameters()).flatten()[0] = torch.nan
    outcomes = predict_files(clip, module=broken, out=tmp_path / "out", overlay=False, quiet=True)
    (outcome,) = outcomes
    assert outcomes.exit_status == 1
    assert outcome.status == "failed"
    assert "map of frame 0 (0.00 s) holds NaN or infinite values" in str(outcome.message)
    assert list((tmp_path / "out").iterdir()) == []
