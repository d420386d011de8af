"""`avsal data fetch`: data sets, or how to get them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from avsal.data.catalog import Entry
from avsal.downloads import download, extract
from avsal.errors import DataError
from avsal.files import read_json, redact, sha256_of, write_json


def fetch(
    entry: Entry,
    out: Path,
    *,
    split: str | None = None,
    max_videos: int | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Fetch a data set into a folder, or say how to get it.

    Args:
        entry: the data set.
        out: the folder.
        split: only "train" or "test" (sets on the Hub).
        max_videos: only so many videos of each split (sets on the Hub).
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
    done = read_json(done_file)
    for url, where in entry.urls:
        if url in done:
            say(f"  {url.rsplit('/', 1)[1]}: there already")
            continue
        archive = out / "archives" / url.split("/data/", 1)[-1].replace("/", "_")
        digest = download(url, archive) if not archive.is_file() else sha256_of(archive)
        files = extract(archive, out / where, None)
        _lift(out / where, where, files)
        done[url] = digest
        write_json(done_file, done)
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

    assert entry.hub is not None
    try:
        endpoint = os.environ.get("HF_ENDPOINT") or None
        files = sorted(HfApi(endpoint=endpoint).list_repo_files(entry.hub, repo_type="dataset"))
        chosen = choose_hub_files(files, split, most)
        if not chosen:
            raise DataError(f"{entry.hub}: no file of the split {split!r}; it holds {', '.join(files[:8])} …")
        names: set[str] | None = None
        for number, name in enumerate(chosen, 1):
            say(f"  [{number}/{len(chosen)}] {name}")
            path = Path(
                hf_hub_download(entry.hub, name, repo_type="dataset", local_dir=out, endpoint=endpoint)
            )
            if name.endswith("TrainTestSplit.json") and (split or most):
                names = listed_names(path, split, most)
            if name.endswith(".zip"):
                extract(path, out / Path(name).parent, wanted_member(names))
    except Exception as error:
        # Whichever HTTP library the Hub's client uses: its errors mean that the way to the files is barred.
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and library not in (
            "httpx",
            "httpx2",
            "httpcore",
            "huggingface_hub",
            "hf_xet",
        ):
            raise
        raise DataError(
            f"{entry.hub} cannot be fetched from the Hub ({type(error).__name__}: {_first_line(error)}). Look at the "
            "connection (HTTPS_PROXY, HF_HUB_OFFLINE). What arrived is kept: run the command again to go on."
        ) from None


def _first_line(error: Exception) -> str:
    return redact(next(iter(str(error).strip().splitlines()), ""))


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
