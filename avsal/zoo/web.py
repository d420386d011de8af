"""Fetching from plain addresses and GitHub releases, with resume, verified by us.

The standard library's client is used: the Hub's one is private, and cannot ask a server whether the first half of a
file is still that of the same file (If-Range), which is what makes it safe to go on after a killed process.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from avsal.errors import WeightsError
from avsal.zoo.cache import Fetched, locked, offline, read_json, redact, safe_name, sha256_of, write_json

logger = logging.getLogger("avsal.zoo")

GITHUB = "https://github.com"
GITHUB_API = "https://api.github.com"
#: Attempts for one address; each goes on where the last one broke off.
ATTEMPTS = 5
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0
_CHUNK = 1 << 20


def fetch_url(
    url: str,
    *,
    cache: Path,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    local_files_only: bool = False,
) -> Fetched:
    """Return the file at an address, from the cache or fetched; a broken transfer goes on where it stopped.

    Args:
        url: http or https.
        cache: avsal's cache; the file stands below `downloads/`.
        sha256: what the file must have.
        sha256_prefix: the beginning of it, where no more is known.
        local_files_only: use the cache only.

    Raises:
        WeightsError: not reachable, not there, or the content is not what it must be.
    """
    folder = cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / safe_name(url)
    record = folder / "record.json"
    what = redact(url)
    with locked(cache, f"url--{folder.name}"):
        known = read_json(record)
        if path.is_file():
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
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / (path.name + ".part")
        _download(url, partial)
        digest = sha256_of(partial)
        if (sha256 and digest != sha256) or not digest.startswith(sha256_prefix or ""):
            partial.unlink()
            raise WeightsError(
                f"{what}: sha256 {digest[:16]}…, expected {(sha256 or sha256_prefix or '')[:16]}…; "
                "the file was refused"
            )
        os.replace(partial, path)
        write_json(record, {"url": what, "sha256": digest, "size": path.stat().st_size})
        (folder / (path.name + ".part.json")).unlink(missing_ok=True)
        return Fetched(path, url, digest, path.stat().st_size)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """A redirect stays on the web, and never falls from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (urlsplit(req.full_url).scheme == "https" and scheme == "http"):
            raise urllib.error.URLError(f"refused to be redirected to {redact(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> Any:
    import avsal

    if urlsplit(url).scheme not in ("http", "https"):
        raise urllib.error.URLError("only http and https addresses are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": f"avsal/{avsal.__version__}", **headers})
    return urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT)


def answers(url: str) -> None:
    """Ask an address for its first byte.

    Raises:
        WeightsError: it does not answer, or not with a file.
    """
    try:
        with _open(url, {"Range": "bytes=0-0"}) as answer:
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(redact(str(getattr(error, "reason", error)))) from error
    if kind == "text/html":
        raise WeightsError("the server answered with a web page")


def _download(url: str, partial: Path) -> None:
    """Write the file at `url` to `partial`, going on from what is there if the server confirms that it fits."""
    state = partial.with_name(partial.name + ".json")
    reason = ""
    for attempt in range(ATTEMPTS):
        validator = read_json(state).get("validator")
        done = partial.stat().st_size if validator and partial.is_file() else 0
        headers = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}
        try:
            with _open(url, headers) as answer:
                goes_on = answer.status == 206
                total = _total(answer, done if goes_on else 0)
                # A weak ETag does not promise equal bytes, so it cannot be used to go on.
                etag = answer.headers.get("ETag") or ""
                validator = (
                    etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
                )
                write_json(state, {"validator": validator})
                with partial.open("ab" if goes_on else "wb") as file:
                    _copy(answer, file, total, done if goes_on else 0, safe_name(url))
            size = partial.stat().st_size
            if total is None or size == total:
                state.unlink(missing_ok=True)
                return
            reason = f"broke off after {size} of {total} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the file there is shorter than our part of it: begin again
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise WeightsError(
                    f"{redact(url)}: the server answered {error.code} {error.reason}"
                ) from error
            reason = f"the server answered {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = redact(str(getattr(error, "reason", error)) or type(error).__name__)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s: %s; trying again.", redact(url), reason)
            time.sleep(min(2**attempt, 8))
    raise WeightsError(f"{redact(url)}: {reason} (tried {ATTEMPTS} times)")


def _total(answer: Any, done: int) -> int | None:
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length = answer.headers.get("Content-Length")
    return int(length) + done if length is not None and length.isdigit() else None


def _copy(answer: IO[bytes], file: IO[bytes], total: int | None, done: int, name: str) -> None:
    from huggingface_hub.utils import tqdm

    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


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
        with _open(url, {"Accept": "application/vnd.github+json"}) as answer:
            release = json.load(answer)
        assets = {str(asset["name"]): asset for asset in release["assets"]}
    except urllib.error.HTTPError as error:
        error.close()
        raise WeightsError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url}: {redact(str(getattr(error, 'reason', error)))}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{url}: the answer is no release listing") from error
    name = choose(assets, match, exclude, f"release {tag} of github.com/{repo}")
    digest = str(assets[name].get("digest") or "")
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    return f"{GITHUB}/{repo}/releases/download/{tag}/{name}", found.group(1) if found else None
