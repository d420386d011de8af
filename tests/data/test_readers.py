"""Each format in miniature, exactly as published, and the real recordings where they are given."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from avsal.data.fixations import FixationTable, density_from_fixations
from avsal.data.readers import points_order, read_point_lists
from avsal.data.sets.audiovisual import DIEMDataModule
from avsal.data.sets.crowdsal import AViMoSDataModule, CrowdSALDataModule
from avsal.data.sets.dhf1k import DHF1KDataModule, UCFSportsDataModule
from avsal.data.sets.diem_events import read_diem_events, size_in_name
from avsal.data.sets.folder import FolderDataModule
from avsal.data.sets.salicon import MIT1003DataModule, SALICONDataModule
from avsal.data.sets.video_database import (
    HEVC33DataModule,
    LEDOVDataModule,
    MVVADataModule,
    read_points_npy,
    read_video_database,
    spread_fixations,
)
from avsal.errors import ConfigError, DataError
from avsal.types import AudioSpec, ClipSpec
from tests.media import frame_number, picture, write_clip

SPEC = ClipSpec(frames=4, size=(48, 64), target="last")
HEARING = ClipSpec(frames=4, size=(48, 64), target="last", audio=AudioSpec(None))


# -- densities ---------------------------------------------------------------------------------------------


def test_a_density_is_the_sum_of_gaussians():
    points = np.array([[10, 20], [10, 20], [30, 5]])
    y, x = np.mgrid[:40, :50]
    expected = sum(np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * 3.0**2)) for r, c in points)
    np.testing.assert_allclose(
        density_from_fixations(points, (40, 50), 3.0), expected / expected.max(), atol=1e-6
    )
    assert density_from_fixations(points[:0], (4, 5), 3.0).sum() == 0


def test_points_outside_the_picture_are_dropped_and_counted():
    table = FixationTable.build([2, 0, 0, 1], [5, -1, 3.7, np.nan], [1, 1, 2.2, 1], [7, 8, 9, 9], (4, 6))
    assert table.outside == 2
    assert table.at(0)[0].tolist() == [[2, 3]]
    assert table.at(0)[1].tolist() == [9]
    assert table.labelled.tolist() == [True, False, True]


# -- video_database.mat ------------------------------------------------------------------------------------


def _database(root: Path, version: str) -> None:
    """Two videos of 96x64 source pixels, whose files are half as large; three observers; one NaN row."""
    fixdata = np.array(
        [
            [1, 1, 0, 200, 20.5, 10.0],
            [2, 1, 90, 100, 60, 40],
            [3, 2, 500, 300, 50, 30],
            [3, 2, 1, np.nan, 5, 5],
        ]
    )
    names, size = ["one", "two"], np.array([[96.0, 64.0], [96.0, 64.0]])
    if version == "v5":
        info = {
            "name_list": np.array(names, dtype=object), "size": size, "frames": np.array([25.0, 25.0]),
            "framerate_fps": np.array([23.0, 23.0]), "class": np.array(["A", "A"], dtype=object),
        }  # fmt: skip
        savemat(
            root / "video_database.mat",
            {
                "video_database": {
                    "videos_info": info,
                    "video_names_list": np.array(names, dtype=object),
                    "fixdata": fixdata,
                }
            },
        )
    else:
        with h5py.File(root / "video_database.mat", "w", userblock_size=512) as file:
            top = file.create_group("video_database")
            info = top.create_group("videos_info")

            def put(group, name, data, kind):
                group.create_dataset(name, data=data).attrs["MATLAB_class"] = np.bytes_(kind)

            put(top, "fixdata", fixdata.T, "double")
            put(info, "size", size.T, "double")
            put(info, "frames", np.array([[25.0, 25.0]]), "double")
            cells = []
            for k, name in enumerate(names):
                put(file, f"#refs#/{k}", np.array([[ord(c)] for c in name], dtype=np.uint16), "char")
                cells.append(file[f"#refs#/{k}"].ref)
            for group, label in ((top, "video_names_list"), (info, "name_list")):
                data = group.create_dataset(
                    label, data=np.array([cells], dtype=h5py.ref_dtype).T, dtype=h5py.ref_dtype
                )
                data.attrs["MATLAB_class"] = np.bytes_("cell")
    for name in names:
        write_clip(root / f"{name}.mp4", frames=25, fps=25, height=32, width=48)


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_both_versions_of_a_video_database_are_one(tmp_path, version):
    _database(tmp_path, version)
    content = read_video_database(tmp_path / "video_database.mat")
    assert content.names == ("one", "two")
    assert content.sizes == ((64, 96), (64, 96))
    assert content.frames == (25, 25)
    assert content.dropped == 1
    item = next(i for i in HEVC33DataModule(tmp_path).all_items() if i.name == "HEVC33/one").counted()
    assert (item.frames, item.fps) == (25, 25.0)
    annotation = item.open().annotation
    # On the file's grid, which is half the source's. 0..200 ms at 25 fps: frames 1..5; 90..190 ms: 3..5.
    seen = {k: sorted(zip(*map(np.ndarray.tolist, annotation.fixations(k)), strict=True)) for k in range(6)}
    assert seen[0] == [([5, 10], 1)]
    assert seen[2] == [([5, 10], 1), ([20, 30], 2)]
    assert seen[4] == [([5, 10], 1), ([20, 30], 2)]
    assert seen[5] == []


def test_fixations_cover_the_frames_that_the_publishers_formula_says():
    times = np.arange(300) / 23.976
    random = np.random.default_rng(0)
    rows = np.column_stack(
        [np.ones(50), random.integers(1, 9000, 50), random.integers(50, 900, 50), np.ones(50), np.ones(50)]
    )
    dt = 1000 / 23.976
    for row in rows:
        table = spread_fixations(row[None], times, (4, 4))
        first, last = int(np.ceil(row[1] / dt)), int(np.ceil((row[1] + row[2]) / dt))
        assert table.frame.tolist() == list(range(first - 1, min(last, 300)))


def test_the_real_hevc33_database_agrees_with_its_table(real_data):
    root = real_data / "gaze" / "hevc33"
    content = read_video_database(root / "video_database.mat")
    assert len(content.names) == 33
    with open(root / "fixations.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["video"] == "Johnny"]
    mine = content.of("Johnny")
    assert len(mine) == len(rows)
    expected = sorted(
        (int(r["observer"]), float(r["start_ms"]), float(r["x_px"]), float(r["y_px"])) for r in rows
    )
    assert sorted((int(o), t, x, y) for o, t, _, x, y in mine) == expected
    data = HEVC33DataModule(root, spec=SPEC, num_workers=0, eval_batch_size=4)
    splits = [{i.name for i in data.split_items(s)} for s in ("train", "val", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 33
    for group in (
        {"HEVC33/BasketballDrill", "HEVC33/BasketballDrillText"},
        {"HEVC33/RaceHorsesC", "HEVC33/RaceHorsesD"},
    ):
        assert sum(bool(group & part) for part in splits) == 1
    tested = set()
    for fold in range(1, 6):
        tested |= {i.name for i in HEVC33DataModule(root, fold=fold).items("test")}
    assert len(tested) == 33
    batch = data.eval_dataset("test")[3]
    assert batch["labelled"].all()
    assert batch["density"].shape[1:] == (1, 234, 416)
    assert len(batch["observer"][0].unique()) > 15


def test_ledov_folders_and_mvva_arrays_are_read(tmp_path):
    folder = tmp_path / "ledov" / "animal_alpaca01"
    folder.mkdir(parents=True)
    write_clip(folder / "animal_alpaca01.mp4", frames=10, fps=25)
    savemat(folder / "Data.mat", {"Data": {"fixdata": np.array([[1.0, 40, 80, 12, 7], [2, 0, 400, 30, 20]])}})
    item = LEDOVDataModule(tmp_path / "ledov").all_items()[0]
    assert item.open().annotation.fixations(1)[0].tolist() == [[7, 12], [20, 30]]
    mvva = tmp_path / "mvva"
    (mvva / "all_videos_all_frames_fixation").mkdir(parents=True)
    (mvva / "our_database_video").mkdir()
    write_clip(mvva / "our_database_video" / "001.avi", frames=3, fps=25, codec="mpeg4")
    frames = np.empty(3, dtype=object)
    for k in range(3):
        frames[k] = np.array([[10.0 * k + 1, 5.0]] * k).reshape(-1, 2)
    np.save(mvva / "all_videos_all_frames_fixation" / "001.npy", frames, allow_pickle=True)
    opened = MVVADataModule(mvva).all_items()[0].open().annotation
    assert [len(opened.fixations(k)[0]) for k in range(3)] == [0, 1, 2]
    assert opened.fixations(2)[0].tolist() == [[5, 21], [5, 21]]


def test_an_array_file_that_carries_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    array = np.empty(1, dtype=object)
    array[0] = Evil()
    np.save(tmp_path / "001.npy", array, allow_pickle=True)
    assert pickle.PROTO in (tmp_path / "001.npy").read_bytes()
    with pytest.raises(DataError, match=r"001.npy"):
        read_points_npy(tmp_path / "001.npy")
    assert not (tmp_path / "ran").exists()


# -- raw recordings ----------------------------------------------------------------------------------------


def test_diem_events_are_moved_from_the_screen_to_the_video(tmp_path):
    rows = [
        (1, 640, 480, 900, 1, 660, 500, 900, 1),  # both eyes
        (2, 700, 480, 900, 1, 0, 0, 0, 0),  # left only
        (3, 640, 480, 900, 2, 640, 480, 900, 2),  # saccade
        (4, 0, 0, 0, -1, 100, 130, 900, 1),  # right only
    ]
    path = tmp_path / "diem1s1.asc_1_clip_1280x720.txt"
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows))
    frames, points = read_diem_events(path, (720, 1280))
    assert frames.tolist() == [0, 1, 3]
    assert points.tolist() == [[650, 370], [700, 360], [100, 10]]
    assert read_diem_events(path, (720, 1280), eyes="left")[0].tolist() == [0, 1]
    assert read_diem_events(path, (720, 1280), eyes="right")[1].tolist() == [[660, 380], [100, 10]]
    assert len(read_diem_events(path, (720, 1280), eyes="both")[0]) == 4
    with pytest.raises(ConfigError, match="eyes"):
        read_diem_events(path, (720, 1280), eyes="third")
    path.write_text("1\t2\t3\n")
    with pytest.raises(DataError, match="9 columns"):
        read_diem_events(path, (720, 1280))


def test_the_published_diem_folder_is_a_data_set(tmp_path):
    for name in ("a_64x48", "b_64x48"):
        folder = tmp_path / name
        (folder / "video").mkdir(parents=True)
        (folder / "event_data").mkdir()
        write_clip(folder / "video" / f"{name}.mp4", frames=12, fps=30)
        for observer in range(2):
            x, y = 640 - 32 + 10, 480 - 24 + 20 + observer
            text = "".join(f"{k + 1}\t{x}\t{y}\t900\t1\t{x}\t{y}\t900\t1\n" for k in range(12))
            (folder / "event_data" / f"diem1s{observer}.asc_4_{name}.txt").write_text(text)
    data = DIEMDataModule(tmp_path, gaze="events", spec=SPEC, num_workers=0, flip=0.0)
    items = [item for split in ("train", "test") for item in data.split_items(split)]
    assert {i.name for i in items} == {"DIEM/a_64x48", "DIEM/b_64x48"}
    points, observers = items[0].open().annotation.fixations(3)
    assert points.tolist() == [[20, 10], [21, 10]]
    assert observers.tolist() == [0, 1]


def test_real_diem_events_lie_in_the_video(real_data):
    files = sorted((real_data / "gaze" / "diem_events_sample").glob("*.txt"))
    files = [f for f in files if f.name.startswith("diem")]
    assert len(files) == 6
    size = size_in_name(files[0].stem)
    assert size == (720, 1280)
    inside = []
    for path in files:
        frames, points = read_diem_events(path, size)
        assert frames.max() < 3667
        inside.append(((points >= 0) & (points < (1280, 720))).all(1).mean())
    assert np.mean(inside) > 0.97  # with the letter box's offset; 120 pixels off it would be 90 %


# -- silent sets and images --------------------------------------------------------------------------------


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("form", ["video", "images"])
def test_dhf1k_is_read_from_videos_and_from_images(tmp_path, form):
    for number in (1, 650):
        folder = tmp_path / "annotation" / f"{number:04d}"
        for k in range(8):
            grey = np.zeros((48, 64), np.uint8)
            grey[10, k] = 255
            _png(folder / "maps" / f"{k + 1:04d}.png", grey // 2)
            _png(folder / "fixation" / f"{k + 1:04d}.png", grey)
            if form == "images":
                _png(tmp_path / "images" / f"{number:03d}" / f"{k + 1:04d}.png", picture(k))
        if form == "video":
            (tmp_path / "video").mkdir(exist_ok=True)
            write_clip(tmp_path / "video" / f"{number:03d}.AVI", frames=8, fps=30, codec="mpeg4")
    data = DHF1KDataModule(tmp_path, spec=HEARING, num_workers=0, flip=0.0)
    assert [i.name for i in data.split_items("train")] == ["DHF1K/001"]
    assert [i.name for i in data.split_items("test")] == ["DHF1K/650"]
    sample = data.train_dataset()[0, 0]
    target = int(sample["frame"])
    assert sample["fixations"][0].tolist() == [[10, target]]
    assert frame_number(sample["video"][:, -1].permute(1, 2, 0).numpy() * 255) == target
    assert sample["has_audio"] is False
    assert not sample["audio"].any()
    assert len(data.left_out) > 600  # every missing video is named


def test_ucf_sports_frames_keep_their_own_numbers(tmp_path):
    for split, clip in (("training", "Diving-001"), ("training", "Golf-002"), ("testing", "Kicking-003")):
        for number in (3, 4, 6, 9):  # numbering neither from 1 nor without gaps
            folder = tmp_path / split / clip
            grey = np.zeros((48, 64), np.uint8)
            grey[7, number] = 255
            _png(folder / "images" / f"{clip}_{number:03d}.png", picture(number))
            _png(folder / "maps" / f"{clip}_{number:03d}.png", grey)
            _png(folder / "fixation" / f"{clip}_{number:03d}.png", grey)
    data = UCFSportsDataModule(tmp_path, spec=SPEC, num_workers=0, eval_batch_size=4)
    batch = data.eval_dataset("test")[0]
    assert batch["fixations"][:, 0, 0].tolist() == [[7, 3], [7, 4], [7, 6], [7, 9]]
    assert {len(data.split_items(s)) for s in ("train", "val", "test")} == {1}


def test_salicon_keeps_observers_and_takes_negatives_from_other_images(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for k in range(count):
            stem = f"COCO_{part}2014_{k:012d}"
            _png(tmp_path / "images" / f"{stem}.jpg", picture(k))
            _png(tmp_path / "maps" / part / f"{stem}.png", np.full((48, 64), 30 + k, np.uint8))
            gaze = np.empty(2, dtype=[("location", object), ("timestamp", object), ("fixations", object)])
            for observer in range(2):
                gaze[observer] = (
                    np.zeros((0, 2)),
                    np.zeros(0),
                    np.array([[k + 1.0, 2 + observer], [64, 48]]),
                )
            (tmp_path / "fixations" / part).mkdir(parents=True, exist_ok=True)
            savemat(
                tmp_path / "fixations" / part / f"{stem}.mat",
                {"image": stem, "resolution": [48, 64], "gaze": gaze},
            )
    data = SALICONDataModule(tmp_path, spec=SPEC, num_workers=0)
    batch = data.eval_dataset("test")[0]
    assert batch["fixations"][0, 0].tolist() == [[1, 0], [47, 63], [2, 0], [47, 63]]
    assert batch["observer"][0, 0].tolist() == [0, 0, 1, 1]
    assert batch["negatives"][0, 0].tolist() == [[1, 1], [2, 1]]
    assert batch["video"].shape == (1, 3, 4, 48, 64)
    assert abs(float(batch["density"][0].max()) - 30 / 255) < 1e-6
    assert len(data.split_items("train")) == 3


def test_mit1003_points_survive_jpeg(tmp_path):
    for k in range(10):
        _png(tmp_path / "ALLSTIMULI" / f"i{k}.jpeg", picture(k))
        points = np.zeros((48, 64), np.uint8)
        points[10 + k, 20] = 255
        (tmp_path / "ALLFIXATIONMAPS").mkdir(exist_ok=True)
        Image.fromarray(points).save(tmp_path / "ALLFIXATIONMAPS" / f"i{k}_fixPts.jpg", quality=95)
        _png(tmp_path / "ALLFIXATIONMAPS" / f"i{k}_fixMap.jpg", np.full((48, 64), 9, np.uint8))
    data = MIT1003DataModule(tmp_path, spec=SPEC, num_workers=0)
    items = {s: data.split_items(s) for s in ("train", "val", "test")}
    assert [len(items[s]) for s in ("train", "val", "test")] == [8, 1, 1]
    item = items["test"][0]
    assert item.open().annotation.fixations(0)[0].tolist() == [[10 + int(item.name[-1]), 20]]


# -- the large open sets -----------------------------------------------------------------------------------


def _crowd_clip(root: Path, name: str, video: Path, saliency: Path, points: Path) -> None:
    for path in (video, saliency, points):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(video, frames=6, fps=30)
    write_clip(saliency, frames=6, fps=30, codec="libx264", pix_fmt="gray")
    points.write_text(json.dumps([[[40, 60 - k], [10, 5]] for k in range(6)]))


def test_avimos_and_crowdsal_trees_are_read(tmp_path):
    root = tmp_path / "avimos"
    for name, part in (("a", "Train"), ("b", "Train"), ("c", "Test")):
        _crowd_clip(root, name, root / "Videos" / f"{name}.mp4", root / f"Saliency{part}" / f"{name}.mp4",
                    root / f"Fixations{part}" / name / "fixations.json")  # fmt: skip
    split = {"train": ["a.mp4", "b.mp4"], "public_test": ["c.mp4"], "private_test": ["d.mp4"]}
    (root / "TrainTestSplit.json").write_text(json.dumps(split))
    data = AViMoSDataModule(root, spec=SPEC, num_workers=0, eval_batch_size=6, flip=0.0)
    assert [i.name for i in data.split_items("test")] == ["AViMoS/c"]
    assert {len(data.split_items("train")), len(data.split_items("val"))} == {1}
    assert any("AViMoS/d" in text for text in data.left_out.values())
    batch = data.eval_dataset("test")[0]
    assert batch["fixations"][2, 0].tolist() == [[40, 58], [10, 5]]
    # The saliency video is grey: its numbered blocks come back as a density in [0, 1].
    assert frame_number(batch["density"][3, 0].numpy() * 255) == 3
    crowd = tmp_path / "crowd"
    for name, part in (("0001", "Train"), ("3001", "Test")):
        _crowd_clip(crowd, name, crowd / part / "Videos" / f"{name}.mp4", crowd / part / "Saliency" / f"{name}.mp4",
                    crowd / part / "Fixations" / f"{name}.json")  # fmt: skip
    module = CrowdSALDataModule(crowd, spec=SPEC, num_workers=0, val_fraction=0)
    assert [i.name for i in module.split_items("train")] == ["CrowdSAL/0001"]
    assert [i.name for i in module.split_items("test")] == ["CrowdSAL/3001"]


def test_the_order_of_coordinates_is_checked_against_the_picture(tmp_path):
    path = tmp_path / "fixations.json"
    assert points_order(path, np.array([[1000.0, 5.0]]), (1080, 1920))[0].tolist() == [1000]
    assert points_order(path, np.array([[1900.0, 5.0]]), (1080, 1920))[0].tolist() == [5]
    with pytest.raises(DataError, match="either order"):
        points_order(path, np.array([[1900.0, 1500.0]]), (1080, 1920))
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"fixations.json"):
        read_point_lists(path)


# -- users' own folders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for name in ("a", "b", "c", "d", "e"):
        write_clip(root / f"{name}.mp4", frames=20, fps=25)
        rows = [
            (f"{t / 25 + 0.01:.3f}", (t + 0.5) / 64, 0.25, who) for t in range(20) for who in ("ann", "bob")
        ]
        lines = [",".join(map(str, row)) for row in rows]
        (root / f"{name}.csv").write_text("time_s,x_norm,y_norm,observer\n" + "\n".join(lines) + "\n")
    return root


def test_a_folder_of_videos_with_gaze_is_a_data_set(own):
    data = FolderDataModule(own, spec=SPEC, num_workers=0, flip=0.0)
    parts = [{i.name for i in data.split_items(s)} for s in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 5
    sample = data.train_dataset()[0, 0]
    target = int(sample["frame"])
    assert sample["fixations"][0].tolist() == [[12, target]] * 2
    assert sample["observer"][0].tolist() == [0, 1]


def test_parquet_pixels_and_milliseconds_say_the_same(own, tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_clip(tmp_path / "a.mp4", frames=20, fps=25)
    t = np.arange(20)
    table = {"time_ms": t * 40.0 + 10, "x_px": t + 0.5, "y_px": np.full(20, 12.2), "observer": ["ann"] * 20}
    write_table(pa.table(table), tmp_path / "a.parquet")
    mine = FolderDataModule(tmp_path).all_items()[0].open().annotation
    theirs = next(i for i in FolderDataModule(own).all_items() if i.name.endswith("/a")).open().annotation
    for k in range(20):
        assert mine.fixations(k)[0].tolist() == theirs.fixations(k)[0][:1].tolist()


def test_gaze_of_another_clock_and_missing_gaze_are_refused(own, tmp_path):
    write_clip(tmp_path / "a.mp4", frames=20, fps=25)
    with pytest.raises(DataError, match="no gaze file"):
        FolderDataModule(tmp_path).setup("fit")
    text = (own / "a.csv").read_text().splitlines()
    late = [",".join([f"{float(line.split(',')[0]) + 500:.3f}", *line.split(",")[1:]]) for line in text[1:]]
    (tmp_path / "a.csv").write_text("\n".join([text[0], *late]) + "\n")
    with pytest.raises(DataError, match=r"offset="):
        FolderDataModule(tmp_path).all_items()[0].open().annotation  # noqa: B018
    shifted = FolderDataModule(tmp_path, offset=500.0).all_items()[0].open().annotation
    assert shifted.fixations(4)[0].tolist() == [[12, 4], [12, 4]]


def test_splits_may_be_given_and_saliency_videos_stand_for_gaze(own, tmp_path):
    (tmp_path / "splits.csv").write_text("video,split\na,train\nb.mp4,train\nc,val\nd,test\n")
    data = FolderDataModule(own, splits=tmp_path / "splits.csv")
    assert [len(data.split_items(s)) for s in ("train", "val", "test")] == [2, 1, 1]
    (tmp_path / "splits.csv").write_text("video,split\na,training\n")
    with pytest.raises(DataError, match="'training'"):
        FolderDataModule(own, splits=tmp_path / "splits.csv").items("train")
    (tmp_path / "videos").mkdir()
    (tmp_path / "saliency").mkdir()
    write_clip(tmp_path / "videos" / "x.mp4", frames=5, fps=25)
    write_clip(tmp_path / "saliency" / "x.mp4", frames=5, fps=25, pix_fmt="gray")
    opened = FolderDataModule(tmp_path).all_items()[0].open().annotation
    assert frame_number(opened.density(4) * 255) == 4
    assert opened.fixations(4) is None
