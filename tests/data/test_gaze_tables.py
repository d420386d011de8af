"""Gaze tables: dialects, units and time bases that are recognised, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avsal.data.gaze.tables import read_gaze_table
from avsal.errors import DataError


def write(folder: Path, text: str, name: str = "gaze.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def track(
    header: str, *, seconds: float = 1.0, scale: tuple[float, float] = (1, 1), unit: float = 1.0
) -> str:
    """A table at 50 Hz of a gaze that moves along a diagonal; `unit` is one second."""
    lines = [header]
    for k in range(round(50 * seconds)):
        t = 3.0 + k / 50
        lines.append(f"{t * unit:.6f},{(0.2 + 0.01 * k) * scale[0]:.5f},{(0.7 - 0.01 * k) * scale[1]:.5f}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("named", [True, False])
def test_the_time_base_is_known_by_name_or_by_the_rate(tmp_path: Path, unit: str, named: bool) -> None:
    scale = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    table = read_gaze_table(write(tmp_path, track(f"time_{unit},x,y" if named else "t,x,y", unit=scale)))
    assert table.time_unit == unit
    np.testing.assert_allclose(table.time, 3.0 + np.arange(50) / 50, atol=1e-6)


@pytest.mark.parametrize(
    ("header", "scale", "size", "kind"),
    [
        ("time_s,x_norm,y_norm", (1, 1), None, "normalised"),
        ("time_s,x,y", (1, 1), None, "normalised"),
        ("time_s,x,y", (640, 480), (480, 640), "pixels"),
        ("timestamp_s,gaze x [px],gaze y [px]", (1600, 1200), (1200, 1600), "pixels"),
        ("time_s,B POR X [px],B POR Y [px]", (1280, 960), (960, 1280), "pixels"),
    ],
)
def test_points_come_out_in_shares_of_the_picture(
    tmp_path: Path, header: str, scale: tuple[float, float], size: tuple[int, int] | None, kind: str
) -> None:
    table = read_gaze_table(write(tmp_path, track(header, scale=scale)), size=size)
    assert (table.kind, table.units) == ("points", kind)
    np.testing.assert_allclose(table.x, 0.2 + 0.01 * np.arange(50), atol=1e-4)
    np.testing.assert_allclose(table.y, 0.7 - 0.01 * np.arange(50), atol=1e-4)


def test_pupil_labs_counts_y_from_the_bottom(tmp_path: Path) -> None:
    table = read_gaze_table(write(tmp_path, track("gaze_timestamp,norm_pos_x,norm_pos_y")))
    np.testing.assert_allclose(table.y, 0.3 + 0.01 * np.arange(50), atol=1e-5)
    turned = read_gaze_table(table.path, origin="top")
    np.testing.assert_allclose(turned.y, 1 - table.y)


def test_angles_in_degrees_become_radians(tmp_path: Path) -> None:
    table = read_gaze_table(write(tmp_path, track("time_s,azimuth [deg],elevation [deg]", scale=(30, 30))))
    assert (table.kind, table.units) == ("angles", "degrees")
    assert table.x[0] == pytest.approx(np.deg2rad(6))


@pytest.mark.parametrize(
    ("header", "scale", "options", "reason"),
    [
        ("time_s,x,y", (640, 480), {}, "pass size="),
        ("time_s,x,y", (5, 5), {}, "neither shares of the picture"),
        ("time_s,x,y", (-30, 30), {}, "below zero"),
        ("time_s,x,y", (1920, 1080), {"size": (240, 320)}, "far outside a picture of 320x240"),
        ("time_s,x,y", (160, 90), {"size": (240, 426)}, "upper left of a picture of 426x240"),
        ("time_s,x,y", (60, 60), {"size": (240, 426)}, "'degrees' if they are"),  # 12 to 42 degrees
        ("time_ms,x,y", (1, 1), {}, "no eye tracker records"),
        ("time_s,x,y", (400, 400), {"units": "normalised"}, "pixels or degrees"),
        ("time_s,left,right", (1, 1), {}, "no pair of gaze coordinates"),
        ("phase,x,y", (1, 1), {}, "neither a time nor a frame column"),
        ("time_s,x,y", (1, 1), {"columns": {"x": "gaze"}}, "no column gaze"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused_with_the_reason(
    tmp_path: Path, header: str, scale: tuple[float, float], options: dict, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as error:
        read_gaze_table(write(tmp_path, track(header, scale=scale)), **options)
    assert "gaze.csv" in str(error.value)


def test_pixels_that_stay_in_one_place_are_taken_where_a_name_or_the_caller_says_so(tmp_path: Path) -> None:
    small = track("time_s,x,y", scale=(160, 90))
    table = read_gaze_table(write(tmp_path, small), size=(240, 426), units="pixels")
    np.testing.assert_allclose(table.x * 426, 160 * (0.2 + 0.01 * np.arange(50)), atol=1e-3)
    named = read_gaze_table(write(tmp_path, small.replace("x,y", "x_px,y_px")), size=(240, 426))
    np.testing.assert_array_equal(named.x, table.x)
    # Gaze that never leaves the middle of the picture, or its upper right, needs no unit.
    rng = np.random.default_rng(0)
    for centre in ((213, 120), (300, 60), (60, 170)):
        points = rng.normal(centre, (12, 8), (200, 2))
        lines = [f"{k / 50:.2f},{x:.1f},{y:.1f}" for k, (x, y) in enumerate(points)]
        table = read_gaze_table(write(tmp_path, "\n".join(["time_s,x,y", *lines])), size=(240, 426))
        assert np.median(table.x) * 426 == pytest.approx(centre[0], abs=3)


@pytest.mark.parametrize(
    ("header", "times", "seconds"),
    [
        ("t", np.arange(312), 312 / 30),  # frame numbers, which look like milliseconds at 1000 Hz
        ("t", np.arange(1200), 10.0),  # of a video of 120 frames per second
        ("time", np.arange(60), 60.0),  # whole seconds
    ],
)
def test_a_guessed_time_unit_that_covers_little_of_the_video_is_refused(
    tmp_path: Path, header: str, times: np.ndarray, seconds: float
) -> None:
    def table(name: str) -> Path:
        return write(
            tmp_path, "\n".join([f"{name},x,y", *(f"{t},0.5,0.{k % 9}1" for k, t in enumerate(times))])
        )

    with pytest.raises(DataError, match=r"in ms, but then gaze lasts .* Pass time_unit") as error:
        read_gaze_table(table(header)).nearest([0.0, seconds])
    assert "gaze.csv" in str(error.value)
    # A unit that is named or given is taken at its word.
    assert read_gaze_table(table(f"{header}_ms")).nearest([0.0, seconds]).tolist() == [0, -1]
    assert read_gaze_table(table(header), time_unit="ms").nearest([0.0, seconds]).tolist() == [0, -1]
    # Where the video is as long as the gaze, the guess stands.
    assert read_gaze_table(table(header)).nearest([0.0, times[-1] / 1000])[0] == 0


def test_a_single_time_has_no_unit_unless_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Pass time_unit"):
        read_gaze_table(write(tmp_path, "time,x,y\n12,0.5,0.5\n"))
    assert read_gaze_table(tmp_path / "gaze.csv", time_unit="ms").time[0] == pytest.approx(0.012)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("time_s,x,y\n", "no samples"),
        ("0.1,0.5,0.5\n0.2,0.5,0.5\n", "not column names"),
        ("time_s,x,y\n0.1,0.5\n0.2,0.5\n0.3,0.5,0.5\n", "fewer columns"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_gaze_table(write(tmp_path, text))


def test_lost_and_outside_samples_are_counted_and_a_last_half_line_is_dropped(tmp_path: Path) -> None:
    rows = ["0.00,0.5,0.5", "0.02,0,0", "0.04,,", "0.06,nan,0.2", "0.08,1.2,0.5", "0.10,0.6,-0.1", "0.1"]
    table = read_gaze_table(write(tmp_path, "\n".join(["time_s,x,y", *rows])))
    assert len(table) == 6
    assert (table.lost, table.outside) == (3, 2)
    assert table.tracked.tolist() == [True, False, False, False, True, True]


def test_other_separators_comments_observers_and_frames_are_read(tmp_path: Path) -> None:
    text = "## BeGaze\nframe;x;y;observer\n3;0.5;0.6;anna\n1;0.2;0.3;ben\n2;0.4;0.4;anna\n"
    table = read_gaze_table(write(tmp_path, text), fps=10)
    assert table.frame is not None
    assert table.observer is not None
    assert table.frame.tolist() == [1, 2, 3]
    assert table.observer.tolist() == [1, 0, 0]
    np.testing.assert_allclose(table.time, [0.1, 0.2, 0.3])


def test_the_nearest_sample_counts_unless_it_is_too_far(tmp_path: Path) -> None:
    table = read_gaze_table(write(tmp_path, track("time_s,x,y")))
    times = [2.7, 2.9, 3.0, 3.011, 3.5, 3.98, 4.1, 4.5]
    assert table.nearest(times, max_gap=0.15).tolist() == [-1, 0, 0, 1, 25, 49, 49, -1]
    shifted = table.shifted(3.0)
    assert shifted.nearest([0.0, 0.5]).tolist() == [0, 25]
    with pytest.raises(DataError, match=r"gaze runs from 3\.000.*different clocks"):
        table.nearest([100.0, 101.0])


def test_real_tables_of_three_generations_of_glasses_are_read(real_data: Path) -> None:
    folder = real_data / "gaze"
    aria = folder / "aria_mps_sample"
    expected = {
        aria / "gen1" / "generalized_eye_gaze.csv": (123, 148.502622, 0.894797),
        aria / "gen1" / "eyegaze.csv": (123, 148.502622, 0.894797),
        aria / "gen1_vergence" / "generalized_gaze.csv": (
            123,
            148.502622,
            (0.801510214805603 + 0.7736955881118774) / 2,
        ),
        aria / "gen2" / "general_eye_gaze.csv": (5, 1130.889351, 0.07778378224032466),
    }
    for path, (count, time, yaw) in expected.items():
        table = read_gaze_table(path)
        assert (len(table), table.kind, table.time_unit) == (count, "angles", "us")
        assert (table.time[0], table.x[0]) == pytest.approx((time, yaw))
    fixations = read_gaze_table(folder / "hevc33" / "fixations.csv")
    assert (len(fixations), fixations.units, fixations.time_unit) == (26913, "normalised", "ms")
    with pytest.raises(DataError, match="no pair of gaze coordinates"):
        read_gaze_table(folder / "aria_aea_sample" / "speech.csv")
