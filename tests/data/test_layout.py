"""The STAViS folder layout, its odd files, and the modules of the six sets."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from avsal.data.layout import read_fold_list, read_layout
from avsal.data.matfile import load_mat
from avsal.data.readers import FolderAnnotation, read_fixation_image
from avsal.data.sets.audiovisual import (
    AVSaliencyDataModule,
    Coutrot1DataModule,
    DIEMDataModule,
    LayoutDataModule,
)
from avsal.errors import ConfigError, DataError
from avsal.types import AudioSpec, ClipSpec
from tests.media import frame_number, picture, tone, write_clip

SPEC = ClipSpec(frames=4, size=(24, 32), target=2, audio=AudioSpec(None, 0.5, 0.5))


def write_v73(path: Path, image: np.ndarray) -> None:
    """Write variable eyeMap as MATLAB v7.3 does: HDF5 behind a 512-byte header, transposed, with its class."""
    with h5py.File(path, "w", userblock_size=512) as file:
        data = file.create_dataset("eyeMap", data=image.T)
        data.attrs["MATLAB_class"] = np.bytes_("uint8")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def write_wav(path: Path, seconds: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, frames=0, sound=tone(seconds, rate), rate=rate, audio_codec="pcm_s16le")


def make_video(
    root: Path, name: str, video: str, frames: int, *, mat: str = "v5", as_file: bool = False
) -> None:
    """Write one video: one fixation in each frame, at (row 5, column frame number)."""
    if as_file:
        (root / "video" / name).mkdir(parents=True, exist_ok=True)
        sound = tone(frames / 25, 8000)
        write_clip(root / "video" / name / f"{video}.mp4", frames=frames, fps=25, sound=sound, rate=8000)
    else:
        folder = root / "video_frames" / name / video
        folder.mkdir(parents=True)
        for k in range(frames):
            Image.fromarray(picture(k)).save(folder / f"img_{k + 1:05d}.jpg", quality=95)
        write_wav(root / "video_audio" / name / video / f"{video}.wav", frames / 25)
    folder = root / "annotations" / name / video
    (folder / "maps").mkdir(parents=True)
    for k in range(frames):
        binary = np.zeros((48, 64), dtype=np.uint8)
        binary[5, k] = 1
        path = folder / f"fixMap_{k + 1:05d}.mat"
        if mat == "v5":
            savemat(path, {"eyeMap": binary})
        else:
            write_v73(path, binary)
        grey = np.zeros((48, 64), dtype=np.uint8)
        grey[3:8, max(0, k - 2) : k + 3] = 200
        Image.fromarray(grey).save(folder / "maps" / f"eyeMap_{k + 1:05d}.jpg", quality=95)


def write_list(root: Path, name: str, text: str) -> None:
    (root / "fold_lists").mkdir(exist_ok=True)
    (root / "fold_lists" / name).write_bytes(text.encode())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two sets: DIEM as original videos with v7.3 files, Coutrot_db1 as frames with v5 files."""
    root = tmp_path_factory.mktemp("av")
    for video in ("a_64x48", "b_64x48", "c_64x48"):
        make_video(root, "DIEM", video, 12, mat="v7.3", as_file=True)
    make_video(root, "Coutrot_db1", "clip1", 10)
    make_video(root, "Coutrot_db1", "clip2", 10)
    write_list(root, "DIEM_list_train_fps.txt", "a_64x48 12 25.000\r\nb_64x48 12 25.000\r\n\r\n")
    write_list(root, "DIEM_list_test_fps.txt", "c_64x48 12 25.000000\n")
    write_list(root, "Coutrot_db1_list_train_2_fps.txt", "clip1 10 25")
    write_list(root, "Coutrot_db1_list_test_2_fps.txt", "clip2 10 25\n")
    return root


def test_fold_lists_take_any_line_ends_and_name_a_bad_line(root, tmp_path):
    entries = read_fold_list(root / "fold_lists" / "DIEM_list_train_fps.txt")
    assert [(e.name, e.frames, e.fps) for e in entries] == [("a_64x48", 12, 25.0), ("b_64x48", 12, 25.0)]
    bad = tmp_path / "list.txt"
    bad.write_text("one 10 25\ntwo ten 25\n")
    with pytest.raises(DataError, match=r"list.txt, line 2: .*two ten 25"):
        read_fold_list(bad)


def test_published_fold_lists_are_read(real_data):
    folder = real_data / "fold_lists" / "stavis_style"
    assert len(read_fold_list(folder / "DIEM_list_test_fps.txt")) == 17
    assert len(read_fold_list(folder / "DIEM_list_train_fps.txt")) == 64
    total = [e for k in (1, 2, 3) for e in read_fold_list(folder / f"Coutrot_db1_list_test_{k}_fps.txt")]
    assert len({e.name for e in total}) == 60
    assert all(read_fold_list(path) for path in folder.glob("*.txt"))


@pytest.mark.parametrize("kind", ["v5", "v7.3"])
def test_both_mat_versions_have_the_same_orientation(tmp_path, kind):
    image = np.zeros((6, 9), dtype=np.uint8)
    image[1, 7] = 1
    path = tmp_path / "fixMap_00001.mat"
    if kind == "v5":
        savemat(path, {"eyeMap": image})
    else:
        write_v73(path, image)
    np.testing.assert_array_equal(read_fixation_image(path), image)


def test_a_damaged_mat_and_a_wrong_variable_are_named(tmp_path):
    path = tmp_path / "fixMap_00001.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"fixMap_00001\.mat"):
        read_fixation_image(path)
    savemat(path, {"a": np.zeros((3, 3)), "b": np.zeros((3, 3))})
    with pytest.raises(DataError, match="no variable 'eyeMap'"):
        read_fixation_image(path)
    (tmp_path / "empty.mat").touch()
    with pytest.raises(DataError, match=r"empty.mat"):
        load_mat(tmp_path / "empty.mat")


@pytest.mark.parametrize(("name", "split"), [("DIEM", "train"), ("Coutrot_db1", "train")])
def test_frames_and_original_videos_are_read_alike(root, name, split):
    data = LayoutDataModule(root, sets=[name], fold=2, val_fraction=0, spec=SPEC, num_workers=0, flip=0.0)
    sample = data.train_dataset()[0, 0]
    target = int(sample["frame"][0])
    image = sample["video"][:, 2].permute(1, 2, 0).numpy() * 255
    assert frame_number(image) == target
    assert sample["fixations"][0].tolist() == [[2, target // 2]]
    assert sample["has_audio"]
    assert len(sample["audio"]) == 4 * 320
    density = sample["density"][0]
    assert abs(density.max() - 200 / 255) < 0.15
    assert abs(int(density[2].argmax()) - target // 2) <= 1


def test_missing_and_odd_frames_are_unlabelled_not_zero(tmp_path):
    make_video(tmp_path, "AVAD", "v", 6)
    folder = tmp_path / "annotations" / "AVAD" / "v"
    (folder / "fixMap_00006.mat").unlink()
    (folder / "maps" / "eyeMap_00006.jpg").unlink()
    (folder / "maps" / "eyeMap_00002.jpg").unlink()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "maps" / "eyeMap_00004.jpg")
    write_list(tmp_path, "AVAD_list_test_1_fps.txt", "v 6 25\n")
    data = LayoutDataModule(tmp_path, sets=["AVAD"], spec=SPEC, num_workers=0, eval_batch_size=6)
    batch = data.eval_dataset("test")[0]
    assert batch["labelled"][:, 0].tolist() == [True, True, True, True, True, False]
    annotation = FolderAnnotation(folder)
    assert annotation.density(1) is None
    assert annotation.density(3) is None
    assert len(annotation.fixations(3)[0]) == 1


@pytest.mark.parametrize("kind", ["uint16", "float"])
def test_maps_of_other_depths_are_scaled(tmp_path, kind):
    folder = tmp_path / "x"
    (folder / "maps").mkdir(parents=True)
    values = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    if kind == "uint16":
        Image.fromarray((values * 65535).astype(np.uint16)).save(folder / "maps" / "eyeMap_00001.png")
    else:
        Image.fromarray(values.astype(np.float32)).save(folder / "maps" / "eyeMap_00001.tif")
    np.testing.assert_allclose(FolderAnnotation(folder).density(0), values, atol=1e-4)


def test_a_listed_video_without_files_is_reported_or_stops(root, tmp_path):
    said: list[str] = []
    make_video(tmp_path, "SumMe", "here", 5)
    write_list(tmp_path, "SumMe_list_train_1_fps.txt", "here 5 25\ngone 5 25\n")
    items = read_layout(tmp_path, "SumMe", "train", fold=1, report=said.append)
    assert [i.name for i in items] == ["SumMe/here"]
    assert "SumMe/gone" in said[0]
    with pytest.raises(DataError, match="SumMe/gone"):
        read_layout(tmp_path, "SumMe", "train", fold=1, strict=True)


def test_splits_are_the_lists_and_validation_is_apart(root):
    data = LayoutDataModule(root, sets=["DIEM"], spec=SPEC)
    names = {s: {i.name for i in data.split_items(s)} for s in ("train", "val", "test")}
    assert names["test"] == {"DIEM/c_64x48"}
    assert len(names["train"]) == len(names["val"]) == 1
    assert names["train"] | names["val"] == {"DIEM/a_64x48", "DIEM/b_64x48"}
    authors = LayoutDataModule(root, sets=["DIEM"], val_fraction=0, spec=SPEC)
    assert [i.name for i in authors.split_items("val")] == ["DIEM/c_64x48"]
    assert len(authors.split_items("train")) == 2


def test_all_sets_train_together_and_are_told_apart_in_test(root):
    data = AVSaliencyDataModule(
        root, sets=["DIEM", "Coutrot_db1"], fold=2, spec=SPEC, num_workers=0, val_fraction=0
    )
    assert {i.set for i in data.split_items("train")} == {"DIEM", "Coutrot_db1"}
    names = [
        name
        for k in range(len(data.eval_dataset("test")))
        for name in data.eval_dataset("test")[k]["video_name"]
    ]
    assert {name.split("/")[0] for name in names} == {"DIEM", "Coutrot_db1"}
    assert {i.set for i in Coutrot1DataModule(root, fold=2, val_fraction=0).split_items("train")} == {
        "Coutrot_db1"
    }


@pytest.mark.parametrize("make", [DIEMDataModule, AVSaliencyDataModule])
def test_a_wrong_folder_says_what_to_do(tmp_path, make):
    with pytest.raises(DataError, match=r"avsal data info"):
        make(tmp_path / "nowhere").setup("fit")
    with pytest.raises(DataError, match=r"needs root="):
        make().setup("fit")
    with pytest.raises(DataError, match=r"no list DIEM_list_train"):
        make(tmp_path).setup("fit")
    with pytest.raises(ConfigError, match="flip"):
        make(tmp_path, flip=2)


def test_fixations_that_do_not_match_their_maps_stop_before_training(root, tmp_path):
    make_video(tmp_path, "AVAD", "v", 5)
    for path in (tmp_path / "annotations" / "AVAD" / "v" / "maps").glob("*_0000[2-5].jpg"):
        Image.fromarray(np.zeros((9, 9), np.uint8) + 5).save(path)
    write_list(tmp_path, "AVAD_list_train_1_fps.txt", "v 5 25\n")
    data = LayoutDataModule(tmp_path, sets=["AVAD"], val_fraction=0, spec=SPEC)
    with pytest.raises(DataError, match="AVAD/v"):
        data.setup("fit")
