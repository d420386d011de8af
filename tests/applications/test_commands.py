"""`avsal reframe` and `avsal encode` on batches with broken and oddly named files."""

from __future__ import annotations

from pathlib import Path

import pytest

from avsal.cli import main
from tests.media import write_clip


@pytest.mark.parametrize(("command", "ending"), [("reframe", "-1x2.mp4"), ("encode", ".mp4")])
def test_a_broken_film_does_not_stop_the_others(
    command: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_clip(tmp_path / "a [b] <i>'.mp4", frames=6, height=64, width=96)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film")
    options = ["--aspect", "1:2"] if command == "reframe" else ["--preset", "ultrafast"]
    status = main([
        command, str(bad), str(good), "--out", str(tmp_path / "out"), "--checkpoint", "isp-lite-openfix", "--quiet",
        *options,
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 1
    assert "bad.mp4" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{good.stem}{ending.removesuffix('.mp4')}.json", f"{good.stem}{ending}",
    ]  # fmt: skip
    assert f"{good.stem}{ending}" in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reframe"], "no film"),
        (["reframe", "a.mp4", "--aspect", "9:0"], "9:16"),
        (["reframe", "a.mp4", "b.mp4", "--out", "c.mp4"], "one film"),
        (["reframe", "a.mp4", "--speed", "-1"], "lengths per second"),
        (["encode", "a.mp4", "--codec", "libvpx"], "libx264"),
    ],
)
def test_what_cannot_work_is_refused_before_a_film_is_read(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_film_is_never_replaced_by_its_own_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_clip(tmp_path / "film.mp4", frames=6)
    before = film.read_bytes()
    assert main(["encode", str(film), "--out", str(film), "--checkpoint", "isp-lite-openfix", "--quiet"]) == 1
    assert "would replace the film" in capsys.readouterr().err
    assert film.read_bytes() == before
