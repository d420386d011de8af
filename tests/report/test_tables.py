"""Tables in five formats, figures, and the command line of `avsal leaderboard`."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from avsal.cli import main
from avsal.evaluation.results import write_frames
from avsal.report.measured import Board, board
from avsal.report.render import render
from avsal.report.tables import Table, Value, leaderboard
from tests.report.fake import METRICS, VIDEOS, results, write


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of STAViS and its visual-only twin on all six sets."""
    folder = tmp_path_factory.mktemp("six")
    for data in VIDEOS:
        for fold in (1, 2, 3):
            av = results(data, fold, level=0.58)
            v = results(
                data, fold, name="stavis-visual", level=0.56, arguments={"audiovisual": False}, seed=1
            )
            write(folder / data, av, v)
    return folder


@cache
def _board(folder: Path) -> Board:
    return board([folder])


def lines(table: object, model: str, modality: str) -> dict[str, dict[str, str]]:
    place = {name: k for k, name in enumerate(table.columns)}  # type: ignore[attr-defined]
    rows = [r for r in table.rows if (r[0].text, r[1].text) == (model, modality)]  # type: ignore[attr-defined]
    return {r[place["line"]].text: {c: r[k].text for c, k in place.items()} for r in rows}


def test_published_measured_and_difference_stand_on_lines_of_their_own(six: Path) -> None:
    found = _board(six)
    table = next(t for t in leaderboard(found) if t.title == "DIEM")
    shown = lines(table, "STAViS", "AV")
    assert list(shown) == ["published", "measured", "95 % interval", "difference"]
    value = found.of("DIEM")[0].scores["cc"].value
    assert shown["published"]["CC"] == "0.5795"
    assert shown["measured"]["CC"] == f"{value:.4f}"
    assert float(shown["difference"]["CC"].rstrip("*")) == pytest.approx(value - 0.5795, abs=5e-5)
    assert (shown["measured"]["parameters"], shown["measured"]["multiply-adds"]) == ("20.76 M", "15.30 G")
    assert shown["measured"]["maps/s"] == "12.5"
    low, high = map(float, shown["95 % interval"]["CC"].split("…"))
    assert low < value < high
    assert shown["difference"]["CC"].endswith("*") == (not low <= 0.5795 <= high)


def test_models_that_were_not_measured_are_marked(six: Path) -> None:
    tables = leaderboard(_board(six))
    table = next(t for t in tables if t.title == "DIEM")
    kinds = {row[2].text for row in table.rows if row[0].text.startswith(("CASP", "AVRSP", "MSPI"))}
    assert kinds == {"published only"}
    assert not any(row[2].text == "published only" for row in table.rows if row[0].text == "STAViS")
    newer = next(t for t in tables if t.title.startswith("Newer"))
    assert {row[0].text for row in newer.rows} >= {"DiffSal", "ViNet-S", "ViSAGE"}


def test_a_copied_row_is_shown_only_where_its_own_paper_has_none() -> None:
    table = next(t for t in leaderboard(Board([], [])) if t.title == "DIEM")
    sources = {(row[0].text, row[1].text): row[-1].text for row in table.rows}
    assert sources["STAViS", "AV"] == "STAViS, table 2"
    assert sources["ViNet (DHF1K first)", "AV"] == "CASP-Net, table 4, copied"
    everything = next(t for t in leaderboard(Board([], []), everything=True) if t.title == "DIEM")
    assert len(everything.rows) > len(table.rows) + 20


def test_the_mean_over_six_sets_counts_each_once(six: Path) -> None:
    found = _board(six)
    table = next(t for t in leaderboard(found) if t.title == "Mean of the six sets")
    shown = lines(table, "STAViS", "AV")
    mean = np.mean([e.scores["cc"].value for e in found.entries if e.label == "stavis-audiovisual"])
    assert shown["measured"]["CC"] == f"{mean:.4f}"
    assert shown["published"]["CC"] == "0.5644"


def test_the_mean_needs_all_six_sets_under_one_protocol(six: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(six, part)
    shutil.rmtree(part / "ETMD")
    assert not [t for t in leaderboard(board([part])) if t.title == "Mean of the six sets"]
    write(part / "ETMD", *(results("ETMD", fold, protocol={"coverage": "authors"}) for fold in (1, 2, 3)))
    assert not [t for t in leaderboard(board([part])) if t.title == "Mean of the six sets"]


def test_each_protocol_has_a_mean_of_its_own(six: Path, tmp_path: Path) -> None:
    other = [results(d, k, level=0.3, protocol={"coverage": "authors"}) for d in VIDEOS for k in (1, 2, 3)]
    found = board([six, *write(tmp_path, *other)])
    first, second = (t for t in leaderboard(found) if t.title.startswith("Mean of the six sets"))
    assert (first.title, second.title) == (
        "Mean of the six sets", "Mean of the six sets (coverage is authors, not full)",
    )  # fmt: skip
    plain = next(t for t in leaderboard(_board(six)) if t.title == "Mean of the six sets")
    assert first.rows == plain.rows
    assert float(lines(second, "STAViS", "AV")["measured"]["CC"]) == pytest.approx(0.3, abs=0.02)


def test_formats_hold_the_same_numbers(six: Path) -> None:
    found = _board(six)
    tables = leaderboard(found, data=["DIEM"])
    value = found.of("DIEM")[0].scores["nss"].value
    for form in ("terminal", "markdown", "latex", "html"):
        assert f"{value:.3f}" in render(tables, form), form
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    mine = [
        r
        for r in rows
        if (r["model"], r["modality"], r["line"], r["column"]) == ("STAViS", "AV", "measured", "NSS")
    ]
    assert [float(r["value"]) for r in mine] == [value]


def test_markdown_tables_are_rectangular_and_latex_is_escaped(six: Path) -> None:
    tables = leaderboard(_board(six), data=["DIEM"])
    rows = [line for line in render(tables, "markdown").splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    latex = render(tables, "latex")
    assert r"95 \% interval" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1


@pytest.mark.parametrize("width", [30, 60, 80, 120, 400])
def test_no_number_is_cropped_on_a_narrow_terminal(six: Path, width: int) -> None:
    tables = leaderboard(_board(six), data=["DIEM"])
    printed = render(tables, "terminal", width=width)
    table = tables[0]
    for row in table.rows:
        for heading, value in zip(table.columns, row, strict=True):
            if value.text and heading not in ("model", "source"):
                assert re.search(rf"(?<!\S){re.escape(value.text)}(?!\S)", printed), (width, value.text)
    body = printed.split("Protocol:")[0].splitlines()
    assert max(map(len, body)) <= max(width, 50)  # the name columns and one interval need as much
    assert sum("CC" in line for line in body) == 1


def test_csv_gives_both_bounds_of_an_interval_as_shown(tmp_path: Path) -> None:
    videos = {
        f"Ego4D/{k}": {"f1": 0.4, "recall": 0.3 + 0.1 * k, "precision": 0.5, "frames": 100} for k in range(4)
    }
    run = results("Ego4D", None, name="csts-ego4d", model="CSTS", videos=videos)
    run.metrics = {"f1": 0.45, "recall": 0.45, "precision": 0.5}
    found = board(write(tmp_path, run))
    tables = leaderboard(found, data=["Ego4D"], published=False)
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    bounds = {
        r["line"]: float(r["value"]) for r in rows if r["column"] == "Recall" and "interval" in r["line"]
    }
    score = found.entries[0].scores["recall"]
    assert bounds == {
        "95 % interval, low": pytest.approx(100 * score.low), "95 % interval, high": pytest.approx(100 * score.high),
    }  # fmt: skip
    measured = [float(r["value"]) for r in rows if (r["column"], r["line"]) == ("Recall", "measured")]
    assert bounds["95 % interval, low"] < measured[0] < bounds["95 % interval, high"]
    page = render(tables, "html")
    assert f'data-sort="{100 * score.low}"' in page


def test_markdown_finds_the_figures_from_where_it_lies(six: Path, tmp_path: Path) -> None:
    figure = tmp_path / "drawn here" / "a b.png"
    figure.parent.mkdir()
    Image.new("RGB", (4, 4)).save(figure)
    tables = leaderboard(_board(six), data=["DIEM"])
    text = render(tables, "markdown", figures=[("caption", figure)], folder=tmp_path / "docs" / "deep")
    (link,) = re.findall(r"!\[caption\]\(([^)]*)\)", text)
    assert " " not in link
    assert (tmp_path / "docs" / "deep" / unquote(link)).resolve() == figure.resolve()


def test_latex_prints_the_notes_once(six: Path) -> None:
    tables = leaderboard(_board(six), data=["DIEM"])
    text = render(tables, "latex", notes=["A sentence & more."], left_out=["left out: x.json has_it."])
    visible = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"A sentence \& more." in visible
    assert "Protocol: average video" in visible
    assert text.count("left out") == 1
    assert "% left out: x.json has_it." in text


def test_a_row_with_other_pretraining_stays_when_its_twin_is_measured(tmp_path: Path) -> None:
    runs = [results("DIEM", fold, name="casp-audiovisual", model="CASPNet") for fold in (1, 2, 3)]
    table = next(t for t in leaderboard(board(write(tmp_path, *runs))) if t.title == "DIEM")
    place = table.columns.index("CC")
    rows = {(r[0].text, r[1].text, r[2].text): r[place].text for r in table.rows}
    assert rows["CASP-Net", "AV", "published"] == "0.655"
    assert rows["CASP-Net", "AV", "published only"] == "0.649"  # without DHF1K


def test_benchmarks_of_others_stay_beside_measured_sets(six: Path) -> None:
    tables = {t.title: t for t in leaderboard(_board(six))}
    assert {"NTIRE 2026", "DHF1K"} <= set(tables)
    assert {row[2].text for row in tables["NTIRE 2026"].rows} == {"published only"}
    for title, names in (
        ("Newer models (cited, not measured)", {"DiffSal", "ViSAGE"}),
        (
            "Benchmarks (cited, not measured)",
            {"AViMoS (AIM 2024)", "CrowdSAL", "MSU benchmark", "MIT/Tübingen"},
        ),
    ):
        table = tables[title]
        assert names <= {row[0].text for row in table.rows}
        assert {row[table.columns.index("line")].text for row in table.rows} == {"published only"}
        assert all(row[table.columns.index("source")].text.startswith("http") for row in table.rows)
    assert "NTIRE 2026" not in {t.title for t in leaderboard(_board(six), published=False)}
    part = {t.title for t in leaderboard(board([six / "AVAD"]))}
    assert "AVAD" in part
    assert not {"DIEM", "ETMD", "Ego4D, anticipation"} & part  # of the papers' sets those that were measured


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(six: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    text = render(
        leaderboard(_board(six)), "html", left_out=["x.json <b>", "y"], figures=[("caption & more", picture)]
    )
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert "x.json &lt;b&gt;" in text
    loaded = [a.get("src") or a.get("href") for tag, a in page.seen if tag in ("script", "link", "img")]
    assert all(address is None or address.startswith("data:image/png;base64,") for address in loaded)
    assert len([1 for tag, _ in page.seen if tag == "button"]) > 50


@pytest.mark.skipif(shutil.which("node") is None, reason="the page's script is run by node")
def test_columns_sort_by_value_with_empty_cells_and_published_rows_last(six: Path, tmp_path: Path) -> None:
    script = re.search(
        r"<script>(.*)</script>", render(leaderboard(_board(six), data=["DIEM"]), "html"), re.S
    )
    assert script is not None
    program = (
        """
const cell = s => ({dataset: s === null ? {} : {sort: s}});
const row = (kind, s) => ({className: kind, cells: [cell(s)]});
const tBodies = ["0.5", null, "10", "9"].map(s =>
  ({rows: [row("published", "7"), row("measured", s), row("interval", "1")]}));
tBodies.unshift({rows: [row("published-only", "8"), row("published-only", "8")]});
const out = [];
const head = {cellIndex: 0, state: "none", classList: {contains: () => false},
  getAttribute() { return this.state; }, setAttribute(_, v) { this.state = v; },
  closest: () => ({querySelectorAll: () => [head], tBodies, append: g => out.push(g.rows[1].cells[0].dataset.sort)})};
let click;
global.document = {querySelectorAll: () => [{parentElement: head, addEventListener: (_, f) => click = f}]};
"""
        + script.group(1)
        + "\nclick(); click(); console.log(JSON.stringify(out));"
    )
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["10", "9", "0.5", None, "8", "0.5", "9", "10", None, "8"]


# -- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_for_cost_twins_and_time(six: Path, tmp_path: Path) -> None:
    from avsal.report.figures import draw_all

    folder = tmp_path / "results"
    shutil.copytree(six / "DIEM", folder)
    names = sorted(results("DIEM", 1).videos)
    count = len(names) * 10
    frames = {
        "videos": np.array(names),
        "metrics": np.array(METRICS),
        "video": np.repeat(np.arange(len(names), dtype=np.int32), 10),
        "frame": np.tile(np.arange(10, dtype=np.int32), len(names)),
        "scores": np.random.default_rng(0).normal(2, 0.2, (count, len(METRICS))).astype(np.float32),
    }
    for path in folder.glob("*.json"):
        write_frames(frames, path)
    made = draw_all(board([folder]), tmp_path / "figures", video="v004")
    assert [p.name.rsplit("-", 1)[-1] for _, p in made] == ["cost.png", "videos.png", "time.png"]
    assert "DIEM/v004" in made[-1][0]
    for _, path in made:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert (pixels != 255).any(-1).mean() > 0.01


# -- command line --------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_and_says_what_it_left_out(
    six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = results("DIEM", 1, name="odd", model="Other", protocol={"stride": 3})
    write(tmp_path, odd, results("DIEM", 2, created="2025-06-01T00:00:00+00:00"))
    out = tmp_path / "board.md"
    words = ["leaderboard", str(six), str(tmp_path), "--data", "diem", "--metric", "CC", "--out", str(out)]
    assert main(words) == 1
    assert "which is newer" in capsys.readouterr().err
    text = out.read_text()
    assert "which is newer" in text
    assert "## DIEM (stride is 3, not 1)" in text
    assert "| CC |" in text
    assert "NSS" not in text.split("## How")[0]


def test_without_results_the_published_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "--data", "AVAD"]) == 0
    printed = capsys.readouterr().out
    assert "published only" in printed
    assert not re.search(r"V +measured", printed)


@pytest.mark.parametrize(
    ("words", "message"), [(["--metric", "F9"], "F9 is not known"), (["--data", "DIAM"], "no table for DIAM")]
)
def test_wrong_options_are_explained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["leaderboard", "--data", "DIEM", "--data", "Foo"], "no table for Foo"),
        (["reproduce", "stavis", "--devices", "abc", "--dry-run"], "--devices abc"),
        (["reproduce", "stavis", "--devices", "0", "--dry-run"], "--devices 0"),
        (["reproduce", "synthav", "--clips", "0", "--dry-run"], "--clips 0"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_done(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert ", ," not in said
    assert ": ," not in said


def test_a_video_that_is_not_there_is_an_error_with_near_names(
    six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["leaderboard", str(six), "--figures", str(tmp_path / "figures"), "--video"]
    assert main([*words, "DIEM/v0O4"]) == 2
    assert "DIEM/v004" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_csv_says_its_notes_beside_the_file(
    six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "board.csv"
    assert main(["leaderboard", str(six), "--data", "DIEM", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "Protocol: average video" in said
    assert "never averaged" in said.replace("\n", " ")
    assert out.read_text().startswith("table,model")
    assert "Protocol" not in out.read_text()


def test_the_axis_of_time_is_in_seconds_where_the_rate_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avsal.report import figures

    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    curves = {"a": (np.arange(0, 100, 10), np.linspace(0, 1, 10))}
    for fps, label, end in ((25.0, "seconds", 90 / 25), (None, "frame", 90)):
        figures.over_time(curves, "nss", "v", tmp_path / "a.png", fps=fps)
        axes = kept[-1].axes[0]
        assert axes.get_xlabel() == label
        assert axes.lines[0].get_xdata()[-1] == pytest.approx(end)
    frames = {
        "videos": np.array(["a", "b"]), "fps": np.array([30.0, np.nan]), "metrics": np.array(["nss"]),
        "video": np.array([0, 1]), "frame": np.array([0, 0]), "scores": np.ones((2, 1)),
    }  # fmt: skip
    (path,) = write(tmp_path, results("DIEM", 1))
    write_frames(frames, path)
    record = type("Record", (), {"path": path})()
    found = [figures.frame_scores(record, name, "nss") for name in "ab"]
    assert [one[2] for one in found if one is not None] == [30.0, None]
    assert figures.frame_scores(record, "c", "nss") is None


EVIL = """x" onmouseover="alert(1)' onfocus='alert(2) --><script>alert(3)</script>`&lt;{{ 7 * 7 }}{% raw %}"""


def test_no_text_of_a_result_becomes_markup(tmp_path: Path) -> None:
    cell = Value(EVIL, sort=EVIL)
    link = Value('https://x.org/"onmouseover="alert(1)', sort='"><script>alert(1)</script>')
    number = Value("0.5", sort=0.5)
    table = Table(EVIL, ("model", "line", "CC", "source"), [[cell, cell, number, link]], notes=[EVIL])
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    text = render([table], "html", title=EVIL, notes=[EVIL], left_out=[EVIL], figures=[(EVIL, picture)])
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len([tag for tag, _ in page.seen if tag == "script"]) == 1
    assert not [a for _, attributes in page.seen for a in attributes if a.startswith("on")]
    sorts = [
        attributes["data-sort"] for tag, attributes in page.seen if tag == "td" and "data-sort" in attributes
    ]
    assert sorts == [EVIL, EVIL, "0.5", '"><script>alert(1)</script>']
    assert "{{ 7 * 7 }}" in text
    assert "49" not in re.sub(r"base64,[^\"]*", "", text.split("<body>")[1].split("<script>")[0])


def test_a_javascript_address_is_no_link() -> None:
    table = Table("t", ("model", "source"), [[Value("a"), Value("javascript:alert(1)")]])
    assert "<a " not in render([table], "html")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r", " ="])
def test_no_cell_of_a_csv_is_a_formula(start: str) -> None:
    evil = start + "HYPERLINK(1)"
    table = Table(evil, ("model", "mod.", "line", "CC", "source"),
                  [[Value(evil), Value(evil), Value(evil), Value("-0.5", sort=-0.5), Value(evil)]])  # fmt: skip
    rows = list(csv.reader(io.StringIO(render([table], "csv"), newline="")))
    harmless = " HYPERLINK(1)" if start == "\r" else "'" + evil
    assert rows[1][:4] == [harmless] * 4
    assert rows[1][7] == harmless
    assert rows[1][5:7] == ["-0.5", "-0.5"]
