"""`avsal data …`: what it says, what it fetches, what it finds wrong."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import avsal.data
from avsal import downloads
from avsal.cli import main
from avsal.data.catalog import ENTRIES, entry
from avsal.data.check import check, recognise
from avsal.data.fetch import choose_hub_files, fetch, listed_names, wanted_member
from avsal.downloads import download, extract
from avsal.errors import DataError
from tests.data.test_layout import make_video, write_list
from tests.media import tone, write_clip


def test_every_data_set_has_a_module_terms_and_steps(capsys):
    for e in ENTRIES:
        assert isinstance(getattr(avsal.data, e.module), type)
        assert e.licence
        assert e.steps
        assert main(["data", "info", e.name]) == 0
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert all(e.name in said for e in ENTRIES)
    assert main(["data", "info", "crowdsall"]) == 2
    assert "Did you mean 'crowdsal'" in capsys.readouterr().err


# -- check -------------------------------------------------------------------------------------------------


def test_check_finds_what_is_wrong_and_changes_nothing(tmp_path, capsys):
    make_video(tmp_path, "AVAD", "good", 8)
    make_video(tmp_path, "AVAD", "short", 8)
    make_video(tmp_path, "AVAD", "gap", 8)
    make_video(tmp_path, "AVAD", "video", 8, as_file=True)
    (tmp_path / "video_frames" / "AVAD" / "gap" / "img_00004.jpg").unlink()
    (tmp_path / "annotations" / "AVAD" / "good" / "fixMap_00003.mat").write_bytes(b"nonsense" * 40)
    write_clip(tmp_path / "video" / "AVAD" / "video.mp4", frames=8, fps=25)
    (tmp_path / "video" / "AVAD" / "video.mp4").unlink()
    write_clip(tmp_path / "video" / "AVAD" / "video.mp4", frames=8, fps=30, sound=tone(3.0, 8000), rate=8000)
    write_list(
        tmp_path, "AVAD_list_train_1_fps.txt", "good 8 25\r\nshort 12 25\r\ngap 8 25\r\nvideo 8 25\r\n"
    )
    write_list(tmp_path, "AVAD_list_test_1_fps.txt", "absent 8 25\n")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status = main(["data", "check", str(tmp_path), "--json", str(tmp_path.parent / f"{tmp_path.name}.json")])
    assert status == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    reports = {r["name"]: r for r in json.loads((tmp_path.parent / f"{tmp_path.name}.json").read_text())}
    problems = {name: " | ".join(r["problems"]) for name, r in reports.items()}
    assert re.search(r"frame 2: .*fixMap_00003.mat", problems["AVAD/good"])
    assert "list says 12 frames, there are 8" in problems["AVAD/short"]
    assert "1 frame numbers are missing, the first is 4" in problems["AVAD/gap"]
    assert "the list says 25 fps, the file 30" in problems["AVAD/video"]
    assert re.search(r"sound lasts 3\.\d+ s, the video 0\.27 s", problems["AVAD/video"])
    assert "neither" in problems["AVAD/absent"]
    assert "5 videos, 0 without problems, 5 with." in capsys.readouterr().out


def test_check_of_a_sound_set_is_quiet_and_counts(tmp_path, capsys):
    assert (
        main(
            [
                "data",
                "synth",
                "--out",
                str(tmp_path / "s"),
                "--clips",
                "4",
                "--seconds",
                "1",
                "--observers",
                "3",
            ]
        )
        == 0
    )
    assert main(["data", "check", str(tmp_path / "s")]) == 0
    assert "4 videos, 4 without problems" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2


def test_fixations_far_outside_the_picture_are_reported(tmp_path):
    write_clip(tmp_path / "a.mp4", frames=20, fps=25)
    rows = [f"{t / 25 + 0.01:.3f},{x},{0.5}" for t in range(20) for x in (0.5, 1.4 if t % 2 else 0.4)]
    (tmp_path / "a.csv").write_text("time_s,x_norm,y_norm\n" + "\n".join(rows) + "\n")
    module = recognise(tmp_path)
    assert type(module).__name__ == "FolderDataModule"
    report = check(module)[0]
    assert report.outside == 10
    assert "10 of 40 fixations lie outside" in report.problems[0]


def test_pack_is_a_command(tmp_path, capsys):
    main(
        ["data", "synth", "--out", str(tmp_path / "s"), "--clips", "12", "--seconds", "1", "--observers", "2"]
    )
    assert (
        main(["data", "pack", str(tmp_path / "s"), "--out", str(tmp_path / "s.h5"), "--model", "stavis"]) == 0
    )
    assert (tmp_path / "s.h5").stat().st_size > 1e6
    assert (
        main(["data", "pack", str(tmp_path / "s"), "--out", str(tmp_path / "s.h5"), "--model", "stavis"]) == 2
    )
    assert "exists already" in capsys.readouterr().err


# -- fetch -------------------------------------------------------------------------------------------------


class Server:
    """Serves one file; breaks off each answer after `cut` bytes; honours ranges if `ranges`."""

    def __init__(self, content: bytes, cut: int | None = None, ranges: bool = True) -> None:
        self.content, self.cut, self.ranges, self.asked = content, cut, ranges, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Range"))
                if self.path == "/none":
                    self.send_error(404)
                    return
                begin = 0
                if outer.ranges and self.headers.get("Range"):
                    begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    size = len(outer.content)
                    self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
                else:
                    self.send_response(200)
                body = outer.content[begin:]
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", '"the only version"')
                self.end_headers()
                self.wfile.write(body[: outer.cut] if outer.cut else body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)


def test_a_download_goes_on_where_it_stopped(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 500_000, dtype=np.uint8).tobytes()
    with Server(content, cut=200_000) as server:
        digest = download(server.url("a.bin"), tmp_path / "a.bin")
        assert server.asked == [None, "bytes=200000-", "bytes=400000-"]
    assert digest == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "a.bin").read_bytes() == content
    assert not (tmp_path / "a.bin.part").exists()


def test_a_server_without_ranges_begins_again_and_a_broken_one_keeps_the_part(tmp_path):
    with Server(b"x" * 1000, ranges=False) as server:
        (tmp_path / "a.bin.part").write_bytes(b"y" * 300)
        download(server.url("a.bin"), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"x" * 1000
    with (
        Server(b"x" * 1000, cut=10) as server,
        pytest.raises(DataError, match=r"broke off after 50 of 1000.*b.bin.part"),
    ):
        download(server.url("b.bin"), tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()
    assert (tmp_path / "b.bin.part").stat().st_size == 50
    with Server(b"") as server, pytest.raises(DataError, match="404"):
        download(server.url("none"), tmp_path / "c.bin")


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_fetched_archives_are_unpacked_once_into_the_layout(tmp_path):
    said: list[str] = []
    with Server(_tar({"annotations/DIEM/a/fixMap_00001.mat": b"1"})) as server:
        one = replace(entry("diem"), urls=((server.url("data/annotations/DIEM.tar.gz"), "annotations"),))
        assert fetch(one, tmp_path, say=said.append)
        assert (tmp_path / "annotations" / "DIEM" / "a" / "fixMap_00001.mat").read_bytes() == b"1"
        assert fetch(one, tmp_path, say=said.append)
        assert len(server.asked) == 1
    assert any("there already" in line for line in said)
    assert any("sha256" in line for line in said)
    assert [p.name for p in (tmp_path / "archives").iterdir()] == []


def test_archives_cannot_write_outside_their_folder(tmp_path):
    (tmp_path / "bad.tar.gz").write_bytes(_tar({"../evil.txt": b"x"}))
    with pytest.raises(DataError, match="outside"):
        extract(tmp_path / "bad.tar.gz", tmp_path / "out")
    assert not (tmp_path / "evil.txt").exists()
    (tmp_path / "cut.tar.gz").write_bytes(_tar({"a": b"x" * 5000})[:60])
    with pytest.raises(DataError, match="damaged"):
        extract(tmp_path / "cut.tar.gz", tmp_path / "out")


def test_what_may_not_be_fetched_is_explained(tmp_path, capsys):
    assert main(["data", "fetch", "dhf1k", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "https://github.com/wenguanwang/DHF1K" in said
    assert "annotation/0001" in said


def test_only_the_videos_asked_for_are_fetched_from_the_hub(tmp_path, monkeypatch):
    files = ["README.md", "metadata.jsonl"]
    for part, first in (("Train", 1), ("Test", 3001)):
        for k in range(first, first + 4):
            files += [
                f"{part}/Videos/{k:04d}.mp4",
                f"{part}/Saliency/{k:04d}.mp4",
                f"{part}/Fixations/{k:04d}.json",
            ]
    chosen = choose_hub_files(files, "test", 2)
    assert chosen[:2] == ["README.md", "metadata.jsonl"]
    assert sorted(chosen[2:]) == sorted(f for f in files if re.search(r"300[12]\.", f))
    zips = [
        "FixationsTest.zip",
        "FixationsTrain.zip",
        "SaliencyTest.zip",
        "TrainTestSplit.json",
        "Videos.zip",
    ]
    assert choose_hub_files(zips, "test", 5) == [
        "TrainTestSplit.json",
        "FixationsTest.zip",
        "SaliencyTest.zip",
        "Videos.zip",
    ]

    class Api:
        def __init__(self, endpoint: str | None = None) -> None:
            pass

        def list_repo_files(self, repo: str, repo_type: str) -> list[str]:
            assert (repo, repo_type) == ("ANDRYHA/CrowdSAL", "dataset")
            return files

    def get(repo: str, name: str, *, repo_type: str, local_dir: Path, endpoint: str | None) -> str:
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        return str(path)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", get)
    arguments = ["data", "fetch", "crowdsal", "--out", str(tmp_path), "--split", "test", "--max-videos", "2"]
    assert main(arguments) == 0
    assert sorted(p.stem for p in (tmp_path / "Test" / "Videos").iterdir()) == ["3001", "3002"]
    assert not (tmp_path / "Train").exists()

    def broken(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    assert main(arguments) == 2


def test_only_the_videos_asked_for_are_unpacked(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a.mp4"], "public_test": ["b.mp4", "c.mp4"]}))
    names = listed_names(tmp_path / "split.json", "test", 1)
    assert names == {"b"}
    with zipfile.ZipFile(tmp_path / "FixationsTest.zip", "w") as archive:
        for name in ("b/fixations.json", "c/fixations.json"):
            archive.writestr(name, "[]")
    made = extract(tmp_path / "FixationsTest.zip", tmp_path / "out", wanted_member(names))
    assert [p.relative_to(tmp_path / "out").as_posix() for p in made] == ["b/fixations.json"]


@pytest.mark.parametrize("name", ["ego4d", "aria", "Ego4D", "HEVC-33", "Coutrot database 1"])
def test_info_knows_every_set_by_any_spelling(name, capsys):
    assert main(["data", "info", name]) == 0
    assert "steps" in capsys.readouterr().out


def test_every_module_that_reads_a_set_is_listed():
    read = {name for name in avsal.data.__all__ if name.endswith("DataModule")}
    assert read - {"SaliencyDataModule", "LayoutDataModule"} == {entry.module for entry in ENTRIES}


@pytest.mark.parametrize("offline", [True, False])
def test_fetching_without_the_internet_is_one_line(tmp_path, monkeypatch, capsys, offline):
    import huggingface_hub.constants

    if offline:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["data", "fetch", "crowdsal", "--out", str(tmp_path / "x"), "--max-videos", "1"]) == 2
    said = capsys.readouterr().err  # the Hub's client may say that it tries again
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "ANDRYHA/CrowdSAL" in line
    assert "run the command again" in line
