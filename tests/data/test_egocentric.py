"""Ego4D and Aria gaze: segments, sampling, targets, sound, from miniature copies of both layouts."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal

from avsal.data.gaze.aria import AriaRecording
from avsal.data.gaze.clips import GazeClips, _frame_labels, classify, read_ego4d_gaze
from avsal.data.gaze.segments import ARIA, EGO4D, read_names, read_segments, read_untracked, segments_of
from avsal.data.gaze.tables import GazeTable
from avsal.data.gaze.targets import crop_gaze, gaze_density, offset_range, place_gaze
from avsal.data.sets.egocentric import AriaGazeDataModule, Ego4DGazeDataModule, GazeDataModule
from avsal.errors import ConfigError, DataError
from avsal.inference.video import predict_video
from avsal.models.csts import CSTS, CSTSModule
from avsal.types import ClipSpec
from tests.media import frame_number, tone, write_clip

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, the more so where several tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spec(task: str = "anticipation", timing: str = "ego4d", **options: object) -> ClipSpec:
    network = CSTS(
        task=task, timing=timing, size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), contrast="none",
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return network.spec


def gaze_at(seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the wearer of the made-up recordings looks: x moves to the right, y is counted from the top."""
    return 0.2 + 0.03 * seconds, np.full_like(seconds, 0.4)


# -- targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["a", "b"])
def test_targets_are_the_released_heat_maps(letter: str) -> None:
    with np.load(GOLDEN / "csts_metrics.npz") as arrays:
        gaze, expected = arrays[f"{letter}/gaze"], arrays[f"{letter}/labels_hm"]
    found = gaze_density(torch.from_numpy(gaze[..., :2]))
    np.testing.assert_allclose(found.numpy(), expected.reshape(found.shape), atol=1e-7)


def test_a_target_is_a_window_of_19_cells_that_may_leave_the_map() -> None:
    maps = gaze_density(torch.tensor([[0.5, 0.5], [1.0, 1.0], [float("nan"), 0.5], [3.0, 0.5]]))
    torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(4))
    assert int((maps[0] > 0).sum()) == 19 * 19
    assert int((maps[0] > 1e-3).sum()) == 177
    assert divmod(int(maps[0].argmax()), 64) == (32, 32)
    assert int((maps[1] > 0).sum()) == 9 * 9  # centred on cell 64, one off the map
    assert (maps[2:] == 1 / 4096).all()


def test_gaze_follows_the_centre_crop() -> None:
    ego = ClipSpec(8, (256, 256), resize="short_side_crop")
    # An Ego4D frame of 1088x1080 becomes 257 wide and loses its first column.
    x, y = crop_gaze(torch.tensor([0.5, 0.5]), (1080, 1088), ego).tolist()
    assert (x, y) == pytest.approx(((0.5 * 257 - 1) / 256, 0.5))
    assert crop_gaze(torch.tensor([0.0, 1.0]), (1080, 1920), ego).tolist() == [0.0, 1.0]
    assert place_gaze(torch.tensor([0.25, 0.75]), (100, 200), (10, 20), (50, 50)).tolist() == pytest.approx(
        [0.6, 1.0]
    )


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([100.0, 150.0], (0, 44)),  # anywhere holds them in a picture of 300, crop 256
        ([10.0, 280.0], (24, 44)),  # too far apart: the lowest is dropped, and the crop must reach 280
        ([290.0], (34, 44)),
        ([5.0, 250.0], (0, 5)),
        ([], (0, 44)),
    ],
)
def test_the_training_crop_keeps_the_gaze_inside(points: list[float], expected: tuple[int, int]) -> None:
    low, high = offset_range(points, 300, 256)
    assert (low, high) == expected


# -- lists -------------------------------------------------------------------------------------------------


def test_lists_name_recordings_and_starts(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("\ufeffab-c/ab-c_t0_t5.mp4\nmovie_1/movie_1_t12_t16.mp4\n\n", encoding="utf-8")
    assert [(s.video, s.start, s.clip) for s in read_segments(path)] == [
        ("ab-c", 0, "ab-c_t0_t5"),
        ("movie_1", 12, "movie_1_t12_t16"),
    ]
    path.write_text("movie_1.mp4\n")
    with pytest.raises(DataError, match="line 1: expected"):
        read_segments(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_segments(tmp_path / "none.csv")


def test_segments_that_touch_an_untracked_interval_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "untracked.csv"
    path.write_text(
        "v,00:00:12,00:00:15,2\nv,00:00:12,00:00:15,2\nv,00:00:40,00:00:30,1\nw,01:00:00,01:00:05,1\n"
    )
    untracked = read_untracked(path)
    assert untracked == {"v": [(12, 15)], "w": [(3600, 3605)]}
    assert [s.start for s in segments_of("v", 24.9, 5, untracked["v"])] == [
        0,
        5,
    ]  # 10 lies in it, 15 begins where it ends
    assert [s.start for s in segments_of("v", 9.5, 2)] == [0, 2, 4]
    assert segments_of("v", 4.9, 5) == []
    path.write_text("v,12,14\n")
    with pytest.raises(DataError, match="hh:mm:ss"):
        read_untracked(path)


def test_the_published_lists_are_what_the_rule_gives(real_data: Path) -> None:
    folder = real_data / "fold_lists" / "csts"
    listed: dict[str, set[int]] = {}
    for split, count in (("train", 15310), ("test", 5202)):
        segments = read_segments(folder / f"{split}_ego4d_gaze.csv")
        assert len(segments) == count
        for segment in segments:
            listed.setdefault(segment.video, set()).add(segment.start)
    assert sorted(listed) == sorted((folder / "ego4d_video_ids.txt").read_text().split())
    untracked = read_untracked(folder / "ego4d_gaze_untracked.csv")
    for video, starts in listed.items():
        # Our cut of the same recordings, as far as their last listed segment, is the published list.
        cut = segments_of(video, max(starts) + 5, 5, untracked.get(video, ()))
        assert {s.start for s in cut} == starts, video
    aria = {s: read_segments(folder / f"{s}_aria_gaze.csv") for s in ("train", "test")}
    assert {s: (len(found), len({x.video for x in found})) for s, found in aria.items()} == {
        "train": (10456, 107),
        "test": (2901, 36),
    }
    names = read_names(folder / "aria_video_ids_matching.xlsx")
    assert len(names) == 2 * 143
    assert {x.video for found in aria.values() for x in found} <= set(names)
    assert names[names["loc1_script1_seq1_rec1"]] == "loc1_script1_seq1_rec1"


def test_names_are_read_from_a_workbook_or_a_table(tmp_path: Path) -> None:
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    words = ["new", "old", "loc1_script1_seq1_rec1", "movie_7"]
    with zipfile.ZipFile(tmp_path / "names.xlsx", "w") as book:
        book.writestr(
            "xl/sharedStrings.xml", f"<sst {space}>{''.join(f'<si><t>{w}</t></si>' for w in words)}</sst>"
        )
        cells = [f'<c r="{"AB"[i % 2]}{i // 2 + 1}" t="s"><v>{i}</v></c>' for i in range(4)]
        rows = f"<row>{cells[0]}{cells[1]}</row><row>{cells[2]}{cells[3]}</row>"
        book.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{rows}</sheetData></worksheet>"
        )
    (tmp_path / "names.csv").write_text("new,old\nloc1_script1_seq1_rec1,movie_7\n")
    expected = {"loc1_script1_seq1_rec1": "movie_7", "movie_7": "loc1_script1_seq1_rec1"}
    assert read_names(tmp_path / "names.xlsx") == read_names(tmp_path / "names.csv") == expected
    (tmp_path / "broken.xlsx").write_text("no workbook")
    with pytest.raises(DataError, match="not a sheet"):
        read_names(tmp_path / "broken.xlsx")


# -- gaze types --------------------------------------------------------------------------------------------


def test_gaze_types_are_the_authors() -> None:
    x = np.array([0.5, 0.5, 0.5 + 39 / 1088, 0.5 + 80 / 1088, np.nan, 0.9, 1.2, 1.0])
    y = np.full(8, 0.5)
    found = classify(x, y, np.isfinite(x), EGO4D)
    # still, still, 39 px, 41 px, lost, after a loss, outside (clipped), 0 px from the border
    assert found[:, 2].tolist() == [0, 0, 0, 1, 3, 0, 2, 0]
    assert found[4, :2].tolist() == [0.0, 0.0]
    assert found[6, 0] == 1.0
    assert classify(np.array([0.5, 0.5 + 25 / 640]), np.array([0.5, 0.5]), np.ones(2, bool), ARIA)[
        :, 2
    ].tolist() == [0, 1]


@pytest.mark.parametrize(
    "header",
    ["gaze_timestamp,canonical_timestamp_s,world_index,confidence,z,norm_pos_x,norm_pos_y", "a,b,c,d,e,f,g"],
)
def test_raw_ego4d_gaze_is_read_by_name_and_else_by_position(tmp_path: Path, header: str) -> None:
    path = tmp_path / "raw.csv"
    seconds = np.arange(0, 3, 1 / 200)
    x, y = gaze_at(seconds)
    rows = [f"{t + 77:.4f},{t:.4f},0,1,0,{a:.5f},{1 - b:.5f}" for t, a, b in zip(seconds, x, y, strict=True)]
    rows[100:160] = [row.rsplit(",", 2)[0] + ",0,0" for row in rows[100:160]]  # 0.5 to 0.8 s are lost
    path.write_text("\n".join([header, *rows]))
    times = np.arange(120) / 30
    found = read_ego4d_gaze(path, times)
    lost = (times > 0.499) & (times < 0.797)
    gone = times > seconds[-1] + 0.2
    np.testing.assert_allclose(
        found[~(lost | gone | (times > 2.9)), 0], gaze_at(times)[0][~(lost | gone | (times > 2.9))], atol=1e-4
    )
    np.testing.assert_allclose(found[~(lost | gone), 1], 0.4, atol=1e-9)
    assert (found[lost | gone, 2] == 3).all()
    assert (found[~(lost | gone), 2] == 0).all()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("idx,time_s,x,y,foo,confidence,pupil", "pass size="),  # pixels, not (confidence, pupil)
        ("idx,foo,norm_pos_x,norm_pos_y,time_ms,a,b", "pixels or degrees"),
        ("idx,foo,bar,time_s,c,d,e", "no pair of gaze coordinates"),  # the time stands elsewhere
        ("idx,foo,x,y", "neither a time"),
    ],
)
def test_ego4d_files_of_other_kinds_are_not_read_by_position(
    tmp_path: Path, header: str, reason: str
) -> None:
    path = tmp_path / "raw.csv"
    rows = [f"{k},{k / 100},{300 + k},{200 + k},{k / 100},0.9,0.4" for k in range(100)]
    path.write_text("\n".join([header, *(",".join(r.split(",")[: header.count(",") + 1]) for r in rows)]))
    with pytest.raises(DataError, match=reason):
        read_ego4d_gaze(path, np.arange(10) / 30)
    # A known name in the place where the authors read it does no harm.
    path.write_text("\n".join(["idx,canonical_timestamp_s,a,b,c,d,e", *rows]))
    np.testing.assert_allclose(read_ego4d_gaze(path, np.arange(10) / 30)[:, :2], [[0.9, 0.6]] * 10)


@pytest.mark.parametrize("untracked", [EGO4D.untracked, ARIA.untracked])
def test_only_untracked_labels_get_the_stand_in_point(tmp_path: Path, untracked: tuple[float, float]) -> None:
    path = tmp_path / "labels.csv"
    # The authors cut the coordinates of a point outside to whole numbers, so that (0, 0) may be one.
    path.write_text(
        "frame,x,y,gaze_type\n0,0.4,0.3,0\n1,0,0,2\n2,1,0,2\n3,0,0,3\n4,0.5,0.5,3\n6,,,0\n7,0,0.2,0\n"
    )
    lost = [*untracked, 3.0]
    expected = [[0.4, 0.3, 0], [0, 0, 2], [1, 0, 2], lost, lost, lost, lost, [0, 0.2, 0]]
    np.testing.assert_array_equal(_frame_labels(path, untracked), expected)


# -- sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "anticipation", "last", "test", "labels"),
    [
        (EGO4D, True, 22, 22, [86, 95, 104, 113, 122, 131, 140, 149]),
        (ARIA, True, 24, 24, [64, 69, 74, 79, 84, 89, 94, 99]),
        (EGO4D, False, 86, 0, [0, 9, 18, 27, 36, 45, 54, 63]),
        (ARIA, False, 64, 64, [64, 69, 74, 79, 84, 89, 94, 99]),
    ],
)
def test_sampling_is_the_released_loaders(
    protocol: object, anticipation: bool, last: int, test: int, labels: list[int]
) -> None:
    assert protocol.starts(8, anticipation) == (last, test)  # type: ignore[attr-defined]
    assert protocol.labels(test, 8, anticipation).tolist() == labels  # type: ignore[attr-defined]
    # The last label of a training clip lies in the segment's five seconds.
    assert protocol.labels(last, 8, anticipation).max() < protocol.frames  # type: ignore[attr-defined]


def test_a_clip_longer_than_what_may_be_seen_is_refused() -> None:
    with pytest.raises(ConfigError, match="take fewer"):
        EGO4D.starts(11, True)


# -- original Ego4D ------------------------------------------------------------------------------------------


def ego4d_csv(path: Path, seconds: float, offset: float = 0.0) -> None:
    times = np.arange(0, seconds, 1 / 100)
    x, y = gaze_at(times)
    lines = ["gaze_timestamp,canonical_timestamp_s,world_index,confidence,z,norm_pos_x,norm_pos_y"]
    lines += [f"0,{t + offset:.4f},0,1,0,{a:.6f},{1 - b:.6f}" for t, a, b in zip(times, x, y, strict=True)]
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def ego4d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings: `a` of 11 s, `b` of 6 s without a sound track but with a separate one, `c` of 3 s."""
    root = tmp_path_factory.mktemp("ego4d")
    for name in ("full_scale.gaze", "gaze", "missing_audio"):
        (root / name).mkdir()
    sweep = signal.chirp(np.arange(11 * 24000) / 24000, 200, 11, 6000)[None].astype(np.float32) / 2
    for name, seconds, sound in (("a", 11, sweep), ("b", 6, None), ("c", 3, tone(3, 24000))):
        write_clip(
            root / "full_scale.gaze" / f"{name}.mp4",
            frames=30 * seconds,
            fps=30,
            height=72,
            width=80,
            sound=sound,
            rate=24000,
        )
        ego4d_csv(root / "gaze" / f"{name}.csv", seconds)
    write_clip(
        root / "missing_audio" / "b.wav", frames=0, sound=tone(6, 24000), rate=24000, audio_codec="pcm_s16le"
    )
    (root / "train_ego4d_gaze.csv").write_text(
        "a/a_t0_t5.mp4\na/a_t5_t10.mp4\nb/b_t0_t5.mp4\nz/z_t0_t5.mp4\n"
    )
    (root / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\nc/c_t0_t5.mp4\na/a_t10_t15.mp4\n")
    return root


def module(
    root: Path, kind: Callable[..., GazeDataModule] = Ego4DGazeDataModule, **options: object
) -> GazeDataModule:
    return kind(root, **{"num_workers": 0, "batch_size": 2, "spec": spec(), "strict": True, **options})


def numbers(video: torch.Tensor) -> list[int]:
    """The frame numbers that the made-up pictures (3, T, H, W) carry."""
    pictures = (video * 0.225 + 0.45).mul(255).clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    # The crop cut off some columns: put them back, so that the blocks lie where they were.
    wide = np.pad(pictures, ((0, 0), (0, 0), (4, 3), (0, 0)), mode="edge")
    return [frame_number(picture) for picture in wide]


def test_a_test_clip_of_the_original_recording_has_the_listed_frames_and_labels(ego4d: Path) -> None:
    data = module(ego4d)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    assert data.counts["test"] == {"listed": 3, "kept": 1, "too short": 2}
    seen = 150 + np.arange(22, 86, 9)
    labels = 150 + np.arange(86, 150, 9)
    assert batch["video"].shape == (1, 3, 8, 64, 64)
    assert numbers(batch["video"][0]) == seen.tolist()
    assert batch["frame"][0].tolist() == labels.tolist()
    assert batch["video_name"] == ["Ego4D/a"]
    # Frames of 80x72 become 71x64 and lose four columns on the left and three on the right.
    x, y = gaze_at(labels / 30)
    np.testing.assert_allclose(batch["gaze"][0, :, 0], (x * 71 - 4) / 64, atol=2e-3)
    np.testing.assert_allclose(batch["gaze"][0, :, 1], y, atol=1e-3)
    assert batch["gaze_type"].tolist() == [[0] * 8]
    assert batch["labelled"].all()
    torch.testing.assert_close(batch["density"], gaze_density(batch["gaze"]))


def test_only_the_observed_sound_is_heard_and_the_windows_are_the_authors(ego4d: Path) -> None:
    data = module(ego4d)
    (batch,) = list(data.test_dataloader())
    assert batch["audio"].shape == (1, 68800)  # 86 of 150 frames of five seconds
    assert batch["audio_rate"].tolist() == [24000]
    torch.testing.assert_close(batch["frame_times"][0], torch.arange(22, 86, 9).double() / 30)
    # The chirp tells the time: 200 Hz + 5800 Hz * t / 11 s, at 5 s when the segment begins.
    network = CSTS(size=(32, 32), embed_dim=8, depths=(1, 1, 1, 1), contrast="none")
    windows = network.frontend(
        batch["audio"], batch["audio_length"], batch["has_audio"], batch["frame_times"]
    )
    assert windows is not None
    heard = windows[0, 0, :, :, 128].argmax(1).double() * 24000 / 511
    centres = torch.tensor([147, 207, 267, 326, 386, 444, 444, 444]) * 120 / 24000
    torch.testing.assert_close(heard, 200 + 5800 * (5 + centres.double()) / 11, atol=60.0, rtol=0)


def test_a_whole_video_prediction_at_the_last_observed_frame_is_the_test_clips(ego4d: Path) -> None:
    torch.manual_seed(0)
    model = CSTSModule(
        size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), contrast_dim=8, spectrogram=(128, 128), hop=240
    ).eval()
    (batch,) = list(module(ego4d, spec=model.spec).test_dataloader())
    with torch.no_grad():
        expected = model(batch).saliency()[0]
    now = 150 + 85
    model.network.attention_maps = True
    (found,) = [
        r
        for r in predict_video(model, ego4d / "full_scale.gaze" / "a.mp4", stride=now, keep_aux=True)
        if r.index == now
    ]
    torch.testing.assert_close(found.map, expected, rtol=1e-3, atol=1e-6)
    assert found.map.shape == (8, 16, 16)
    np.testing.assert_allclose(found.target_times, batch["frame"][0].numpy() / 30, atol=1e-6)
    assert found.aux["spatial_correlation"].shape == (4, 2, 2)


def test_separate_sound_replaces_a_missing_track_and_missing_recordings_are_counted(ego4d: Path) -> None:
    data = module(ego4d)
    clips = {s["video_name"]: s for s in (data.train_dataset()[k] for k in range(3))}
    assert data.counts["train"] == {"listed": 4, "kept": 3, "no video": 1}
    assert any("z_t0_t5" in text for text in data.left_out.values())
    assert clips["Ego4D/b"]["has_audio"]
    assert float(clips["Ego4D/b"]["audio"].std()) == pytest.approx(0.177, abs=0.01)


def test_a_recording_without_any_sound_is_marked_as_silent(ego4d: Path, tmp_path: Path) -> None:
    for name in ("full_scale.gaze", "gaze"):
        (tmp_path / name).symlink_to(ego4d / name)
    (tmp_path / "test_ego4d_gaze.csv").write_text("b/b_t0_t5.mp4\n")
    data = module(tmp_path)
    (batch,) = list(data.test_dataloader())
    assert data.counts["test"] == {"listed": 1, "kept": 1, "without sound": 1}
    assert batch["has_audio"].tolist() == [False]
    assert not batch["audio"].any()


def test_training_clips_are_random_reproducible_and_keep_gaze_and_picture_together(ego4d: Path) -> None:
    first, again = module(ego4d).train_dataset(), module(ego4d).train_dataset()
    starts = set()
    for epoch in range(12):
        one, other = first[epoch, 1], again[epoch, 1]
        assert torch.equal(one["video"], other["video"])
        frames = one["frame"].numpy() - 150
        start = int(frames[0]) - 64
        assert 0 <= start <= 22
        assert (np.diff(frames) == 9).all()
        starts.add(start)
        torch.testing.assert_close(one["frame_times"], torch.arange(start, start + 64, 9).double() / 30)
        assert len(one["audio"]) == 68800
    assert len(starts) > 5


def test_a_training_crop_and_flip_move_the_gaze_with_the_picture() -> None:
    """A bright dot is drawn where the gaze is; it stays there through scaling, cropping and mirroring."""
    for task, limit in (("anticipation", 1.125), ("estimation", 1.25)):
        clips = GazeClips([], [], [], spec(task), EGO4D, train=True)
        images = np.zeros((1, 120, 160, 3), dtype=np.uint8)
        images[:, 88:92, 118:122] = 255
        gaze = torch.tensor([[120 / 160, 90 / 120]])
        sizes = set()
        for seed in range(20):
            video, moved = clips._augment(images, gaze, np.random.default_rng(seed))
            bright = video[0, 0] - video[0, 0].min()
            weight = bright / bright.sum()
            x = float((weight.sum(0) * (torch.arange(64) + 0.5)).sum()) / 64
            y = float((weight.sum(1) * (torch.arange(64) + 0.5)).sum()) / 64
            assert (x, y) == pytest.approx(tuple(moved[0].tolist()), abs=0.02)
            sizes.add(round(float(bright.sum()), 1))
        assert len(sizes) > 3
        assert limit > 1


def test_without_lists_recordings_are_cut_and_short_ones_are_reported(ego4d: Path, tmp_path: Path) -> None:
    for name in ("full_scale.gaze", "gaze", "missing_audio"):
        (tmp_path / name).symlink_to(ego4d / name)
    (tmp_path / "ego4d_gaze_untracked.csv").write_text("a,00:00:02,00:00:03,1\n")
    data = module(tmp_path)
    segments, _, _ = data.gaze_segments("train")
    assert [s.clip for s in segments] == ["a_t5_t10", "b_t0_t5"]
    with pytest.raises(DataError, match="test split"):
        data.gaze_segments("test")  # the last quarter is `c`, of three seconds
    assert any("shorter than a segment" in text for text in data.left_out.values())
    with pytest.raises(DataError, match="there is no such list"):
        module(tmp_path, lists=tmp_path).gaze_segments("test")


def test_gaze_outside_the_picture_and_lost_gaze_are_counted(ego4d: Path, tmp_path: Path) -> None:
    (tmp_path / "full_scale.gaze").symlink_to(ego4d / "full_scale.gaze")
    (tmp_path / "gaze").mkdir()
    times = np.arange(0, 11, 1 / 30)
    lines = ["gaze_timestamp,canonical_timestamp_s,world_index,confidence,z,norm_pos_x,norm_pos_y"]
    for k, t in enumerate(times):
        x, y = (0.0, 0.0) if k % 10 == 3 else (1.3, 0.5) if k % 10 == 4 else (0.5, 0.5)
        lines.append(f"0,{t:.5f},0,1,0,{x},{y}")
    (tmp_path / "gaze" / "a.csv").write_text("\n".join(lines))
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t0_t5.mp4\na/a_t5_t10.mp4\n")
    data = module(tmp_path)
    # The frame after one outside is a jump back: a saccade.
    assert data.gaze_counts("test") == {"fixation": 210, "saccade": 30, "outside": 30, "untracked": 30}
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch["labelled"], batch["gaze_type"] != 3)
    assert set(batch["gaze_type"].flatten().tolist()) == {0, 1, 2, 3}


def test_gaze_on_another_clock_stops_with_the_reason(ego4d: Path, tmp_path: Path) -> None:
    (tmp_path / "full_scale.gaze").symlink_to(ego4d / "full_scale.gaze")
    (tmp_path / "gaze").mkdir()
    ego4d_csv(tmp_path / "gaze" / "a.csv", 11, offset=1000.0)
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\n")
    with pytest.raises(DataError, match=r"Ego4D/a_t5_t10: .*different clocks"):
        next(iter(module(tmp_path).test_dataloader()))


def test_validation_takes_the_test_list_or_held_out_recordings(ego4d: Path) -> None:
    assert [s.clip for s in module(ego4d).gaze_segments("val")[0]] == ["a_t5_t10"]
    data = module(ego4d, val_fraction=0.4, strict=False)
    train, val = (({s.video for s in data._list_of(split)}) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_the_module_trains_and_tests_on_the_data(ego4d: Path, tmp_path: Path) -> None:
    import lightning as L

    torch.manual_seed(0)
    model = CSTSModule(
        size=(64, 64),
        embed_dim=8,
        depths=(1, 1, 1, 1),
        contrast_dim=8,
        spectrogram=(128, 128),
        hop=240,
        drop_path=0.0,
    )
    data = module(ego4d, spec=None)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)
    results = trainer.test(model, data, verbose=False)[0]
    assert 0 <= results["test/f1"] <= 1
    assert model.metrics("test").frames_used() == {"frames": 8, "frames_f1": 8, "videos": 1}
    assert len(model.metrics("test").per_step()) == 8


# -- the authors' pre-processed layout -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of Ego4D and one of Aria after the authors' scripts."""
    root = tmp_path_factory.mktemp("clips")
    sweep = signal.chirp(np.arange(5 * 24000) / 24000, 200, 5, 6000)[None].astype(np.float32) / 2
    for dataset, folder, video, clip, fps, start in (
        ("ego4d", "clips.gaze", "a", "a_t5_t10", 30, 5), ("aria", "clips", "movie_7", "movie_7_t2_t6", 20, 2),
    ):  # fmt: skip
        base = root / dataset
        for part in (
            f"{folder}/{video}",
            f"clips.audio_24kHz/{video}",
            f"clips.audio_24kHz_stft/{video}",
            "gaze_frame_label",
        ):
            (base / part).mkdir(parents=True)
        write_clip(base / folder / video / f"{clip}.mp4", frames=5 * fps, fps=fps, height=64, width=64)
        write_clip(
            base / "clips.audio_24kHz" / video / f"{clip}.wav",
            frames=0,
            sound=sweep,
            rate=24000,
            audio_codec="pcm_s16le",
        )
        network = CSTS(size=(32, 32), embed_dim=8, depths=(1, 1, 1, 1), contrast="none")
        stored = network.windows.spectrogram(torch.from_numpy(np.round(sweep * 32768) / 32768))[
            0, :, :1000
        ].numpy()
        np.save(base / "clips.audio_24kHz_stft" / video / f"{clip}.npy", stored)
        frames = np.arange((start + 5) * fps)
        x, y = gaze_at(frames / fps)
        kinds = np.where(frames % 7 == 0, 1, 0)
        lines = [f"{f},{a:.6f},{b:.6f},{k}" for f, a, b, k in zip(frames, x, y, kinds, strict=True)]
        header = "frame,x,y,gaze_type"
        if dataset == "aria":
            header = "frame,timestamps_ns,x,y,gaze_type"
            lines = [line.replace(",", f",{k * 50_000_000},", 1) for k, line in enumerate(lines)]
        name = f"{video}_frame_label.csv" if dataset == "ego4d" else f"{video}.csv"
        (base / "gaze_frame_label" / name).write_text("\n".join([header, *lines]))
        (base / f"test_{dataset}_gaze.csv").write_text(f"{video}/{clip}.mp4\n")
    return root


@pytest.mark.parametrize("task", ["anticipation", "estimation"])
@pytest.mark.parametrize(("dataset", "fps", "start"), [("ego4d", 30, 5), ("aria", 20, 2)])
def test_pre_processed_clips_give_frames_labels_and_sound(
    clips: Path, dataset: str, fps: int, start: int, task: str
) -> None:
    kind = Ego4DGazeDataModule if dataset == "ego4d" else AriaGazeDataModule
    protocol = EGO4D if dataset == "ego4d" else ARIA
    data = module(clips / dataset, kind, spec=spec(task, dataset))
    (batch,) = list(data.test_dataloader())
    first = protocol.starts(8, task == "anticipation")[1]
    seen = first + protocol.spacing * np.arange(8)
    pictures = (batch["video"][0] * 0.225 + 0.45).mul(255).clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    assert [frame_number(p) for p in pictures] == seen.tolist()  # numbered from the clip's start
    labels = start * fps + protocol.labels(first, 8, task == "anticipation")
    assert batch["frame"][0].tolist() == labels.tolist()
    np.testing.assert_allclose(batch["gaze"][0, :, 0], gaze_at(labels / fps)[0], atol=1e-5)
    assert batch["gaze_type"][0].tolist() == [int(f % 7 == 0) for f in labels]
    observed = protocol.seen(task == "anticipation") / fps
    assert batch["audio"].shape == (1, round(observed * 24000))


@pytest.mark.parametrize("dataset", ["ego4d", "aria"])
def test_stored_spectrograms_give_the_same_windows_as_the_sound(clips: Path, dataset: str) -> None:
    kind = Ego4DGazeDataModule if dataset == "ego4d" else AriaGazeDataModule
    network = CSTS(timing=dataset, size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), contrast="none")  # type: ignore[arg-type]
    (heard,) = list(module(clips / dataset, kind, spec=network.spec).test_dataloader())
    (stored,) = list(
        module(clips / dataset, kind, spec=network.spec, stored_spectrograms=True).test_dataloader()
    )
    assert stored["spectrogram"].shape == (1, 256, 573 if dataset == "ego4d" else 600)
    assert "audio" not in stored
    expected = network.frontend(
        heard["audio"], heard["audio_length"], heard["has_audio"], heard["frame_times"]
    )
    found = network.windows.cut(
        stored["spectrogram"], stored["columns"], stored["seconds"], stored["frame_times"]
    )
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=1e-3)


def test_video_ids_have_the_names_of_the_batches(ego4d: Path, tmp_path: Path) -> None:
    for name in ("full_scale.gaze", "gaze", "missing_audio"):
        (tmp_path / name).symlink_to(ego4d / name)
    # The order of first use is not that of the names.
    (tmp_path / "test_ego4d_gaze.csv").write_text("b/b_t0_t5.mp4\na/a_t5_t10.mp4\na/a_t0_t5.mp4\n")
    data = module(tmp_path)
    (first, second) = list(data.test_dataloader())
    ids = [*first["video_id"].tolist(), *second["video_id"].tolist()]
    names = data.video_names("test")
    assert (
        [names[k] for k in ids]
        == [*first["video_name"], *second["video_name"]]
        == ["Ego4D/b", "Ego4D/a", "Ego4D/a"]
    )
    assert sorted(names) == [0, 1]


def chirp_windows(batch: dict, network: CSTS) -> torch.Tensor:
    """The frequency in Hz that each window's middle column of a batch's first clip is loudest at."""
    if "spectrogram" in batch:
        windows = network.windows.cut(
            batch["spectrogram"], batch["columns"], batch["seconds"], batch["frame_times"]
        )
    else:
        windows = network.frontend(
            batch["audio"], batch["audio_length"], batch["has_audio"], batch["frame_times"]
        )
    return windows[0, 0, :, :, 128].argmax(1).double() * 24000 / 511


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("place", ["missing_audio/a.wav", "clips.audio_24kHz/a.wav", None])
def test_sound_of_a_whole_recording_is_cut_at_the_clip(
    clips: Path, tmp_path: Path, place: str | None, stored: bool
) -> None:
    (tmp_path / "clips.gaze" / "a").mkdir(parents=True)
    (tmp_path / "gaze_frame_label").symlink_to(clips / "ego4d" / "gaze_frame_label")
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\n")
    video = clips / "ego4d" / "clips.gaze" / "a" / "a_t5_t10.mp4"
    (tmp_path / "clips.gaze" / "a" / "a_t5_t10.mp4").symlink_to(video)
    if place is not None:
        (tmp_path / place).parent.mkdir()
        sweep = signal.chirp(np.arange(11 * 24000) / 24000, 200, 11, 6000)[None].astype(np.float32) / 2
        write_clip(tmp_path / place, frames=0, sound=sweep, rate=24000, audio_codec="pcm_s16le")
    network = CSTS(size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), contrast="none")
    data = module(tmp_path, spec=network.spec, stored_spectrograms=stored)
    (batch,) = list(data.test_dataloader())
    assert ("spectrogram" in batch) == stored
    assert batch["has_audio"].tolist() == [place is not None]
    if place is None:
        assert data.counts["test"] == {"listed": 1, "kept": 1, "without sound": 1}
        sound = batch["spectrogram"].double() - np.log(1e-6) if stored else batch["audio"]
        assert float(sound.abs().max()) < 1e-6
        return
    assert data.counts["test"] == {"listed": 1, "kept": 1}
    # The chirp tells the time: 200 Hz + 5800 Hz * t / 11 s, at 5 s when the clip begins.
    centres = torch.tensor([147, 207, 267, 326, 386, 444, 444, 444]) * 120 / 24000
    torch.testing.assert_close(
        chirp_windows(batch, network), 200 + 5800 * (5 + centres.double()) / 11, atol=60.0, rtol=0
    )


def test_spectrograms_are_computed_as_the_authors_store_them(clips: Path, tmp_path: Path) -> None:
    """A recording whose sound lies apart has none stored; the same sound as a clip has one, from the network's code."""
    (tmp_path / "clips.gaze").symlink_to(clips / "ego4d" / "clips.gaze")
    (tmp_path / "gaze_frame_label").symlink_to(clips / "ego4d" / "gaze_frame_label")
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\n")
    (tmp_path / "missing_audio").mkdir()
    sweep = signal.chirp(np.arange(5 * 24000) / 24000, 200, 5, 6000)[None].astype(np.float32) / 2
    whole = np.concatenate([np.zeros((1, 5 * 24000), np.float32), sweep], 1)
    write_clip(
        tmp_path / "missing_audio" / "a.wav", frames=0, sound=whole, rate=24000, audio_codec="pcm_s16le"
    )
    (ours,) = list(module(tmp_path, stored_spectrograms=True).test_dataloader())
    (theirs,) = list(module(clips / "ego4d", stored_spectrograms=True).test_dataloader())
    assert ours["columns"].tolist() == theirs["columns"].tolist() == [573]
    torch.testing.assert_close(
        ours["spectrogram"][..., 2:], theirs["spectrogram"][..., 2:], atol=5e-3, rtol=1e-3
    )
    # A clip with sound of its own and no stored spectrogram is left out as before.
    for name in ("clips.gaze", "gaze_frame_label", "clips.audio_24kHz", "test_ego4d_gaze.csv"):
        (tmp_path / "own" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "own" / name).symlink_to(clips / "ego4d" / name)
    with pytest.raises(DataError, match="1 no stored spectrogram"):
        module(tmp_path / "own", stored_spectrograms=True).test_dataloader()


def test_swapped_sound_is_that_of_another_recording(ego4d: Path, tmp_path: Path) -> None:
    for name in ("full_scale.gaze", "gaze", "missing_audio"):
        (tmp_path / name).symlink_to(ego4d / name)
    (tmp_path / "test_ego4d_gaze.csv").write_text("b/b_t0_t5.mp4\na/a_t5_t10.mp4\n")
    (own,) = list(module(tmp_path).test_dataloader())
    (other,) = list(module(tmp_path, swap_sound=True).test_dataloader())
    for key in ("video", "gaze", "density", "frame", "video_id"):
        assert torch.equal(own[key], other[key])
    assert not torch.equal(own["audio"][0], own["audio"][1])
    assert torch.equal(other["audio"], own["audio"].flip(0))
    # One recording only: another clip of it. One clip only: an error.
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\na/a_t0_t5.mp4\n")
    (own,) = list(module(tmp_path).test_dataloader())
    (other,) = list(module(tmp_path, swap_sound=True).test_dataloader())
    assert torch.equal(other["audio"], own["audio"].flip(0))
    (tmp_path / "test_ego4d_gaze.csv").write_text("a/a_t5_t10.mp4\n")
    with pytest.raises(ConfigError, match="two are needed"):
        module(tmp_path, swap_sound=True).test_dataloader()
    # Clips without sound neither give nor take any.
    (tmp_path / "missing_audio").unlink()
    (tmp_path / "test_ego4d_gaze.csv").write_text("b/b_t0_t5.mp4\na/a_t5_t10.mp4\na/a_t0_t5.mp4\n")
    batches = list(module(tmp_path, swap_sound=True).test_dataloader())
    assert [b["has_audio"].tolist() for b in batches] == [[False, True], [True]]


def test_an_evaluation_with_other_sound_lets_the_data_set_swap_it(ego4d: Path, tmp_path: Path) -> None:
    from avsal.evaluation.testing import evaluate

    for name in ("full_scale.gaze", "gaze", "missing_audio"):
        (tmp_path / name).symlink_to(ego4d / name)
    (tmp_path / "test_ego4d_gaze.csv").write_text("b/b_t0_t5.mp4\na/a_t5_t10.mp4\n")
    torch.manual_seed(0)
    network = CSTSModule(size=(64, 64), embed_dim=8, depths=(1, 1, 1, 1), init_std=0.3)
    cpu = {"accelerator": "cpu", "devices": 1}
    found = {}
    for name, swap, sound in (("own", False, "own"), ("asked", False, "swapped"), ("data", True, "own")):
        data = module(tmp_path, swap_sound=swap)
        done = evaluate(network, data, checkpoint="x", work=tmp_path / name, sound=sound, trainer=cpu)  # type: ignore[arg-type]
        assert done is not None
        found[name] = done
    assert found["asked"].metrics == found["data"].metrics
    assert found["asked"].videos == found["data"].videos != found["own"].videos
    assert [found[name].protocol["sound"] for name in found] == ["own", "swapped", "swapped"]


# -- Aria recordings -----------------------------------------------------------------------------------------


def test_a_real_recordings_pictures_sound_and_gaze_are_those_of_the_official_tools(real_data: Path) -> None:
    from PIL import Image
    from scipy.io import wavfile

    folder = real_data / "gaze" / "aria_aea_sample"
    recording = AriaRecording(folder / "recording.vrs")
    derived = list(csv.DictReader(open(folder / "derived" / "gaze_frames.csv")))  # noqa: SIM115
    assert recording.timestamps.tolist() == [int(row["rgb_timestamp_ns"]) for row in derived]
    assert (recording.fps, recording.size, len(recording)) == (20.0, (1408, 1408), 8)
    gaze = recording.gaze(folder / "general_eye_gaze.csv")
    # The table has the points of the 10 Hz samples; the pictures between two of them lie on a line.
    samples = sorted(
        {(float(r["gaze_timestamp_ns"]), r["x_upright_norm"], r["y_upright_norm"]) for r in derived}
    )
    at, x, y = (np.array(column, dtype=float) for column in zip(*samples, strict=True))
    assert len(at) == 4
    np.testing.assert_allclose(gaze[:, 1], np.interp(recording.timestamps, at, x), atol=1e-7)
    np.testing.assert_allclose(gaze[:, 2], np.interp(recording.timestamps, at, y), atol=1e-7)
    assert np.abs(gaze[2, 1] - x).min() > 0.02  # not one of the samples themselves
    assert not gaze[:, 3].any()
    small = Image.fromarray(recording.read([3])[0]).resize((704, 704), Image.Resampling.BILINEAR)
    with Image.open(folder / "derived" / "frames" / "img_00004.jpg") as image:
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(small, dtype=float)).mean() < 3
    rate, heard = wavfile.read(folder / "derived" / "mic_mono_48k_s16.wav")
    sound = recording.sound()
    times = json.loads((folder / "derived" / "times.json").read_text())
    begin = round((times["audio_first_sample_ns"] - recording.timestamps[0]) / 1e9 * rate)
    assert sound.rate == rate
    np.testing.assert_allclose(sound.read(begin, begin + len(heard)).numpy(), heard / 32768, atol=5e-5)
    assert not sound.read(0, begin).any()
    assert not sound.read(sound.length, sound.length + 50).any()
    gone = recording.gaze(folder / "general_eye_gaze.csv", max_gap=0.01)
    assert gone[:, 3].tolist() == [3, 0, 3, 0, 3, 0, 3, 0]  # gaze at 10 Hz, pictures at 20


class Glasses(AriaRecording):
    """Aria glasses whose gaze samples meet the picture at given points, at 0, 0.1, 0.2 … s."""

    points: NDArray[np.float64]
    start = 0.0

    @property
    def times(self) -> NDArray[np.float64]:
        return np.arange(14) / 20 - 1e-6  # just before the middle, so that it is clear which sample is nearer

    def project(self, table: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.points[:, 0], self.points[:, 1]


def test_aria_gaze_is_averaged_between_neighbours_that_are_tracked_and_near(tmp_path: Path) -> None:
    nan = float("nan")
    recording = Glasses(tmp_path)
    recording.points = np.array(
        [[0.1, 0.5], [0.3, 0.7], [nan, nan], [0.5, 0.5], [nan, nan], [0.6, 0.5], [1.2, 0.5]]
    )
    yaw = ["0.1", "0.1", "", "0.1", "0.1", "0.1", "0.1"]  # the third is lost, the fifth misses the picture
    times = [0, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000]
    lines = [f"{t},{a},0.1" for t, a in zip(times, yaw, strict=True)]
    path = tmp_path / "gaze.csv"
    path.write_text("\n".join(["tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf", *lines]))
    found = recording.gaze(path)
    expected = [0.1, 0.2, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.9, 1.0, 1.0]
    kinds = [0, 0, 0, 0, 3, 3, 0, 0, 2, 2, 0, 0, 2, 2]
    assert found[:, 3].tolist() == kinds
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-4)
    assert found[1, 2] == pytest.approx(0.6, abs=1e-4)
    held = recording.gaze(path, max_gap=0.06)  # the neighbours are farther apart: nothing lies between them
    np.testing.assert_allclose(held[:4, 1], [0.1, 0.1, 0.3, 0.3], atol=1e-9)


@pytest.mark.parametrize(
    ("path", "size", "turns"),
    [
        ("aria_aea_sample/recording.vrs", (1408, 1408), -1),
        ("aria_mps_sample/gen2/aria_gen2_unit_test_sequence_with_bluetooth.vrs", (1512, 2016), 0),
    ],
)
def test_pictures_and_gaze_of_both_generations_of_glasses_are_upright(
    real_data: Path, path: str, size: tuple[int, int], turns: int
) -> None:
    from projectaria_tools.core import data_provider

    recording = AriaRecording(real_data / "gaze" / path)
    assert recording.size == size
    provider = data_provider.create_vrs_data_provider(str(recording.path))
    stream = provider.get_stream_id_from_label("camera-rgb")
    stored = provider.get_image_data_by_index(stream, 1)[0].to_numpy_array()
    np.testing.assert_array_equal(recording.read([1])[0], np.rot90(stored, turns))
    assert recording.has_audio
    # Ahead, to the wearer's left, to the right, up and down (yaw counts to the left, pitch upwards).
    yaw, pitch = np.array([0, 0.3, -0.3, 0, 0]), np.array([-0.2, -0.2, -0.2, 0.1, -0.5])
    x, y = recording.project(
        GazeTable(recording.path, np.arange(5) / 10, yaw, pitch, "angles", units="radians")
    )
    assert x[1] < x[0] - 0.1
    assert x[2] > x[0] + 0.1
    assert y[3] < y[0] - 0.1
    assert y[4] > y[0] + 0.1
    assert np.abs(y[:3] - y[0]).max() < 0.05
    assert np.abs(x[[0, 3, 4]] - x[0]).max() < 0.05


def test_a_real_recording_shorter_than_a_segment_is_left_out_and_said(
    real_data: Path, tmp_path: Path
) -> None:
    sample = real_data / "gaze" / "aria_aea_sample"
    (tmp_path / "loc1_script1_seq1_rec1" / "mps" / "eye_gaze").mkdir(parents=True)
    (tmp_path / "loc1_script1_seq1_rec1" / "recording.vrs").symlink_to(sample / "recording.vrs")
    (tmp_path / "loc1_script1_seq1_rec1" / "mps" / "eye_gaze" / "general_eye_gaze.csv").symlink_to(
        sample / "general_eye_gaze.csv"
    )
    lists = real_data / "fold_lists" / "csts"
    name = read_names(lists / "aria_video_ids_matching.xlsx")["loc1_script1_seq1_rec1"]
    split = "test" if any(s.video == name for s in read_segments(lists / "test_aria_gaze.csv")) else "train"
    data = module(tmp_path, AriaGazeDataModule, lists=lists, spec=spec(timing="aria"))
    item = data.recording(name)  # found under its current name
    assert item is not None
    labels = item.open().labels
    assert labels.shape == (8, 3)
    np.testing.assert_allclose(labels[:, 0], item.open_frames().gaze(item.gaze_file)[:, 1])
    with pytest.raises(DataError, match="too short"):
        data.gaze_segments(split)  # type: ignore[arg-type]
    assert data.counts[split]["too short"] > 50


def test_recordings_without_a_microphone_are_counted(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = real_data / "gaze" / "aria_aea_sample"
    for name in ("heard", "mute"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recording.vrs").symlink_to(sample / "recording.vrs")
        (tmp_path / name / "general_eye_gaze.csv").symlink_to(sample / "general_eye_gaze.csv")
    (tmp_path / "test_aria_gaze.csv").write_text("heard/heard_t0_t4.mp4\nmute/mute_t0_t4.mp4\n")
    stream = AriaRecording._stream

    def without(self: AriaRecording, label: str) -> object:
        return None if label == "mic" and "mute" in str(self.path) else stream(self, label)

    monkeypatch.setattr(AriaRecording, "_stream", without)
    monkeypatch.setattr("avsal.data.sets.egocentric._duration", lambda item: 5.0)
    data = module(tmp_path, AriaGazeDataModule, spec=spec(timing="aria"))
    _, items, _ = data.gaze_segments("test")
    assert [item.silent for item in items] == [False, True]
    assert data.counts["test"] == {"listed": 2, "kept": 2, "without sound": 1}


@pytest.mark.parametrize("ask", [len, lambda r: r.timestamps, lambda r: r.size, lambda r: r.sound()])
def test_reading_vrs_without_the_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[AriaRecording], object]
) -> None:
    import sys

    # As on a machine without the package, whatever an earlier test has imported.
    for name in [name for name in sys.modules if name.partition(".")[0] == "projectaria_tools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "projectaria_tools", None)
    with pytest.raises(DataError, match=r"avsal\[aria\]"):
        ask(AriaRecording(tmp_path / "recording.vrs"))
