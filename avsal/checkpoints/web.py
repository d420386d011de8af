"""Fetching from plain addresses and GitHub releases, into the cache."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import json
import logging
import re
import urllib.error
from collections.abc import Iterable
from pathlib import Path

from avsal.checkpoints.cache import Fetched, offline
from avsal.downloads import download, fault_of, open_url, status_of
from avsal.errors import WeightsError
from avsal.files import locked, read_json, redact, safe_name, sha256_of, write_json

logger = logging.getLogger("avsal.zoo")

GITHUB = "https://github.com"
GITHUB_API = "https://api.github.com"


def fetch_url(
    url: str,
    *,
    cache: Path,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    local_files_only: bool = False,
    force: bool = False,
) -> Fetched:
    """Return the file at an address, from the cache or fetched; a broken transfer goes on where it stopped.

    Args:
        url: http or https.
        cache: avsal's cache; the file stands below `downloads/`.
        sha256: what the file must have.
        sha256_prefix: the beginning of it, where no more is known.
        size: in bytes, where it is known.
        local_files_only: use the cache only.
        force: fetch even if it is cached.

    Raises:
        WeightsError: not reachable, not there, or the content is not what it must be.
    """
    folder = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / safe_name(url)
    record = folder / "record.json"
    what = redact(url)
    with locked(cache, f"url--{folder.name}"):
        known = read_json(record)
        if path.is_file() and not (force and not offline(local_files_only)):
            digest = sha256_of(path)
            expected = sha256 or known.get("sha256")
            if digest == expected or (expected is None and digest.startswith(sha256_prefix or "")):
                return Fetched(path, url, digest, path.stat().st_size, cached=True)
            logger.warning("The cached copy of %s is damaged; fetching it again.", what)
            path.unlink()
        if offline(local_files_only):
            raise WeightsError(
                f"{what}: not in the cache, and fetching is switched off (HF_HUB_OFFLINE or local_files_only)"
            )
        digest = download(url, path, sha256=sha256, sha256_prefix=sha256_prefix, size=size)
        write_json(record, {"url": what, "sha256": digest, "size": path.stat().st_size})
        return Fetched(path, url, digest, path.stat().st_size)


def forget_url(fetched: Fetched) -> None:
    """Remove a file that `fetch_url` gave, so that the next call fetches it again."""
    for path in (fetched.path, fetched.path.with_name("record.json")):
        path.unlink(missing_ok=True)


def answers(url: str) -> None:
    """Ask an address for its first byte.

    Raises:
        WeightsError: it does not answer, or not with a file.
    """
    try:
        with open_url(url, {"Range": "bytes=0-0"}) as answer:
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise WeightsError(status_of(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(fault_of(error)) from None
    if kind == "text/html":
        raise WeightsError("the server answered with a web page")


def choose(names: Iterable[str], match: list[str], exclude: list[str], where: str) -> str:
    """Return the one name that fits all patterns of `match` and none of `exclude`, in any case.

    Raises:
        WeightsError: none or several fit; the names there are listed.
    """
    names = list(names)

    def fits(name: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase(name.lower(), pattern.lower())

    found = [
        name
        for name in names
        if all(fits(name, pattern) for pattern in match)
        and not any(fits(name, pattern) for pattern in exclude)
    ]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    wanted = " and ".join(match) + (f", not {' or '.join(exclude)}" if exclude else "")
    count = f"{len(found)} files fit" if found else "no file fits"
    raise WeightsError(f"{where}: {count} {wanted}; it holds: {shown or 'nothing'}")


def release_asset(repo: str, tag: str, match: list[str], exclude: list[str]) -> tuple[str, str | None]:
    """Return the address and, where GitHub tells it, the sha256 of the one matching asset of a release.

    Raises:
        WeightsError: not reachable, or none or several assets fit.
    """
    url = f"{GITHUB_API}/repos/{repo}/releases/tags/{tag}"
    try:
        with open_url(url, {"Accept": "application/vnd.github+json"}) as answer:
            release = json.load(answer)
        assets = {str(asset["name"]): asset for asset in release["assets"]}
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{url}: {status_of(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url}: {fault_of(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{url}: the answer is no release listing") from error
    name = choose(assets, match, exclude, f"release {tag} of github.com/{repo}")
    digest = str(assets[name].get("digest") or "")
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    return f"{GITHUB}/{repo}/releases/download/{tag}/{name}", found.group(1) if found else None
