"""`avsal reframe`, `avsal encode` and `avsal report`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from avsal.data.gaze.options import Reading
from avsal.errors import AvsalError, ConfigError, MediaError
from avsal.files import shown

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule


def reframe(
    *films: Path,
    aspect: str = "9:16",
    out: Path = Path("reframed"),
    checkpoint: str | None = None,
    maps: Path | None = None,
    keep: Path | None = None,
    speed: float = 0.25,
    acceleration: float = 0.5,
    height: int | None = None,
    stride: int = 2,
    device: str = "auto",
    batch_size: int = 8,
    quiet: bool = False,
) -> int:
    """Crop films to another shape around what is looked at, with their sound and frame times.

    The crop slides smoothly along the longer axis and starts anew at shot changes. Beside every film a JSON file holds
    its path and the attention kept, against the centre crop and the best crop that does not move.

    Args:
        films: videos, or folders that `avsal predict` wrote (their maps are used).
        aspect: width:height of the result, such as 9:16, 1:1 or 4:5.
        out: folder of the results, or for one film the file (.mp4, .mov, .mkv).
        checkpoint: a name from `avsal zoo list`, a file, a folder or a Hub repository (default: the registry's).
        maps: the folder that `avsal predict` wrote for the one film.
        keep: CSV of boxes that stay in the picture (columns start, end in seconds, left, top, right, bottom in 0..1).
        speed: largest speed of the crop, in picture widths per second.
        acceleration: largest acceleration, in picture widths per second squared.
        height: rows of the result (default: as in the film).
        stride: compute attention for every Nth frame.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: windows per forward pass.
        quiet: no progress bar.

    Returns:
        0 if every film has a result, else 1.
    """
    from avsal.applications.paths import Motion
    from avsal.applications.reframe import read_aspect, read_boxes, reframe as crop

    read_aspect(aspect)  # a mistake ends here, before any film
    boxes, motion = read_boxes(keep) if keep else None, Motion(speed, acceleration)
    mark = aspect.replace(":", "x")

    def run(film: Path, target: Path, module: SaliencyModule | None, tick: Any) -> str:
        found = crop(
            film, target, aspect, module=module, maps=maps, keep=boxes, motion=motion, height=height, stride=stride,
            batch_size=batch_size, tick=tick,
        )  # fmt: skip
        _note(found.notes)
        return (
            f"{found.attention.mean():.1%} of attention kept (centre crop {found.centre:.1%}, best still crop "
            f"{found.static:.1%}), {len(found.cuts)} cuts"
        )

    return _batch(films, out, f"-{mark}.mp4", run, checkpoint, maps, device, quiet)


def encode(
    *films: Path,
    out: Path = Path("encoded"),
    checkpoint: str | None = None,
    maps: Path | None = None,
    codec: Literal["libx264", "libx265"] = "libx264",
    crf: float = 26.0,
    equal: Literal["quality", "size"] = "quality",
    strength: int = 6,
    preset: str = "medium",
    stride: int = 2,
    device: str = "auto",
    batch_size: int = 8,
    quiet: bool = False,
) -> int:
    """Encode films with the bits where people look.

    Every film is encoded plainly at `--crf` for comparison, then with quantiser offsets from its maps, at the same
    eye-weighted quality or at the same size. Beside the result a JSON file holds bytes, PSNR and SSIM of both, plain
    and weighted by attention.

    Args:
        films: videos, or folders that `avsal predict` wrote (their maps are used).
        out: folder of the results, or for one film the file (.mp4, .mov, .mkv).
        checkpoint: a name from `avsal zoo list`, a file, a folder or a Hub repository (default: the registry's).
        maps: the folder that `avsal predict` wrote for the one film.
        codec: FFmpeg's name of the encoder.
        crf: constant rate factor of the plain encode, 1 to 51.
        equal: what both encodes have in common: quality where people look, or size.
        strength: largest quantiser offset, 0 to 20.
        preset: the encoder's.
        stride: compute attention for every Nth frame.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: windows per forward pass.
        quiet: no progress bar.

    Returns:
        0 if every film has a result, else 1.
    """
    from avsal.applications.encode import encode as weighted

    def run(film: Path, target: Path, module: SaliencyModule | None, tick: Any) -> str:
        found = weighted(
            film, target, module=module, maps=maps, codec=codec, crf=crf, equal=equal, strength=strength, preset=preset,
            stride=stride, batch_size=batch_size, tick=tick,
        )  # fmt: skip
        _note(found.notes)
        plain, ours = found.plain, found.weighted
        return (
            f"{ours.bytes / 1e6:.2f} MB against {plain.bytes / 1e6:.2f} MB ({found.saving:.1%} saved), eye-weighted "
            f"PSNR {ours.eye_psnr:.2f} dB against {plain.eye_psnr:.2f} dB"
        )

    return _batch(films, out, ".mp4", run, checkpoint, maps, device, quiet)


def report(
    *films: Path,
    out: Path = Path("reports"),
    checkpoint: str | None = None,
    areas: Path | None = None,
    against: Path | None = None,
    gaze: Path | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    stride: int = 1,
    device: str = "auto",
    batch_size: int = 8,
    quiet: bool = False,
) -> int:
    """Write one page for each film: the overlay, when and where attention is concentrated, and all numbers.

    A page needs nothing but itself. Beside it stand the numbers of every frame as CSV (and Parquet, where pyarrow is
    installed) and the means as JSON; of several films there is an index that sorts by any column.

    Args:
        films: videos, or folders that `avsal predict` wrote.
        out: folder of the pages; films are predicted into its folder `maps`.
        checkpoint: a name from `avsal zoo list`, a file, a folder or a Hub repository (default: the registry's).
        areas: CSV of areas of interest (name, left, top, right, bottom in 0..1, perhaps start, end in seconds).
        against: another result of the one film, whose maps are compared.
        gaze: gaze table of the one film, of any number of viewers; the maps' NSS is computed for it.
        reading: how to read the gaze table.
        stride: predict for every Nth frame.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: windows per forward pass.
        quiet: no progress bar.

    Returns:
        0 if every film has a page, else 1.
    """
    from avsal.applications.viewing import Viewing, read_areas, view, write_index, write_page
    from avsal.inference.files import predict_files

    boxes = read_areas(areas) if areas else []
    if (against is not None or gaze is not None) and len(films) != 1:
        raise ConfigError("--against and --gaze belong to one film; give exactly one film with them.")
    pages: list[tuple[Viewing, Path]] = []

    def run(film: Path, target: Path, module: SaliencyModule | None, tick: Any) -> str:
        folder = film
        if not film.is_dir():
            (outcome,) = predict_files(
                film, out=out / "maps", checkpoint=checkpoint or _default(), stride=stride, batch_size=batch_size,
                quiet=quiet, module=module,
            )  # fmt: skip
            if outcome.folder is None:
                raise MediaError(outcome.message or f"{film}: no result.")
            folder = outcome.folder
        found = view(folder, areas=boxes, against=against, gaze=gaze, reading=reading)
        pages.append((found, write_page(found, target)))
        numbers = found.summary()
        return f"{numbers['frames']} frames, entropy {numbers['entropy']:.3f}, {numbers['cuts']} cuts"

    status = _batch(films, out, ".html", run, checkpoint, None, device, quiet)
    if len(pages) > 1:
        print(shown(write_index(pages, out / "index.html")))
    return status


def _default() -> str:
    from avsal.checkpoints.registry import default_checkpoint

    return default_checkpoint("video")


def _batch(
    films: Sequence[Path],
    out: Path,
    ending: str,
    run: Callable[[Path, Path, SaliencyModule | None, Any], str],
    checkpoint: str | None,
    maps: Path | None,
    device: str,
    quiet: bool,
) -> int:
    """Run one job for every film; a film that fails is reported and the others go on."""
    from rich.console import Console
    from rich.progress import Progress

    from avsal.inference.files import pick_device
    from avsal.zoo import from_pretrained

    if not films:
        raise ConfigError("no film is named; name a video, or a folder that `avsal predict` wrote.")
    single = out.suffix.lower() in (".mp4", ".mov", ".mkv")
    if (single or maps) and len(films) != 1:
        raise ConfigError("a file as --out, and --maps, belong to one film; give exactly one film with them.")
    module = None
    if maps is None and not all(film.is_dir() for film in films):
        module = from_pretrained(checkpoint or _default()).to(pick_device(device)).eval()
    targets: dict[Path, Path] = {}
    failed = 0
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as bar:
        for film in films:
            target = out if single else out / f"{film.stem or film.name}{ending}"
            task = bar.add_task(shown(film.name).replace("[", r"\["), total=None)
            try:
                if target in targets.values():
                    raise ConfigError(
                        f"{film}: {target} is the result of another film of this name; rename one."
                    )
                if target.resolve() == film.resolve():
                    raise ConfigError(f"{film}: the result would replace the film; choose another --out.")
                targets[film] = target
                line = run(
                    film,
                    target,
                    module,
                    lambda done, total, task=task: bar.update(task, completed=done, total=total),
                )
                print(f"{shown(target)}: {line}")
            except AvsalError as error:
                failed += 1
                print(f"error: {shown(str(error))}", file=sys.stderr)
            except Exception as error:  # a batch goes on whatever one file does
                failed += 1
                print(f"error: {shown(film)}: {type(error).__name__}: {shown(str(error))}", file=sys.stderr)
            bar.remove_task(task)
    return 1 if failed else 0


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"  note: {shown(note)}", file=sys.stderr)
