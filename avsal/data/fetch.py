"""Downloads of data sets: resumed where they stopped, and never complete in appearance only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from avsal.data.catalog import Entry
from avsal.errors import DataError

Progress = Callable[[str, int, int | None], None]
CHUNK = 1 << 20
TRIES = 5


def download(url: str, target: Path, progress: Progress | None = None) -> str:
    """Download a file, going on where an earlier attempt stopped.

    The part lies beside the target under the name `<target>.part` until it is complete.

    Args:
        url: the address.
        target: the file to make.
        progress: called with (name, bytes so far, bytes in all or None).

    Returns:
        The sha256 of the file.

    Raises:
        DataError: the server does not answer, refuses, or keeps breaking off.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(TRIES):
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                resumed = answer.status == 206
                have = have if resumed else 0
                length = answer.headers.get("Content-Length")
                total = have + int(length) if length is not None else None
                with open(part, "ab" if resumed else "wb") as file:
                    while block := answer.read(CHUNK):
                        file.write(block)
                        have += len(block)
                        if progress:
                            progress(target.name, have, total)
            if total is None or have == total:
                digest = sha256(part)
                os.replace(part, target)
                return digest
            reason = f"the connection broke off at {have} of {total} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # the part is as long as the file, or longer: begin again
                part.unlink()
                continue
            raise DataError(
                f"{url}: the server answers {error.code} {error.reason}. The data set's page may say more."
            ) from error
        except (urllib.error.URLError, OSError) as error:
            reason = str(getattr(error, "reason", error))
        time.sleep(min(2**attempt, 8) if attempt + 1 < TRIES else 0)
    raise DataError(f"{url}: {reason}. What arrived is kept in {part.name}; run the command again to go on.")


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def extract(archive: Path, folder: Path, only: Callable[[str], bool] | None = None) -> list[Path]:
    """Unpack a tar or zip archive; a member that would leave the folder is refused.

    Args:
        archive: the file.
        folder: where to.
        only: takes a member's name and says whether it is wanted.

    Raises:
        DataError: the archive is damaged, or holds a path outside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                for member in content.infolist():
                    if member.is_dir() or (only and not only(member.filename)):
                        continue
                    made.append(_member(folder, member.filename, archive))
                    with content.open(member) as source:
                        _write(source, made[-1])
        else:
            with tarfile.open(archive) as content:
                for item in content:
                    if not item.isfile() or (only and not only(item.name)):
                        continue
                    inner = content.extractfile(item)
                    assert inner is not None
                    made.append(_member(folder, item.name, archive))
                    _write(inner, made[-1])
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive}: damaged archive ({error}); remove it and fetch it again.") from error
    return made


def _member(folder: Path, name: str, archive: Path) -> Path:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{archive}: the member {name!r} would be written outside {folder}; the archive is not unpacked."
        )
    return folder / path


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with open(part, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    os.replace(part, target)


def fetch(
    entry: Entry,
    out: Path,
    *,
    split: str | None = None,
    max_videos: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Fetch a data set into a folder, or say how to get it.

    Args:
        entry: the data set.
        out: the folder.
        split: only "train" or "test" (sets on the Hub).
        max_videos: only so many videos of each split (sets on the Hub).
        progress: called while downloading.
        say: prints a line.

    Returns:
        Whether the files are there now.
    """
    if entry.hub:
        _fetch_hub(entry, out, split, max_videos, say)
        return True
    if not entry.urls:
        say(f"{entry.title} cannot be fetched directly. Its terms: {entry.licence}.")
        for number, step in enumerate(entry.steps, 1):
            say(f"  {number}. {step}")
        say(f"  page: {entry.page}\n  then: avsal data check DIR  (expected there: {entry.tree})")
        return False
    say(f"{entry.title}: {entry.licence}. Cite: {entry.cite}.")
    done_file = out / ".fetched.json"
    done: dict[str, str] = json.loads(done_file.read_text()) if done_file.is_file() else {}
    for url, where in entry.urls:
        if url in done:
            say(f"  {url.rsplit('/', 1)[1]}: there already")
            continue
        archive = out / "archives" / url.split("/data/", 1)[-1].replace("/", "_")
        digest = download(url, archive, progress) if not archive.is_file() else sha256(archive)
        files = extract(archive, out / where, None)
        _lift(out / where, where, files)
        done[url] = digest
        part = done_file.with_name(done_file.name + ".part")
        part.write_text(json.dumps(done, indent=1))
        os.replace(part, done_file)
        archive.unlink()
        say(f"  {url.rsplit('/', 1)[1]}: {len(files)} files, sha256 {digest}")
    return True


def _lift(folder: Path, where: str, files: list[Path]) -> None:
    """Undo one doubled level: an archive of `annotations` may or may not begin with that name itself."""
    inner = folder / PurePosixPath(where).name
    if where == "." or not inner.is_dir() or not all(inner in path.parents for path in files):
        return
    for child in list(inner.iterdir()):
        if not (folder / child.name).exists():
            child.rename(folder / child.name)
    if not any(inner.iterdir()):
        inner.rmdir()


def _fetch_hub(
    entry: Entry, out: Path, split: str | None, most: int | None, say: Callable[[str], None]
) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert entry.hub is not None
    try:
        files = sorted(HfApi().list_repo_files(entry.hub, repo_type="dataset"))
        chosen = choose_hub_files(files, split, most)
        if not chosen:
            raise DataError(f"{entry.hub}: no file of the split {split!r}; it holds {', '.join(files[:8])} …")
        names: set[str] | None = None
        for number, name in enumerate(chosen, 1):
            say(f"  [{number}/{len(chosen)}] {name}")
            path = Path(hf_hub_download(entry.hub, name, repo_type="dataset", local_dir=out))
            if name.endswith("TrainTestSplit.json") and (split or most):
                names = listed_names(path, split, most)
            if name.endswith(".zip"):
                extract(path, out / Path(name).parent, wanted_member(names))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{entry.hub} cannot be fetched from the Hub ({error}). What arrived is kept: run the command again "
            "to go on."
        ) from error


def choose_hub_files(files: list[str], split: str | None, most: int | None) -> list[str]:
    """Return the files to fetch of a repository, descriptions first.

    Args:
        files: all paths of the repository.
        split: "train" or "test", None for both.
        most: at most so many videos of each split, where videos are files of their own.
    """
    small = [f for f in files if f.endswith((".json", ".jsonl", ".md")) and "/" not in f]
    parts = [split] if split else ["train", "test"]
    chosen = []
    for part in parts:
        videos = [f for f in files if f.lower().startswith(f"{part}/videos/")]
        stems = {PurePosixPath(f).stem for f in (videos[:most] if most else videos)}
        for f in files:
            pieces = PurePosixPath(f).parts
            if (
                len(pieces) > 2
                and pieces[0].lower() == part
                and (PurePosixPath(f).stem in stems or pieces[-2] in stems)
            ):
                chosen.append(f)
    if not chosen:  # archives
        other = {"train": "test", "test": "train"}.get(split or "", "-")
        chosen = [f for f in files if f.endswith(".zip") and other not in f.lower()]
    return small + [f for f in chosen if f not in small]


def listed_names(path: Path, split: str | None, most: int | None) -> set[str]:
    """Return the stems of the videos to unpack, from `TrainTestSplit.json`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for part in ("train", "test"):
        if split and part != split:
            continue
        listed = [
            str(n)
            for key, found in content.items()
            if ("test" in key.lower()) == (part == "test")
            for n in found
        ]
        names |= {PurePosixPath(n).stem for n in (listed[:most] if most else listed)}
    return names


def wanted_member(names: set[str] | None) -> Callable[[str], bool] | None:
    """Return the test for archive members that belong to the given videos, None for all."""
    if names is None:
        return None
    return lambda member: bool({PurePosixPath(member).stem, *PurePosixPath(member).parts} & names)
