"""Exports of eye trackers, written as their makers' documentation says, and what must be refused in them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avsal.cli import main
from avsal.data import FolderDataModule
from avsal.data.fixations import FixationTable
from avsal.data.gaze.options import Reading
from avsal.data.gaze.tables import GazeTable, read_gaze_table
from avsal.data.readers import read_fixation_image, read_labels
from avsal.errors import AvsalError, ConfigError, DataError
from tests.media import write_clip

HEIGHT, WIDTH, FPS, COUNT = 48, 80, 25, 100
#: 240 samples at 60 Hz around x = 0.6, y = 0.25 of the picture from its top left corner.
SECONDS = np.arange(240) / 60
X = 0.6 + 0.05 * np.sin(np.arange(240))
Y = 0.25 + 0.05 * np.cos(np.arange(240) * 1.7)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "clip.mp4", frames=COUNT, fps=FPS, height=HEIGHT, width=WIDTH)


def table(
    path: Path, header: str, rows: Sequence[Sequence[Any]], separator: str = ",", top: str = ""
) -> Path:
    lines = [header, *(separator.join(str(cell) for cell in row) for row in rows)]
    path.write_text(top + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, clip: Path, **options: Any) -> GazeTable:
    return read_gaze_table(
        path, size=(HEIGHT, WIDTH), times=np.arange(COUNT) / FPS, video=clip.stem, **options
    )


def fixations(gaze: Path, clip: Path, **options: Any) -> FixationTable:
    """What the module for users' own folders makes of the file."""
    root = gaze.parent / f"own-{gaze.stem}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    shutil.copy(clip, root / "clip.mp4")
    shutil.copy(gaze, root / f"clip{gaze.suffix}")
    annotation = FolderDataModule(root, **options).all_items()[0].open().annotation
    return annotation.table  # type: ignore[union-attr]


def assert_right(found: GazeTable, keep: Any = slice(None), shift: float = 0.0) -> None:
    """The samples lie where and when they were made."""
    rows = found.tracked
    np.testing.assert_allclose(found.x[rows], X[keep], atol=2e-3)
    np.testing.assert_allclose(found.y[rows], Y[keep], atol=2e-3)
    np.testing.assert_allclose(found.time[rows], SECONDS[keep] + shift, atol=2e-3)


# -- one export of each maker --------------------------------------------------------------------------------


def tobii(path: Path) -> Path:
    """Tobii Pro Lab, media coordinates: 30 rows of another clip, events, rows of other sensors, words."""
    header = (
        "Recording timestamp [μs]\tSensor\tParticipant name\tEvent\tGaze point X [MCS norm]\tGaze point Y [MCS norm]\t"
        "Validity left\tValidity right\tEye movement type\tPresented Media name"
    )
    rows: list[tuple[Any, ...]] = [
        (k * 16667, "Eye Tracker", "P1", "", 0.9, 0.9, "Valid", "Valid", "Fixation", "intro.png")
        for k in range(30)
    ]
    rows.append((500000, "", "P1", "VideoStimulusStart", "", "", "", "", "", "clip.mp4"))
    for k in range(240):
        valid = "Invalid" if k in (5, 6) else "Valid"
        x, y = ("", "") if valid == "Invalid" else (f"{X[k]:.4f}", f"{Y[k]:.4f}")
        kind = (
            "EyesNotFound"
            if k in (5, 6)
            else "Saccade"
            if k % 10 == 9
            else "Unclassified"
            if k == 20
            else "Fixation"
        )
        time = 500000 + round(SECONDS[k] * 1e6)
        rows.append((time, "Eye Tracker", "P1", "", x, y, valid, valid, kind, "clip.mp4"))
        rows.append((time + 40, "Mouse", "P1", "", "", "", "", "", "", "clip.mp4"))
    return table(path.with_suffix(".tsv"), header, rows, "\t")


def test_tobii_media_coordinates_begin_with_the_stimulus(clip: Path, tmp_path: Path) -> None:
    found = fixations(tobii(tmp_path / "t"), clip)
    kept = [k for k in range(240) if k not in (5, 6, 20) and k % 10 != 9]
    assert len(found.frame) == len(kept)
    assert dict(found.dropped) == {
        "no sample of the eye tracker": 241, "another stimulus": 30, "saccade": 24, "not valid": 2, "unclassified": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(found.frame, np.floor(SECONDS[kept] * FPS + 0.0125))
    np.testing.assert_allclose((found.points + 0.5) / (HEIGHT, WIDTH), np.stack([Y, X], 1)[kept], atol=0.011)


def test_tobii_screen_pixels_are_placed_by_the_media_columns(clip: Path, tmp_path: Path) -> None:
    left, top, width, height = 160, 60, 1600, 960  # of a screen of 1920x1080
    header = (
        "Recording timestamp [ms]\tGaze point X [DACS px]\tGaze point Y [DACS px]\tRecording resolution width\t"
        "Recording resolution height\tPresented Media name\tPresented Media position X (DACSpx)\t"
        "Presented Media position Y (DACSpx)\tPresented Media width\tPresented Media height"
    )
    rows = [
        (round(s * 1e3), f"{left + width * x:.1f}", f"{top + height * y:.1f}", 1920, 1080, "clip.mp4", left, top, width,
         height)
        for s, x, y in zip(SECONDS, X, Y, strict=True)
    ]  # fmt: skip
    assert_right(read(table(tmp_path / "t.tsv", header, rows, "\t"), clip))
    # Without the columns of the media, nobody knows where the video stood on a screen of another shape.
    short = table(tmp_path / "s.tsv", "\t".join(header.split("\t")[:6]), [row[:6] for row in rows], "\t")
    with pytest.raises(DataError, match=r"other shapes.*picture='fit'"):
        read(short, clip)
    assert_right(read(short, clip, picture=f"{left},{top},{width},{height}"))


def test_tobii_studio_with_decimal_commas_and_eyes_of_their_own_validity(clip: Path, tmp_path: Path) -> None:
    header = (
        "RecordingTimestamp\tGazePointLeftX (ADCSpx)\tGazePointLeftY (ADCSpx)\tGazePointRightX (ADCSpx)\t"
        "GazePointRightY (ADCSpx)\tValidityLeft\tValidityRight"
    )
    rows = []
    for k in range(240):
        x, y = X[k] * 1600, Y[k] * 960
        # The eyes are 20 pixels apart; one of them is lost in turn, and says so by 4.
        left, right = (4 if k % 3 == 0 else 0), (4 if k % 3 == 1 else 0)
        cells = [x - 10 * (right == 0), y, x + 10 * (left == 0), y]
        rows.append((round(SECONDS[k] * 1e3), *(f"{c:.2f}".replace(".", ",") for c in cells), left, right))
    assert_right(read(table(tmp_path / "t.tsv", header, rows, "\t"), clip, screen="1600x960"))


def test_pupil_core_names_the_world_frame_and_its_confidence(clip: Path, tmp_path: Path) -> None:
    header = "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y,base_data"
    frame = np.floor(SECONDS * FPS + 1e-6).astype(int)
    rows = [
        (f"{8123.4 + s:.6f}", frame[k], 0.3 if k % 4 == 0 else 0.95, f"{X[k]:.4f}", f"{1 - Y[k]:.4f}", "x-0")
        for k, s in enumerate(SECONDS)
    ]
    path = table(tmp_path / "gaze_positions.csv", header, rows)
    found = fixations(path, clip)
    kept = np.arange(240) % 4 != 0
    assert dict(found.dropped) == {"low confidence": 60}
    np.testing.assert_array_equal(found.frame, frame[kept])
    assert abs(((found.points[:, 0] + 0.5) / HEIGHT).mean() - Y[kept].mean()) < 0.01
    assert dict(fixations(path, clip, min_confidence=0.2).dropped) == {}


@pytest.mark.parametrize(
    ("header", "x", "y"),
    [
        ("world_timestamp,world_index,gaze_timestamp,x_norm,y_norm,x_scaled,y_scaled,on_surf,confidence", 3, 4),
        ("world_timestamp,world_index,fixation_id,start_timestamp,duration,norm_pos_x,norm_pos_y,on_surf,spread", 5, 6),
        ("gaze_timestamp,x_norm,y_norm,a,b,c,d,on_srf,e", 1, 2),
    ],
)  # fmt: skip
def test_pupil_surfaces_count_from_the_bottom(
    clip: Path, tmp_path: Path, header: str, x: int, y: int
) -> None:
    rows = []
    for k, s in enumerate(SECONDS):
        row: list[Any] = [f"{s:.6f}", k, f"{s:.6f}", 0.1, 0.1, 0.1, 0.1, "False" if k < 24 else "True", 0.9]
        if header.startswith("gaze"):
            row[0] = f"{s:.6f}"
        row[x], row[y] = f"{X[k]:.5f}", f"{1 - Y[k]:.5f}"
        rows.append(row)
    path = table(tmp_path / "surface.csv", header, rows)
    assert_right(read(path, clip), slice(24, None))
    assert read(path, clip).dropped == {"off the surface": 24}


def test_neon_is_on_the_clock_of_its_world_timestamps(clip: Path, tmp_path: Path) -> None:
    start = 1_700_000_000_000_000_000
    # The scene camera's clock jitters, the exported video does not.
    world = start + np.round((np.arange(COUNT) / FPS + 0.004 * np.sin(np.arange(COUNT))) * 1e9).astype(
        np.int64
    )
    table(
        tmp_path / "world_timestamps.csv",
        "section id,recording id,timestamp [ns]",
        [("s", "r", t) for t in world],
    )
    header = (
        "section id,recording id,timestamp [ns],gaze x [px],gaze y [px],worn,fixation id,blink id,azimuth [deg],"
        "elevation [deg]"
    )
    rows = [
        ("s", "r", world[k // 2] + 5_000_000 * (k % 2), f"{X[k] * WIDTH:.3f}", f"{Y[k] * HEIGHT:.3f}",
         "0.0" if k < 10 else "1.0", "" if k % 5 == 0 else 7, 3 if k == 31 else "", 1.0, 2.0)
        for k in range(200)
    ]  # fmt: skip
    found = read(table(tmp_path / "gaze.csv", header, rows), clip)
    assert found.units == "pixels"
    kept = [k for k in range(10, 200) if k != 31]
    np.testing.assert_allclose(
        found.time[found.tracked], [k // 2 / FPS + 0.005 * (k % 2) for k in kept], atol=8e-4
    )
    np.testing.assert_allclose(found.y[found.tracked], Y[kept], atol=1e-4)
    assert found.dropped == {"not worn": 10, "blink": 1, "not in a fixation": sum(k % 5 == 0 for k in kept)}
    # Without that file the clock is another one than the video's.
    (tmp_path / "world_timestamps.csv").unlink()
    with pytest.raises(DataError, match="different clocks"):
        read(tmp_path / "gaze.csv", clip)
    later = read(tmp_path / "gaze.csv", clip, offset=start / 1e9)
    seconds = (world[np.arange(200) // 2] - start) / 1e9 + 0.005 * (np.arange(200) % 2)
    np.testing.assert_allclose(later.time, seconds, atol=1e-4)


def test_pupil_cloud_surfaces_and_reference_images(clip: Path, tmp_path: Path) -> None:
    surface = (
        "section id,recording id,timestamp [ns],gaze detected on surface,gaze position on surface x [normalized],"
        "gaze position on surface y [normalized],fixation id"
    )
    image = surface.replace("detected on surface", "detected in reference image").replace(
        "position on surface", "position in reference image"
    )
    rows = [
        ("s", "r", round(s * 1e9), str(k > 3).lower(), f"{X[k]:.5f}", f"{Y[k]:.5f}", 1)
        for k, s in enumerate(SECONDS)
    ]
    assert_right(read(table(tmp_path / "s.csv", surface, rows), clip), slice(4, None))
    pixels = [(*row[:4], f"{X[k] * 1600:.2f}", f"{Y[k] * 960:.2f}", 1) for k, row in enumerate(rows)]
    path = table(tmp_path / "i.csv", image.replace("[normalized]", "[px]"), pixels)
    with pytest.raises(DataError, match=r"does not state its size.*screen="):
        read(path, clip)
    assert_right(read(path, clip, screen="1600x960"), slice(4, None))


def test_eyelink_sample_reports_need_the_screen_and_know_the_video(clip: Path, tmp_path: Path) -> None:
    header = (
        "RECORDING_SESSION_LABEL\tTRIAL_INDEX\tTIMESTAMP\tLEFT_GAZE_X\tLEFT_GAZE_Y\tRIGHT_GAZE_X\tRIGHT_GAZE_Y\t"
        "LEFT_IN_BLINK\tRIGHT_IN_BLINK\tRIGHT_IN_SACCADE\tVIDEO_NAME"
    )
    rows: list[tuple[Any, ...]] = [
        ("s1", 1, 1_000_000 + k, ".", ".", 900, 500, 0, 0, 0, ".") for k in range(0, 100, 4)
    ]
    for k, s in enumerate(SECONDS):
        blink, saccade = int(k in (7, 8)), int(k % 20 == 0)
        gaze = (".", ".") if k == 9 else (f"{X[k] * 1600 + 160:.1f}", f"{Y[k] * 960 + 60:.1f}")
        time = round(1_000_100 + s * 1e3)
        rows.append(("s1", 1, time, ".", ".", *gaze, 0, blink, saccade, "videos/clip.mp4"))
    path = table(tmp_path / "e.xls", header, rows, "\t")
    with pytest.raises(DataError, match="eyelink counts the pixels of the screen"):
        read(path, clip)
    found = read(path, clip, screen="1920x1080", picture="160,60,1600,960")
    kept = [k for k in range(240) if k not in (7, 8, 9)]
    assert_right(found, kept)
    assert found.dropped == {"another stimulus": 25, "not valid": 2, "lost": 1, "saccade": 12}
    with pytest.raises(DataError, match=r"no row is of 'film'.*'videos/clip.mp4'"):
        read(path, clip, screen="1920x1080", picture="fit", stimulus="film")


def test_fixation_reports_lie_on_all_frames_of_a_fixation(clip: Path, tmp_path: Path) -> None:
    header = "RECORDING_SESSION_LABEL\tCURRENT_FIX_START\tCURRENT_FIX_DURATION\tCURRENT_FIX_X\tCURRENT_FIX_Y"
    rows = [("s1", 0, 200, 960, 240), ("s1", 240, 310, 800, 480), ("s1", 3900, 400, 320, 720)]
    found = fixations(table(tmp_path / "f.txt", header, rows, "\t"), clip, screen="1600x960")
    assert found.frame.tolist() == [*range(5), *range(6, 14), 97, 98, 99]
    assert found.points[0].tolist() == [12, 48]
    assert found.points[-1].tolist() == [36, 16]


ASC_TOP = """** CONVERTED FROM s1.edf
MSG\t5000000 DISPLAY_COORDS 0 0 1599 959
MSG\t5000010 RECCFG CR 250 2 1 LR
MSG\t5000020 GAZE_COORDS 0.00 0.00 1599.00 959.00
START\t5000030\tLEFT RIGHT\tSAMPLES\tEVENTS
PRESCALER\t1
SAMPLES\tGAZE\tLEFT\tRIGHT\tRATE\t250.00\tTRACKING\tCR\tFILTER\t2
MSG\t5001000 video_onset
"""


def test_eyelink_asc_samples_are_labelled_by_their_events(clip: Path, tmp_path: Path) -> None:
    lines = ["SFIX L 5001000"]
    for k, s in enumerate(SECONDS):
        time, x, y = round(5_001_000 + s * 1e3), X[k] * 1600, Y[k] * 960
        left = f"{x - 10:.1f}\t{y:.1f}\t800.0" if k % 2 else ".\t.\t0.0"
        right = f"{x + 10 * (k % 2):.1f}\t{y:.1f}\t800.0"
        lines.append(f"{time}\t{left}\t{right}\t.....")
    lines += [
        "EFIX L   5001000\t5002000\t1004\t  960.0\t  240.0\t  800",
        "ESACC L  5002001\t5002300\t300\t900\t200\t960\t240\t3.2\t120",
        "EFIX R   5002301\t5005000\t2700\t  960.0\t  240.0\t  800",
        "END\t5005100\tSAMPLES\tEVENTS\tRES\t 30.0\t 30.0",
    ]
    path = tmp_path / "s1.asc"
    path.write_text(ASC_TOP + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"different clocks.*'video_onset' at 5001\.000 s"):
        read(path, clip)
    found = read(path, clip, offset=5001.0)
    assert_right(found)
    moved = (found.time > 1.0005) & (found.time < 1.3005)
    assert found.dropped == {"saccade": int(moved.sum())}
    assert (found.gaze_type == moved).all()
    # Events alone: fixations that last.
    path.write_text(ASC_TOP + "\n".join(line for line in lines if not line[0].isdigit()) + "\n")
    events = read(path, clip, offset=5001.0)
    assert events.duration is not None
    np.testing.assert_allclose(events.duration, [1.004, 2.7])
    np.testing.assert_allclose(events.x, [0.6, 0.6])
    path.write_text(ASC_TOP.replace("SAMPLES\tGAZE", "SAMPLES\tHREF"))
    with pytest.raises(DataError, match="line 7: holds HREF data"):
        read(path, clip)


def test_gazepoint_marks_what_is_valid_and_lists_fixations(clip: Path, tmp_path: Path) -> None:
    header = (
        "MEDIA_ID,MEDIA_NAME,CNT,TIME(2026/01/02 10:11:12.123),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,"
        "FPOGID,FPOGV,"
    )
    rows: list[tuple[Any, ...]] = [
        (
            0,
            "clip",
            k,
            f"{s:.5f}",
            1e9 + k,
            f"{X[k]:.5f}",
            f"{Y[k]:.5f}",
            f"{s - 0.1:.5f}",
            0.1,
            k // 12,
            int(k % 6 != 0),
            "",
        )
        for k, s in enumerate(SECONDS)
    ]
    rows.append((1, "other", 241, "4.2", 1, 0.1, 0.1, 4.1, 0.1, 99, 1, ""))
    found = read(table(tmp_path / "User 0_all_gaze.csv", header, rows), clip)
    assert_right(found, np.arange(240) % 6 != 0, shift=0.0)
    assert found.dropped == {"another stimulus": 1, "not valid": 40}
    # One row for each fixation, at its end.
    rows = [
        (0, "clip", k, f"{0.4 * k + 0.3:.3f}", 1, 0.6, 0.25, f"{0.4 * k:.3f}", 0.3, k + 1, 1, "")
        for k in range(10)
    ]
    points = fixations(table(tmp_path / "User 0_fixations.csv", header, rows), clip)
    assert points.frame[:16].tolist() == [*range(8), *range(10, 18)]


def test_smi_text_files_and_begaze_reports(clip: Path, tmp_path: Path) -> None:
    top = "## [iView]\n## Sample Rate:\t60\n## Calibration Area:\t1600\t960\n##\n"
    header = (
        "Time\tType\tTrial\tL POR X [px]\tL POR Y [px]\tR POR X [px]\tR POR Y [px]\tL Event Info\tStimulus"
    )
    rows: list[tuple[Any, ...]] = []
    for k, s in enumerate(SECONDS):
        x, y = f"{X[k] * 1600:.2f}", f"{Y[k] * 960:.2f}"
        kind = "Blink" if k == 3 else "Saccade" if k % 8 == 0 else "Fixation"
        cells = ("0.00",) * 4 if k == 3 else (x, y, x, y)
        rows.append((10_000_000_000 + round(s * 1e6), "SMP", 1, *cells, kind, "clip.avi"))
        if k == 100:
            rows.append((10_000_000_000 + round(s * 1e6) + 1, "MSG", 1, "# Message: half"))
    path = table(tmp_path / "s.txt", header, rows, "\t", top)
    found = read(path, clip)
    assert_right(found, [k for k in range(240) if k != 3])
    assert found.dropped == {"no sample of the eye tracker": 1, "blink": 1, "saccade": 30}
    header = (
        "RecordingTime [ms]\tStimulus\tParticipant\tCategory Right\tCategory Left\tPoint of Regard Right X [px]\t"
        "Point of Regard Right Y [px]\tPoint of Regard Left X [px]\tPoint of Regard Left Y [px]"
    )
    rows = [
        (f"{5000 + s * 1e3:.1f}", "clip.avi", "P1", "-" if k == 5 else "Visual Intake", "-", f"{X[k] * 1600:.1f}",
         f"{Y[k] * 960:.1f}", "-", "-")
        for k, s in enumerate(SECONDS)
    ]  # fmt: skip
    found = read(table(tmp_path / "b.txt", header, rows, "\t"), clip, screen="1600x960")
    assert_right(found)
    assert found.dropped == {"not in a fixation": 1}


#: x and y of a unit from shares of a screen of 1600x960 pixels, 50x30 cm.
PSYCHOPY: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "norm": lambda x, y: (2 * x - 1, 1 - 2 * y),
    "height": lambda x, y: ((x - 0.5) * 1600 / 960, 0.5 - y),
    "pixels": lambda x, y: ((x - 0.5) * 1600, (0.5 - y) * 960),
    "cm": lambda x, y: ((x - 0.5) * 50, (0.5 - y) * 30),
}


@pytest.mark.parametrize("unit", list(PSYCHOPY))
def test_psychopy_counts_from_the_centre_upwards(clip: Path, tmp_path: Path, unit: str) -> None:
    import h5py

    x, y = PSYCHOPY[unit](X, Y)
    screen = {"pixels": "1600x960", "cm": "50x30"}.get(unit)
    header = (
        "experiment_id,session_id,device_id,event_id,logged_time,time,left_gaze_x,left_gaze_y,right_gaze_x,"
        "right_gaze_y,status"
    )
    rows = [
        (1, 1, 0, k, s, f"{s:.5f}", x[k], y[k], *((0, 0, 2) if k % 7 == 0 else (x[k], y[k], 0)))
        for k, s in enumerate(SECONDS)
    ]
    path = table(tmp_path / "samples.csv", header, rows)
    if unit != "pixels":
        with pytest.raises(DataError, match=r"count from the centre.*units='norm', 'height'"):
            read(path, clip)
    assert_right(read(path, clip, units=unit, screen=screen))
    assert fixations(path, clip, units=unit, screen=screen).points[:, 0].mean() == pytest.approx(12, abs=0.6)
    kind = np.dtype([(name, "f8") for name in header.split(",")])
    with h5py.File(tmp_path / "samples.hdf5", "w") as file:
        file["data_collection/events/eyetracker/BinocularEyeSampleEvent"] = np.array(
            [tuple(float(cell) for cell in row) for row in rows], dtype=kind
        )
    assert_right(read(tmp_path / "samples.hdf5", clip, units=unit, screen=screen))
    # A table without names that tell PsychoPy.
    plain = table(
        tmp_path / "plain.csv",
        "time,gaze_x,gaze_y",
        [(f"{s:.4f}", x[k], y[k]) for k, s in enumerate(SECONDS)],
    )
    assert_right(read(plain, clip, tracker="psychopy", units=unit, screen=screen))


@pytest.mark.parametrize("unit", ["norm", "height"])
def test_unnamed_coordinates_around_the_centre_are_no_shares_of_the_picture(
    clip: Path, tmp_path: Path, unit: str
) -> None:
    rng = np.random.default_rng(3)
    x, y = PSYCHOPY[unit](rng.normal(0.5, 0.15, 240), rng.normal(0.5, 0.15, 240))
    rows = list(zip(np.round(SECONDS, 4), x, y, strict=True))
    with pytest.raises(
        DataError, match=r"below zero, which shares of the picture have not.*'norm' or 'height'"
    ):
        read(table(tmp_path / "a.csv", "time,gaze_x,gaze_y", rows), clip)
    with pytest.raises(DataError, match=r"lie outside the picture|Is 0 in the centre"):
        read(table(tmp_path / "b.csv", "time_s,x_norm,y_norm", rows), clip)


# -- what cannot be read --------------------------------------------------------------------------------------


GOOD = [(f"{s:.4f}", f"{x:.4f}", f"{y:.4f}") for s, x, y in zip(SECONDS, X, Y, strict=True)]


@pytest.mark.parametrize(
    ("header", "row", "separator", "reason"),
    [
        (
            "time_s,x_norm,y_norm",
            ("0.5", "0,6", "0.25"),
            ";",
            r"line 31, column 'x_norm': '0,6' has a decimal comma",
        ),
        (
            "time_s,x_norm,y_norm",
            ("0.5", "0", "6", "0", "25"),
            ",",
            r"line 31, column 4: .* Are the decimals commas",
        ),
        (
            "time_s,x_norm,y_norm",
            ("0.5", "left", "0.25"),
            ",",
            r"line 31, column 'x_norm': 'left' is not a number",
        ),
        (
            "time_s,x_norm,y_norm",
            ("00:00:01.2", "0.6", "0.25"),
            ",",
            r"line 31, column 'time_s': .* is not a number",
        ),
        ("time_s,x_norm,y_norm", ("0.5", "0.6"), ",", r"line 31: 1 lines have fewer columns"),
        (
            "frame,x_norm,y_norm",
            ("0.5", "0.6", "0.25"),
            ",",
            r"line \d+, column 'frame': .* no whole frame number",
        ),
        ("time_s,x_norm,x_norm,y_norm", ("0.5", "0.6", "1", "0.25"), ",", r"two columns are named 'x_norm'"),
    ],
)
def test_what_is_no_number_is_refused_with_line_and_column(
    clip: Path, tmp_path: Path, header: str, row: tuple[str, ...], separator: str, reason: str
) -> None:
    rows: list[Sequence[str]] = [(r if len(header.split(",")) == 3 else (*r[:2], "1", r[2])) for r in GOOD]
    rows[29] = row
    path = table(tmp_path / "g.csv", header.replace(",", separator), rows, separator)
    with pytest.raises(DataError, match=reason) as error:
        read(path, clip)
    assert "g.csv" in str(error.value)
    assert "clock" not in str(error.value)


def test_decimal_commas_are_read_where_they_are_certain(clip: Path, tmp_path: Path) -> None:
    rows = [[cell.replace(".", ",") for cell in row] for row in GOOD]
    assert_right(read(table(tmp_path / "a.csv", "time_s;x_norm;y_norm", rows, ";"), clip))
    quoted = [[f'"{cell}"' for cell in row] for row in rows]
    assert_right(read(table(tmp_path / "b.csv", "time_s,x_norm,y_norm", quoted), clip))
    thousands = [(1000 * k, "1,234", "1,056") for k in range(40)]
    with pytest.raises(DataError, match="for the decimals or for the thousands"):
        read(table(tmp_path / "c.csv", "time_us;x_px;y_px", thousands, ";"), clip)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252"])
def test_windows_encodings_are_read(clip: Path, tmp_path: Path, encoding: str) -> None:
    text = "\n".join(["time_s\tx_norm\ty_norm\tname", *("\t".join((*row, "Jürgen")) for row in GOOD)])
    path = tmp_path / "g.tsv"
    path.write_bytes(text.encode(encoding))
    assert_right(read(path, clip))
    path.write_bytes(b"PK\x03\x04" + b"\0" * 50)
    with pytest.raises(DataError, match="Excel workbook"):
        read(path, clip)


@pytest.mark.parametrize(
    ("name", "values", "dropped"),
    [
        ("valid", (0, 1), "not valid"),
        ("is_valid", ("False", "True"), "not valid"),
        ("validity", ("Invalid", "Valid"), "not valid"),
        ("validity", (4, 0), "not valid"),
        ("confidence", (0.2, 0.9), "low confidence"),
        ("worn", (0, 1), "not worn"),
        ("on_surf", ("FALSE", "TRUE"), "off the surface"),
        ("blink", (1, 0), "blink"),
        ("FPOGV", (0, 1), "not valid"),
        ("fixation id", ("", 3), "not in a fixation"),
        ("eye movement type", ("EyesNotFound", "Fixation"), "eyesnotfound"),
        ("gaze_type", (1, 0), "saccade"),
    ],
)
def test_columns_that_say_this_is_no_gaze_are_honoured_and_counted(
    clip: Path, tmp_path: Path, name: str, values: tuple[Any, Any], dropped: str
) -> None:
    rows = [(*row, values[int(k % 3 != 0)]) for k, row in enumerate(GOOD)]
    header = f"time_s,x_norm,y_norm,{name}"
    if name == "on_surf":  # that column tells a table of Pupil Labs, which counts from the bottom
        rows = [(row[0], row[1], f"{1 - float(row[2]):.4f}", row[3]) for row in rows]
    found = fixations(table(tmp_path / "g.csv", header, rows), clip)
    assert dict(found.dropped) == {dropped: 80}
    assert len(found.frame) == 160
    assert ((found.points[:, 0] + 0.5) / HEIGHT).mean() == pytest.approx(0.25, abs=0.02)


def test_a_validity_of_0_and_1_is_settled_by_the_caller(clip: Path, tmp_path: Path) -> None:
    rows = [(*row, int(k % 3 != 0)) for k, row in enumerate(GOOD)]
    path = table(tmp_path / "g.csv", "time_s,x_norm,y_norm,validity", rows)
    with pytest.raises(DataError, match=r"holds 0 and 1.*columns=\{'valid': 'validity'\}"):
        read(path, clip)
    assert read(path, clip, columns={"valid": "validity"}).lost == 80
    assert read(path, clip, columns={"invalid": "validity"}).lost == 160
    unknown = table(
        tmp_path / "h.csv", "time_s,x_norm,y_norm,gaze_type", [(*row, "wandering") for row in GOOD]
    )
    with pytest.raises(DataError, match=r"line 2, column 'gaze_type': 'wandering' is no known eye movement"):
        read(unknown, clip)


def test_the_message_names_why_nothing_is_left(clip: Path, tmp_path: Path) -> None:
    low = table(tmp_path / "l.csv", "time_s,x_norm,y_norm,confidence", [(*row, 0.1) for row in GOOD])
    with pytest.raises(DataError, match="240 low confidence") as error:
        fixations(low, clip)
    assert "different clocks" not in str(error.value)
    away = table(tmp_path / "o.csv", "time_s,x_px,y_px", [(row[0], 960, 540) for row in GOOD])
    with pytest.raises(DataError, match=r"100% of the samples lie outside the picture.*screen="):
        fixations(away, clip)
    late = table(
        tmp_path / "c.csv", "time_s,x_norm,y_norm", [(float(row[0]) + 900, *row[1:]) for row in GOOD]
    )
    with pytest.raises(DataError, match="different clocks"):
        fixations(late, clip)


# -- frame numbers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video whose frames come 33 ms apart, then 200 ms apart."""
    times = np.cumsum([0, *[1 / 30] * 20, *[0.2] * 19])
    folder = tmp_path_factory.mktemp("uneven")
    return write_clip(
        folder / "clip.mp4", frames=40, fps=30, height=HEIGHT, width=WIDTH, times=times.tolist()
    )


@pytest.mark.parametrize("first", [0, 1])
def test_a_frame_number_means_the_frame_with_that_number(uneven: Path, tmp_path: Path, first: int) -> None:
    rows = [(k + first, (k + 0.5) / 40, 0.5) for k in range(40)]
    found = fixations(table(tmp_path / "g.csv", "frame,x_norm,y_norm", rows), uneven)
    np.testing.assert_array_equal(found.frame, np.arange(40))
    np.testing.assert_array_equal(found.points[:, 1], np.floor((np.arange(40) + 0.5) / 40 * WIDTH))


def test_numbers_beyond_the_video_are_refused_or_counted(uneven: Path, tmp_path: Path) -> None:
    def numbered(numbers: Sequence[int], name: str) -> Path:
        return table(tmp_path / name, "frame,x_norm,y_norm", [(k, 0.4, 0.5) for k in numbers])

    with pytest.raises(DataError, match="run to 99, and the video has 40 frames: 60%"):
        fixations(numbered(range(100), "a.csv"), uneven)
    found = fixations(numbered([*range(40), 41], "b.csv"), uneven)
    assert (len(found.frame), dict(found.dropped)) == (40, {"after the video": 1})
    short = numbered(range(1, 31), "c.csv")
    assert fixations(short, uneven).frame[0] == 1
    assert fixations(short, uneven, first_frame=1).frame[0] == 0


def test_times_and_frame_numbers_that_contradict_each_other_are_refused(uneven: Path, tmp_path: Path) -> None:
    rows = [(k, f"{k / 30:.4f}", 0.4, 0.5) for k in range(40)]
    path = table(tmp_path / "g.csv", "frame,time_s,x_norm,y_norm", rows)
    with pytest.raises(DataError, match=r"frames away from frame .*columns=\{'frame': ''\}"):
        fixations(path, uneven)
    assert fixations(path, uneven, columns={"time": ""}).frame.tolist() == list(range(40))
    # Times of another clock say nothing against the numbers.
    rows = [(k, 7000 + k / 30, 0.4, 0.5) for k in range(40)]
    path = table(tmp_path / "h.csv", "frame,time_s,x_norm,y_norm", rows)
    assert fixations(path, uneven).frame.tolist() == list(range(40))


# -- the screen and the options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "x", "y"),
    [
        ("fit", (0.2 * 1600) / 1600, (0.2 * 960 + 120) / 1200),
        ("stretch", 0.2, 0.2),
        ("centre", 776 / 1600, 585.6 / 1200),
    ],
)
def test_the_place_of_the_picture_on_the_screen_is_an_option(
    clip: Path, tmp_path: Path, picture: str, x: float, y: float
) -> None:
    path = table(tmp_path / "g.csv", "time_s,x_px,y_px", [(row[0], x * 1600, y * 1200) for row in GOOD])
    found = read(path, clip, screen="1600x1200", picture=picture)
    np.testing.assert_allclose([found.x.mean(), found.y.mean()], [0.2, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"screen": "1600"}, "WIDTHxHEIGHT"),
        ({"screen": "0x9"}, "WIDTHxHEIGHT"),
        ({"picture": "left"}, "fit, stretch, centre"),
        ({"picture": "0,0,0,9"}, "LEFT,TOP,WIDTH,HEIGHT"),
        ({"origin": "middle"}, "origin='middle'"),
        ({"columns": {"gaze": "x"}}, "'gaze' is none of"),
        ({"units": "norm", "origin": "top"}, "count from the centre"),
        ({"units": "normalised", "origin": "centre"}, "units='norm'"),
    ],
)
def test_options_of_another_form_are_refused(
    clip: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    path = table(tmp_path / "g.csv", "time_s,x_norm,y_norm", GOOD)
    with pytest.raises(ConfigError, match=reason):
        read(path, clip, **options)


def test_single_recordings_may_have_options_of_their_own(clip: Path, tmp_path: Path) -> None:
    root = tmp_path / "own"
    root.mkdir()
    for name, offset in (("a", 0.0), ("b", 70.0)):
        shutil.copy(clip, root / f"{name}.mp4")
        rows = [(float(row[0]) + offset, row[1], 1 - float(row[2])) for row in GOOD]
        table(root / f"{name}.csv", "time_s,x_norm,y_norm", rows)
    recordings = tmp_path / "recordings.csv"
    recordings.write_text("video,offset,origin\nb.mp4,70,\n")
    data = FolderDataModule(root, origin="bottom", recordings=recordings)
    for item in data.all_items():
        points = item.open().annotation.table.points  # type: ignore[union-attr]
        assert len(points) == 240
        assert ((points[:, 0] + 0.5) / HEIGHT).mean() == pytest.approx(0.25, abs=0.01)
    for text, reason in (("video,delay\nb,7\n", "line 2: expected"), ("video,offset\nb,soon\n", "line 2")):
        recordings.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            FolderDataModule(root, recordings=recordings).all_items()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "clip.mp4"), ("data", "check", "."), ("data", "import", "a.tsv", "--video", "clip.mp4"),
        ("data", "pack", ".", "--out", "x.h5", "--model", "stavis"),
    ],
)  # fmt: skip
def test_the_module_and_the_commands_take_the_readers_options(words: tuple[str, ...]) -> None:
    import inspect

    from avsal.cli import program

    assert set(Reading.__dataclass_fields__) <= set(inspect.signature(FolderDataModule.__init__).parameters)
    given = [
        "--gaze-origin",
        "bottom",
        "--offset",
        "2",
        "--gaze-size",
        "8x6",
        "--gaze-column",
        "x=gx",
        "--column=y=a=b",
    ]
    _, bound, _ = program(words).parse_args([*words, *given], exit_on_error=False)
    assert bound.arguments["reading"] == Reading(
        origin="bottom", offset=2.0, screen="8x6", columns=(("x", "gx"), ("y", "a=b"))
    )


# -- commands --------------------------------------------------------------------------------------------------


def test_import_writes_a_table_that_reads_as_the_export_does(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tobii(tmp_path / "t")
    out = tmp_path / "clip.csv"
    words = [
        "data",
        "import",
        "--from",
        "tobii",
        str(export),
        str(export),
        "--video",
        str(clip),
        "--out",
        str(out),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "24 saccade" in shown
    assert "30 another stimulus" in shown
    mine, theirs = fixations(out, clip), fixations(export, clip)
    assert out.read_text().startswith("time_s,x_norm,y_norm,observer\n")
    assert set(mine.observer) == {0, 1}
    for who in (0, 1):
        np.testing.assert_array_equal(mine.frame[mine.observer == who], theirs.frame)
        np.testing.assert_array_equal(mine.points[mine.observer == who], theirs.points)
    assert main(words) == 2  # nothing is overwritten
    assert "already exists" in capsys.readouterr().err
    out.unlink()
    assert main([*words[:4], str(tmp_path / "none.tsv"), *words[5:]]) == 1  # one of two is not there
    assert "none.tsv" in capsys.readouterr().err
    assert len(fixations(out, clip).frame) == len(theirs.frame)
    out.unlink()
    assert (
        main(["data", "import", "--from", "eyelink", str(export), "--video", str(clip), "--out", str(out)])
        == 2
    )
    assert "no pair of gaze coordinates of eyelink" in capsys.readouterr().err
    assert not out.exists()


def test_imported_fixations_keep_their_duration(clip: Path, tmp_path: Path) -> None:
    header = "RECORDING_SESSION_LABEL\tCURRENT_FIX_START\tCURRENT_FIX_DURATION\tCURRENT_FIX_X\tCURRENT_FIX_Y"
    report = table(tmp_path / "f.txt", header, [("a", -100, 200, 960, 240), ("b", 1240, 310, 800, 480)], "\t")
    out = tmp_path / "clip.csv"
    assert (
        main(["data", "import", str(report), "--video", str(clip), "--screen", "1600x960", "--out", str(out)])
        == 0
    )
    assert out.read_text().splitlines()[0] == "time_s,x_norm,y_norm,duration_s,observer"
    mine, theirs = fixations(out, clip), fixations(report, clip, screen="1600x960")
    np.testing.assert_array_equal(mine.frame, theirs.frame)
    assert theirs.frame.tolist() == [0, 1, 2, *range(31, 39)]


def test_check_counts_what_was_left_out_and_takes_the_options(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "own"
    root.mkdir()
    shutil.copy(clip, root / "clip.mp4")
    rows = [(*row, "Saccade" if k % 4 == 0 else "Fixation") for k, row in enumerate(GOOD)]
    table(root / "clip.csv", "time_s,a,b,gaze_type", rows)
    assert main(["data", "check", str(root), "--json", str(tmp_path / "r.json")]) == 1
    assert "no pair of gaze coordinates" in capsys.readouterr().out
    words = ["--column", "x=a", "--column", "y=b", "--units", "normalised"]
    assert main(["data", "check", str(root), *words, "--json", str(tmp_path / "r.json")]) == 0
    assert "left out: 60 saccade" in capsys.readouterr().out
    assert '"saccade": 60' in (tmp_path / "r.json").read_text()


# -- label images -----------------------------------------------------------------------------------------------


def saved(path: Path, image: np.ndarray, mode: str) -> Path:
    """A label image whose fixations have the number 1, or a dark colour."""
    if mode == "P":
        picture = Image.fromarray(image)
        picture.putpalette([0, 0, 0, 3, 0, 0])
    elif mode == "no palette":
        picture = Image.fromarray(image)
        picture.putpalette([0] * 768)
    elif mode == "1":
        picture = Image.fromarray(image * 255).convert("1")
    elif mode == "RGB":
        picture = Image.fromarray(np.stack([image * 0, image * 0, image], -1))
    elif mode == "RGBA":
        picture = Image.fromarray(np.stack([image, image, image, np.full_like(image, 255)], -1))
    elif mode == "LA":
        picture = Image.fromarray(np.stack([image, np.full_like(image, 255)], -1))
    elif mode == "I;16":
        picture = Image.fromarray(image.astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray(image.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(image)
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "bmp"), ("L", "tif"), ("1", "png"), ("P", "png"), ("no palette", "png"), ("RGB", "png"),
     ("RGBA", "png"), ("LA", "png"), ("I;16", "png"), ("F", "tif")],
)  # fmt: skip
def test_any_value_but_zero_is_a_fixation_in_a_lossless_file(tmp_path: Path, mode: str, suffix: str) -> None:
    image = np.zeros((9, 12), np.uint8)
    image[[2, 5, 8], [3, 0, 11]] = 1
    path = saved(tmp_path / f"0001.{suffix}", image, mode)
    np.testing.assert_array_equal(read_fixation_image(path), image > 0)
    np.testing.assert_array_equal(read_labels(path), image > 0)


def test_a_fixation_image_that_is_mostly_bright_is_refused(tmp_path: Path) -> None:
    image = np.full((9, 12), 255, np.uint8)
    image[4, 4] = 0
    Image.fromarray(image).save(tmp_path / "0001.png")
    with pytest.raises(DataError, match=r"99% of the pixels are not black.*inverted"):
        read_fixation_image(tmp_path / "0001.png")


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Predictions and ground truth in DHF1K's layout, with fixations numbered 0 and 1."""
    rng = np.random.default_rng(0)
    for k in range(1, 4):
        density = np.exp(-((np.arange(30)[:, None] - 12) ** 2 + (np.arange(40)[None] - 8 * k) ** 2) / 30)
        points = np.zeros((30, 40), np.uint8)
        points[12, 8 * k] = points[13, 8 * k - 1] = 1
        for folder, image in (
            ("gt/a/maps", density * 255), ("gt/a/fixation", points),
            ("pred/a", density * 200 + rng.random((30, 40)) * 50),
        ):  # fmt: skip
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / folder / f"{k:04d}.png")
    return tmp_path


def evaluate(folder: Path, *words: str) -> int:
    return main(
        ["evaluate", "--predictions", str(folder / "pred"), "--ground-truth", str(folder / "gt"), "--format", "dhf1k",
         "--out", str(folder / "results"), "--quiet", *words]
    )  # fmt: skip


def test_labels_of_1_score_as_those_of_255(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(labelled) == 0
    ones = capsys.readouterr().out.split("results:")[0].split("frames,")[0]
    for path in (labelled / "gt/a/fixation").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    assert evaluate(labelled) == 0
    assert capsys.readouterr().out.split("results:")[0].split("frames,")[0] == ones
    assert "nan" not in ones


def test_a_metric_that_scored_no_frame_is_an_error(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(labelled / "gt/a/fixation")
    assert evaluate(labelled, "--metrics", "cc,nss") == 2
    shown = capsys.readouterr()
    assert "cc, nss scored none of 3 frames" in shown.err
    assert "nan" in shown.out  # the results are written and shown all the same
    assert list((labelled / "results").glob("*.json"))


def test_every_refusal_is_an_error_of_ours(clip: Path, tmp_path: Path) -> None:
    """Tables cut at any byte, and with any byte changed, are read or refused."""
    text = tobii(tmp_path / "t").read_bytes()[:6000]
    rng = np.random.default_rng(1)
    path = tmp_path / "cut.tsv"
    for _ in range(60):
        data = bytearray(text[: rng.integers(1, len(text))])
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(AvsalError):
            read(path, clip)
