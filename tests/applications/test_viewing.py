"""Reports on films with known maps: the numbers, the page, and names that try to run as scripts."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from avsal.applications.viewing import Area, read_areas, view, write_index, write_page
from avsal.cli import main
from avsal.errors import DataError
from tests.applications.test_reframe import result_folder
from tests.media import write_clip

HOSTILE = "<script>alert(1)</script>\"'&.mp4".replace("/", "∕")


class Tags(HTMLParser):
    """Every tag of a page with its attributes, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def result(tmp_path: Path) -> Path:
    film = write_clip(tmp_path / HOSTILE, frames=24, height=48, width=64)
    maps = np.random.default_rng(0).random((24, 12, 16))
    maps[10] = 0
    maps[10, 3, 4] = 1  # all attention in one cell
    return result_folder(tmp_path / "result", film, maps, np.arange(24) / 24)


def test_the_numbers_are_those_of_the_maps(result: Path) -> None:
    areas = [Area("left", 0, 0, 0.5, 1), Area("late", 0, 0, 1, 1, start=0.5)]
    found = view(result, areas=areas)
    maps = np.load(result / "maps.npy").astype(float)
    shares = maps / maps.sum((1, 2), keepdims=True)
    assert found.rows[:, 1] == pytest.approx([entropy(one.ravel(), base=12 * 16) for one in shares])
    assert found.areas["left"] == pytest.approx(shares[:, :, :8].sum((1, 2)))
    assert np.isnan(found.areas["late"][:12]).all()
    assert found.areas["late"][12:] == pytest.approx(1)
    assert found.rows[1:, 5] == pytest.approx(
        [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairwise(maps)]
    )
    # One cell: no entropy, no spread, and its own centre.
    assert found.rows[10, 1:5] == pytest.approx([0, 0, 4.5 / 16, 3.5 / 12])
    assert found.mean == pytest.approx(shares.mean(0))
    assert found.stills[0][0] == pytest.approx(10 / 24, abs=1e-3)


def test_an_even_map_has_the_spread_of_a_uniform_distribution(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mp4", frames=2, height=48, width=96)
    folder = result_folder(tmp_path / "maps", film, np.ones((2, 200, 400)), np.arange(2) / 24)
    found = view(folder)
    assert found.rows[0, 1] == pytest.approx(1)
    assert found.rows[0, 2] == pytest.approx(np.sqrt((1 + 0.25) / 12), rel=1e-4)


def test_a_page_is_whole_and_no_name_becomes_markup(result: Path, tmp_path: Path) -> None:
    found = view(result, areas=[Area("<img src=x onerror=alert(2)>", 0, 0, 1, 1)], against=result)
    page = write_page(found, tmp_path / "out" / "page.html")
    tags = Tags(page.read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.found].count("script") == 1  # our own, which draws boxes
    assert "alert" not in page.read_text(encoding="utf-8").split("<script>")[1].split("</script>")[0]
    assert not any(key.startswith("on") for _, attributes in tags.found for key in attributes)
    sources = [attributes["src"] or "" for tag, attributes in tags.found if tag in ("img", "video")]
    assert all(source.startswith("data:image/") for source in sources)
    assert HOSTILE in tags.text
    rows = list(csv.reader((tmp_path / "out" / "page.csv").open(encoding="utf-8")))
    assert len(rows) == 25
    assert rows[0][-2:] == ["<img src=x onerror=alert(2)>", "agreement"]
    numbers = json.loads((tmp_path / "out" / "page.json").read_text())
    assert numbers["frames"] == 24
    assert numbers["agreement"] == pytest.approx(1)
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "out" / "page.parquet")
    assert table["entropy"].to_numpy() == pytest.approx(found.rows[:, 1])
    index = Tags(
        write_index([(found, page)] * 2, tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    )
    assert [tag for tag, _ in index.found].count("script") == 1  # our own, which sorts
    assert [attributes["href"] for tag, attributes in index.found if tag == "a"] == ["page.html"] * 2


def test_results_of_other_frames_are_not_compared(result: Path, tmp_path: Path) -> None:
    other = result_folder(tmp_path / "other", tmp_path / HOSTILE, np.ones((12, 12, 16)), np.arange(12) / 12)
    with pytest.raises(DataError, match="frames are not those"):
        view(result, against=other)


def test_recorded_gaze_is_scored_on_the_map_of_its_time(result: Path, tmp_path: Path) -> None:
    table = tmp_path / "gaze.csv"
    rows = [
        (10.2 / 24, 4.5 / 16, 3.5 / 12),
        (10.9 / 24, 4.5 / 16, 3.5 / 12),
        (20.5 / 24, 0.1, 0.2),
        (30, 0.5, 0.5),
    ]
    table.write_text("time_s,x_norm,y_norm\n" + "".join(f"{t:.5f},{x:.5f},{y:.5f}\n" for t, x, y in rows))
    found = view(result, gaze=table)
    assert found.nss is not None
    maps = np.load(result / "maps.npy").astype(float)
    known = np.flatnonzero(~np.isnan(found.nss))
    assert known.tolist() == [10, 20]
    assert found.nss[10] == pytest.approx((1 - 1 / 192) / maps[10].std(ddof=1))
    assert found.nss[20] == pytest.approx((maps[20, 2, 1] - maps[20].mean()) / maps[20].std(ddof=1))
    assert found.summary()["nss"] == pytest.approx(found.nss[known].mean(), abs=1e-4)


@pytest.mark.parametrize("line", ["face,0.1,0.1,0.05,0.5", ",0,0,1,1", "face,a,0,1,1", "face,0,0,1"])
def test_a_table_of_areas_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    table = tmp_path / "areas.csv"
    table.write_text(f"name,left,top,right,bottom\nok,0,0,1,1\n{line}\n")
    with pytest.raises(DataError, match=r"areas\.csv, line 3"):
        read_areas(table)


def test_films_and_results_get_pages_and_an_index(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_clip(tmp_path / "short.mp4", frames=5)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no film")
    out = tmp_path / "out"
    words = [
        "report",
        str(film),
        str(broken),
        str(result),
        "--out",
        str(out),
        "--checkpoint",
        "isp-lite-openfix",
    ]
    assert main([*words, "--quiet"]) == 1
    assert "broken.mp4" in capsys.readouterr().err
    page = (out / "short.html").read_text(encoding="utf-8")
    assert 'src="data:video/mp4;base64,' in page
    assert (out / "result.html").is_file()
    assert Tags((out / "index.html").read_text(encoding="utf-8")).text.count("short.mp4") == 1
