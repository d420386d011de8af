"""Taking one file out of an archive, safely."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

from avsal.errors import WeightsError
from avsal.zoo.cache import safe_name

_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, or a zip that is not a PyTorch file."""
    if tarfile.is_tarfile(path):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("/data.pkl") for name in archive.namelist())


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Write one file of a tar or zip archive into `folder` and return its path.

    Only the bytes of that one regular file are copied, to a name made here: no path or link of the archive is
    ever followed.

    Raises:
        WeightsError: the archive is damaged, or has no such file, or more than one.
    """
    target = folder / safe_name(member)

    def pick(names: list[str]) -> str:
        def bare(name: str) -> str:
            return name.removeprefix("./")

        found = [name for name in names if bare(name) == member] or [
            name for name in names if bare(name).endswith("/" + member)
        ]
        if len(found) != 1:
            files = [bare(name) for name in names]
            raise WeightsError(
                f"{archive.name}: {'no' if not found else len(found)} member(s) called {member}; it holds: "
                + ", ".join(files[:12])
                + (", …" if len(files) > 12 else "")
            )
        return found[0]

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                name = pick([info.filename for info in bundle.infolist() if not info.is_dir()])
                with bundle.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
        else:
            with tarfile.open(archive) as tar:
                regular = {entry.name: entry for entry in tar if entry.isreg()}
                content = tar.extractfile(regular[pick(list(regular))])
                if content is None:
                    raise WeightsError(f"{archive.name}: {member} is no regular file")
                with content as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        target.unlink(missing_ok=True)
        raise WeightsError(f"{archive}: the archive is damaged ({error}); fetch it again") from error
    return target
