"""Files appear whole or not at all, whoever else writes there, and what killed runs left goes."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from avsal import files
from avsal.errors import OutputError
from avsal.files import Partial, read_json, redact, shown, write_json, write_text, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "one.txt", "old")
    with contextlib.suppress(ZeroDivisionError), writing(tmp_path / "a" / "one.txt") as path:
        path.write_text("half")
        assert (tmp_path / "a" / "one.txt").read_text() == "old"
        raise ZeroDivisionError
    assert (tmp_path / "a" / "one.txt").read_text() == "old"
    assert names(tmp_path / "a") == ["one.txt"]
    with writing(tmp_path / "a" / "one.txt") as path:
        path.write_text("new")
    assert (tmp_path / "a" / "one.txt").read_text() == "new"


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with writing(tmp_path / "result") as path:
            path.mkdir()
            (path / content).write_text(content)
    assert names(tmp_path) == ["result"]
    assert names(tmp_path / "result") == ["second"]


@pytest.mark.parametrize("length", [5, 255])
def test_two_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path, length: int) -> None:
    target = tmp_path / ("n" * length)
    one, two = Partial(target), Partial(target)
    one.path.write_text("one")
    two.path.write_text("two")
    third = Partial(target)
    third.discard()
    one.keep()
    assert target.read_text() == "one"
    two.keep()
    assert target.read_text() == "two"
    assert names(tmp_path) == [target.name]


def _write_folders(target: Path, who: str) -> None:
    for _ in range(25):
        with writing(target) as path:
            path.mkdir()
            for part in "ab":
                (path / part).write_text(who)


def test_processes_that_write_one_folder_at_once_all_come_through_and_leave_one_of_theirs(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_folders, args=(tmp_path / "r", str(k))) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert names(tmp_path) == ["r"]
    assert (tmp_path / "r" / "a").read_text() == (tmp_path / "r" / "b").read_text()


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_lives_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom avsal.files import Partial\n"
        "partial = Partial(sys.argv[1])\npartial.path.write_text('half')\n"
        "print('writing', flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    (left,) = names(tmp_path)
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == sorted([left, "other"])  # its writer lives
    child.send_signal(signal.SIGKILL)
    child.wait()
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["other"]


def test_a_result_that_a_killed_run_had_moved_aside_is_given_back(tmp_path: Path) -> None:
    left = tmp_path / ".result.0123abcd.part"
    for name in ("old0", "result"):
        (left / name).mkdir(parents=True)
        (left / name / "content").write_text(name)
    (left / ".lock").touch()
    write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["other", "result"]
    assert (tmp_path / "result" / "content").read_text() == "old0"


def test_a_taken_name_gets_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [write_text(tmp_path / "r.json", str(k), unique=True).name for k in range(2)]

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(files.os, "link", no_links)
    made += [write_text(tmp_path / "r.json", str(k), unique=True).name for k in (2, 3)]
    assert made == ["r.json", "r-2.json", "r-3.json", "r-4.json"]
    assert [(tmp_path / name).read_text() for name in made] == ["0", "1", "2", "3"]


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/below/x.txt: cannot be written"):
        write_text(tmp_path / "file" / "below" / "x.txt", "")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="Is a directory"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("123 requested and 45 written"),
        RuntimeError("writing failed: errno = 28, error message = 'No space left on device'"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_full_disk_is_known_however_a_library_reports_it(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(OutputError, match=r"x: cannot be written \((No space|Read-only)"),
        writing(tmp_path / "x"),
    ):
        raise error
    assert names(tmp_path) == []


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with writing(tmp_path / "x") as path:
            path.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": 1})
    assert read_json(tmp_path / "r.json") == {"a": 1}
    for content in (b"", b"[1]", b"\xff\xfe", b'{"a": '):
        (tmp_path / "r.json").write_bytes(content)
        assert read_json(tmp_path / "r.json") == {}


def test_any_name_can_be_printed() -> None:
    assert shown(os.fsdecode(b"a\xff\nb\x1b[31m\xc3\xa4.mp4")) == "a\\udcff\\x0ab\\x1b[31mä.mp4"


def test_no_token_is_in_a_redacted_text() -> None:
    secret = "s3cr3t" + "x" * 20
    for text in (
        f"Bearer {secret}", f"authorization: Bearer {secret}", f'{{"token": "{secret}"}}', f"token={secret}",
        f"Authorization: Basic {secret}", f"https://user:{secret}@host/x", f"https://host/x?sig={secret}",
        f"api_key={secret}", f"X-Auth-Token: {secret}", f"password={secret}", f"hf_{secret}", f"github_pat_{secret}",
        f"glpat-{secret}", f"x-access-token:{secret}",
    ):  # fmt: skip
        assert secret not in redact(f"before {text} after"), text
        assert redact(f"before {text} after").startswith("before ")
    assert redact("the tokenizer of a token is here") == "the tokenizer of a token is here"
