"""`avsal predict`: from video files to overlay videos, raw maps and a summary.

Each input gets one folder. It is written under a temporary name and renamed when complete, so a folder
that is there is whole, and a killed run leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter

from avsal.data.gaze.options import Reading
from avsal.errors import AvsalError, ConfigError, DataError, MediaError
from avsal.files import sha256_of, shown, writing

if TYPE_CHECKING:
    from avsal.io.video import MediaInfo
    from avsal.models.base import SaliencyModule

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Settings:
    """What decides the content of a result; a result with other settings is never reused silently."""

    checkpoint: str
    weights: str | None = None  #: sha256 of the weights, as far as known before they are loaded
    coverage: str = "full"
    stride: int = 1
    smooth: float = 0.0
    alpha: float = 0.6
    overlay: bool = True
    correlation: bool = False
    show: str | None = None  #: "speakers" draws faces and who speaks
    gaze: str | None = None  #: name of the gaze file
    gaze_sha256: str | None = None
    gaze_reading: Reading = field(default_factory=Reading)  #: how to read it


@dataclass
class Outcome:
    """What became of one input file: "done", "kept" (already there) or "failed"."""

    path: Path
    status: str
    folder: Path | None = None
    message: str | None = None
    frames: int = 0
    seconds: float = 0.0


class Outcomes(list[Outcome]):
    """The outcome of each input, in order."""

    @property
    def exit_status(self) -> int:
        """0 if every input has a result, else 1."""
        return int(any(outcome.status == "failed" for outcome in self))


def predict_files(
    *inputs: str | Path,
    checkpoint: str | None = None,
    out: Path = Path("predictions"),
    device: str = "auto",
    batch_size: int = 8,
    coverage: Literal["full", "authors"] = "full",
    stride: int = 1,
    smooth: float = 0.0,
    alpha: float = 0.6,
    overlay: Annotated[bool, Parameter(negative="--no-overlay")] = True,
    overwrite: bool = False,
    quiet: bool = False,
    gaze: Path | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    correlation: bool = False,
    show: Literal["speakers"] | None = None,
    module: Annotated[Any, Parameter(parse=False)] = None,
) -> Outcomes:
    """Write saliency maps and an overlay video for every video file.

    Each input gets its own folder below --out. An input that fails is reported, and the others go on.

    Args:
        inputs: video or image files, or folders of them.
        checkpoint: a name from `avsal zoo list`, a file, a folder or a Hub repository (default: the registry's;
            `avsal zoo list --recommended` tells which for what).
        out: folder of results.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: windows per forward pass.
        coverage: full: every frame gets one map; authors: the frames the paper's authors scored.
        stride: predict for every Nth frame only.
        smooth: average each map over time with a Gaussian of this standard deviation in seconds (0: not), within its
            shot where an overlay is drawn.
        alpha: strength of the heat map in the overlay, 0 to 1.
        overlay: write the overlay video; without it the maps only.
        overwrite: compute again what is already there.
        quiet: no progress bar.
        gaze: gaze table of one input: past gaze is drawn into the overlay.
        reading: how to read the gaze table.
        correlation: also write correlation.mp4: where the picture goes with the sound (CSTS with spatial fusion).
        show: draw into the overlay: speakers, the faces and how likely each speaks, also into speakers.csv.
        module: in Python: a module of yours in place of `checkpoint`, which then only names it in the results. It
            stays on its device.

    Returns:
        One outcome for each file, in order.

    Raises:
        ConfigError: the options do not go together, or `out` cannot be made.
        DataError: there is no such gaze file.
        WeightsError: the checkpoint cannot be loaded.
    """
    if not inputs:
        raise ConfigError("no input: name a video, an image, or a folder of them.")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"--alpha {alpha} must lie between 0 and 1.")
    if not 0.0 <= smooth <= 1.0:
        raise ConfigError(f"--smooth {smooth} must lie between 0 and 1 second.")
    if batch_size < 1 or stride < 1:
        raise ConfigError(f"--batch-size {batch_size} and --stride {stride} must be at least 1.")
    from avsal.checkpoints.registry import default_checkpoint

    paths, out = expand(inputs), Path(out)
    pictures = all(_is_picture(path) for path in paths)
    if module is None:
        checkpoint = checkpoint or default_checkpoint("picture" if pictures else "video")
    name = checkpoint or type(module).__name__
    settings = Settings(
        name, weights_sha256(name), coverage, stride, smooth, alpha, overlay, correlation, show,
        gaze_reading=reading or Reading(),
    )  # fmt: skip
    gaze = Path(gaze) if gaze is not None else None
    settings = _with_gaze(settings, gaze, paths)
    if module is not None:
        from avsal.evaluation.provenance import weights_hash

        settings = replace(settings, weights=weights_hash(module))
    folders = result_folders(paths, out)
    todo = [os.path.isfile(path) and (overwrite or not os.path.exists(folders[path])) for path in paths]
    if module is None and any(todo):
        from avsal.zoo import from_pretrained

        if advised := next((line for path in paths if (line := advice(name, path))), None):
            print(f"note: {advised}", file=sys.stderr)
        module = from_pretrained(name).to(pick_device(device)).eval()
    if module is not None:
        _check_extras(module, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: no folder for results can be made there ({error.strerror}).") from None
    outcomes = Outcomes()
    with _progress(quiet) as bar:
        for path in paths:
            task = bar.add_task(shown(path.name), total=None, rate="")
            began = time.perf_counter()

            def tick(done: int, total: int | None, task: Any = task, began: float = began) -> None:
                rate = done / max(time.perf_counter() - began, 1e-9)
                bar.update(task, completed=done, total=total, rate=f"{rate:.1f} frames/s")

            try:
                done = _one(module, path, folders[path], settings, batch_size, overwrite, tick, gaze)
                outcomes.append(done)
            except AvsalError as error:
                outcomes.append(Outcome(path, "failed", message=str(error)))
            except Exception as error:  # a batch job goes on whatever one file does
                outcomes.append(Outcome(path, "failed", message=f"{path}: {type(error).__name__}: {error}"))
            bar.remove_task(task)
    report(outcomes)
    return outcomes


def _progress(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        console=Console(stderr=True), disable=quiet, transient=True,
    )  # fmt: skip


def advice(checkpoint: str, path: Path) -> str | None:
    """Return one line for who runs a checkpoint of generated clips (SynthAV) on another video, else None."""
    from avsal.checkpoints.registry import default_checkpoint, entries

    entry = entries().get(checkpoint)
    if entry is None or entry.data != ["SynthAV"] or path.parent.name.startswith("SynthAV_"):
        return None
    return (
        f"{checkpoint} was trained on generated clips (SynthAV) and shows whether a network uses sound, not where "
        f"people look in real video: for that use --checkpoint {default_checkpoint()} (`avsal zoo list --recommended`)."
    )


def pick_device(name: str) -> str:
    """Return the torch device for "auto" (CUDA, then Apple's GPU, then the CPU) or check the given one."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def expand(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files named, and for a folder the files directly in it, each once and in order.

    A folder without files is returned itself, to be reported among the inputs that failed.
    """
    found: dict[str, Path] = {}
    for name in inputs:
        path = Path(name)
        inside = _files_in(path) if os.path.isdir(path) else []
        for one in inside or [path]:
            found.setdefault(str(place_of(one)), one)
    return list(found.values())


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and the links that lead nowhere, which are reported; none if it cannot be read."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [
        path for path in entries if os.path.isfile(path) or (path.is_symlink() and not os.path.isdir(path))
    ]


def place_of(path: Path) -> Path:
    """Return where a path leads, as far as it can be followed; never raises."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL in the name
        return path


def result_folders(paths: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Return every input's own folder below `out`.

    It is called by the input's stem. Where that folder holds the result of another file that is still there, or
    an input before it has that stem, a mark made of the input's own path is added: what an input was once
    called it keeps, whatever else is predicted with it.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        place = place_of(path)
        mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
        stem = path.stem or "_"
        short = os.fsdecode(os.fsencode(stem)[:240])  # names end at 255 bytes
        plain, own = out / stem, out / f"{short}-{mark}"
        taken = plain in folders.values() or _holds_another(plain, place)
        folders[path] = own if taken or os.path.exists(own) else plain
    return folders


def _holds_another(folder: Path, place: Path) -> bool:
    """Return whether a folder holds the result of another file than the one at `place`, which was not moved there."""
    there = _summary(folder).get("source")
    if not isinstance(there, dict):
        return False
    if "path" not in there:  # of an older version
        return there.get("name") != place.name
    return there["path"] != str(place) and os.path.isfile(there["path"])


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def weights_sha256(checkpoint: str) -> str | None:
    """Return the sha256 of a checkpoint's weights: training on must not pass for the same model."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        return sha256_of(path)
    from avsal.checkpoints.registry import entries

    entry = entries().get(checkpoint)
    sources = entry.sources if entry is not None else []
    return next((found for source in sources if (found := getattr(source, "sha256", None))), None)


def _with_gaze(settings: Settings, gaze: Path | None, paths: Sequence[Path]) -> Settings:
    """Return the settings with a gaze file's name and content in them.

    Raises:
        ConfigError: the options do not go together.
        DataError: there is no such file.
    """
    if gaze is None:
        for name in settings.gaze_reading.changed():
            flag = {"screen": "screen or --gaze-size", "tracker": "from", "columns": "column"}.get(name, name)
            raise ConfigError(
                f"--gaze-{flag.replace('_', '-')} tells how to read the file of --gaze; give that too."
            )
        return settings
    if len(paths) != 1:
        raise ConfigError("--gaze belongs to one video; give exactly one input with it.")
    if not settings.overlay:
        raise ConfigError(
            "--gaze is drawn into the overlay, which --no-overlay leaves out; drop one of them."
        )
    if _is_picture(paths[0]):
        raise ConfigError(f"{paths[0]}: --gaze belongs to a video, this is a picture.")
    if not gaze.is_file():
        raise DataError(f"{gaze}: there is no such gaze file; check the name.")
    return replace(settings, gaze=gaze.name, gaze_sha256=sha256_of(gaze))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _check_extras(module: SaliencyModule, settings: Settings) -> None:
    if settings.show == "speakers" and not module.network.follows_film:
        raise ConfigError(
            f"{settings.checkpoint} does not follow speakers; --show speakers is for a checkpoint of the model "
            "'speaker' (see 'avsal zoo list')."
        )
    if settings.correlation and not getattr(module.network, "gives_correlation", False):
        raise ConfigError(
            f"{settings.checkpoint} has no spatial audio-visual correlation; --correlation is for CSTS with "
            "spatial fusion."
        )


def _kept(path: Path, folder: Path, settings: Settings) -> bool:
    """Return whether a folder holds a complete result of the same file and settings."""
    there, source = _summary(folder), _source(path)
    was = there.get("source")
    same = isinstance(was, dict) and all(was.get(key) == source[key] for key in ("name", "bytes"))
    return same and there.get("settings") == json.loads(json.dumps(asdict(settings)))


def _source(path: Path) -> dict[str, Any]:
    size = path.stat().st_size if path.is_file() else None
    return {"name": path.name, "bytes": size, "path": str(place_of(path))}


def _one(
    module: SaliencyModule | None,
    path: Path,
    folder: Path,
    settings: Settings,
    batch_size: int,
    overwrite: bool,
    tick: Callable[[int, int | None], None],
    gaze: Path | None,
) -> Outcome:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if is_folder:
            next(path.iterdir(), None)
    except FileNotFoundError:
        raise MediaError(f"{path}: there is no such file; check the name.") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error}).") from None
    if is_folder:
        raise MediaError(f"{path}: the folder holds no files; name a video or a folder of videos.")
    if not path.is_file():
        raise MediaError(f"{path}: no regular file; name a video or a folder of videos.")
    if folder.exists() and not overwrite:
        if _kept(path, folder, settings):
            return Outcome(path, "kept", folder)
        raise ConfigError(
            f"{path}: {folder} already exists and is not the result of this file with these settings; "
            "pass --overwrite to replace it, or another --out."
        )
    if module is None:
        raise ConfigError(f"{path}: no model was loaded.")
    began = time.perf_counter()
    with writing(folder) as partial:
        partial.mkdir()
        summary = _write(module, path, partial, settings, batch_size, tick, gaze)
        summary["seconds"] = round(time.perf_counter() - began, 3)
        summary["frames_per_second"] = round(summary["frames"] / max(summary["seconds"], 1e-9), 2)
        (partial / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return Outcome(path, "done", folder, summary["warning"], summary["frames"], summary["seconds"])


def _write(
    module: SaliencyModule,
    path: Path,
    folder: Path,
    settings: Settings,
    batch_size: int,
    tick: Callable[[int, int | None], None],
    gaze: Path | None,
) -> dict[str, Any]:
    """Run one file through the model and write everything but the summary, which is returned."""
    from avsal.inference.overlay import Artist
    from avsal.inference.smoothing import smoothed
    from avsal.inference.video import VideoPrediction

    _check_extras(module, settings)
    still = _is_picture(path)
    correlation = settings.correlation and not still
    if correlation:
        module.network.attention_maps = True  # type: ignore[assignment]
    prediction = VideoPrediction(
        module,
        path,
        batch_size=batch_size,
        coverage=settings.coverage,  # type: ignore[arg-type]
        stride=settings.stride,
        keep_images=settings.overlay or correlation,
        keep_aux=correlation or settings.show is not None,
    )
    try:
        points, counts = (
            (None, None) if gaze is None else gaze_points(gaze, settings.gaze_reading, prediction.info)
        )
        artist = Artist(
            folder,
            prediction,
            settings.alpha,
            overlay=settings.overlay,
            still=still,
            gaze=points,
            correlation=correlation,
            speakers=settings.show == "speakers",
        )
    except BaseException:
        prediction.close()
        raise
    peaks: list[dict[str, Any]] = []
    times: list[float] = []
    total = prediction.info.frames
    try:
        for result in smoothed(prediction, settings.smooth):
            peaks.append(artist.add(result))
            times.append(result.time)
            tick(len(peaks), -(-total // settings.stride) if total else None)
    except BaseException:
        artist.abandon()
        raise
    finally:
        prediction.close()
    artist.close()
    if artist.map_size is None:
        raise MediaError(
            f"{path}: the video has too few frames for coverage={settings.coverage!r}; use --coverage full."
        )
    info, report = prediction.info, prediction.report
    warnings = list(dict.fromkeys([*prediction.notes, *artist.notes]))
    if module.spec.audio is not None and not info.has_audio and not still:
        heard = "only the pictures counted" if module.network.follows_film else "the network heard silence"
        warnings.append(f"{path}: the video has no sound track; {heard}.")
    if settings.correlation and still:
        warnings.append(f"{path}: a picture has no sound, so there is no correlation with it.")
    if points is not None and counts is not None:
        counts["drawn"] = _drawn(points, np.array(times))
        if counts["drawn"] == 0:
            warnings.append(
                f"{gaze}: none of its {counts['samples']} samples could be drawn; see the counts."
            )
    return {
        "source": _source(path),
        "settings": asdict(settings),
        "model": type(module).__name__,
        "frames": len(peaks),
        "frames_decoded": report.decoded,
        "fps": info.fps,
        "width": info.width,
        "height": info.height,
        "pixel_aspect": info.pixel_aspect,
        "has_audio": info.has_audio,
        "sound_used": prediction.has_audio,
        "map_height": artist.map_size[0],
        "map_width": artist.map_size[1],
        "gaze": counts,
        "warning": " ".join(warnings) or None,
        "advice": advice(settings.checkpoint, path),
        "peaks": peaks,
    }


def gaze_points(path: Path, reading: Reading, info: MediaInfo) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a gaze table on a video's clock.

    Returns:
        Rows (seconds, x, y) of the tracked samples with x and y in shares of the picture, and how many samples there
        are, were lost, and lie outside the picture; and, if there are any, how many rows the file itself marks as
        something else than a fixation, by reason.
    """
    from avsal.data.gaze.tables import read_gaze_table
    from avsal.io.video import VideoReader

    def times() -> np.ndarray:
        with VideoReader(info.path) as reader:
            return reader.times

    try:
        table = read_gaze_table(
            path,
            size=(info.height, info.width),
            times=times,
            video=info.path.stem,
            **vars(reading),
        )
        if not table.by_frame:
            # Raises, with both spans, where gaze and video are on different clocks.
            end = np.inf if info.duration is None else info.start + info.duration
            table.nearest([info.start, end])
    except DataError as error:
        raise DataError(
            f"{error} Options: --gaze-units, --gaze-time-unit, --gaze-offset, --gaze-origin, --gaze-screen (or "
            "--gaze-size), --gaze-picture and others say how to read the file."
        ) from error
    if table.kind == "angles":
        raise DataError(
            f"{path}: holds gaze directions ({table.units}), which need the camera's calibration; give gaze points "
            "in pixels or in shares of the picture."
        )
    points = np.stack([table.time, table.x, table.y], 1)[table.tracked]
    counts: dict[str, Any] = {"samples": len(table), "lost": table.lost, "outside": table.outside}
    marked = {reason: count for reason, count in table.dropped.items() if reason != "lost"}
    return points, counts | ({"marked": marked} if marked else {})


def _drawn(points: np.ndarray, times: np.ndarray) -> int:
    """Count the samples inside the picture that are seen in at least one of the frames at `times` (ascending)."""
    from avsal.inference.overlay import TRAIL

    inside = ((points[:, 1:] >= 0) & (points[:, 1:] <= 1)).all(1)
    first = np.append(times, np.inf)[
        np.searchsorted(times, points[:, 0])
    ]  # the first frame not before the sample
    return int((inside & (points[:, 0] > first - TRAIL)).sum())


def report(outcomes: Sequence[Outcome]) -> None:
    """Print the outcome of each input."""
    for outcome in outcomes:
        place = shown(outcome.folder or outcome.path)
        if outcome.status == "done":
            rate = outcome.frames / max(outcome.seconds, 1e-9)
            print(f"{place}: {outcome.frames} frames in {outcome.seconds:.1f} s ({rate:.1f} frames/s)")
            if outcome.message:
                print(f"  note: {_said(outcome)}", file=sys.stderr)
        elif outcome.status == "kept":
            print(f"{place}: already there, kept (--overwrite computes it again)")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        print(f"{len(failed)} of {len(outcomes)} inputs failed:", file=sys.stderr)
        for outcome in failed:
            print(f"  {_said(outcome)}", file=sys.stderr)


def _said(outcome: Outcome) -> str:
    message = (outcome.message or "").replace(str(outcome.path), shown(outcome.path))
    return "\n".join(shown(line) for line in message.splitlines())
