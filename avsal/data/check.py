"""Verify a data set folder: every video, its sound and its annotation. Nothing is modified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avsal.data.items import Annotation, OpenItem, VideoItem
from avsal.data.module import SaliencyDataModule
from avsal.data.readers import FrameFolder, PointAnnotation
from avsal.errors import AvsalError, ConfigError, DataError, did_you_mean, plain

#: A sound track that differs more than this from its video, in seconds, is reported.
SOUND_SLACK = 0.5


@dataclass
class ItemReport:
    """What was found out about one video.

    Attributes:
        name: `<set>/<video>`.
        split: train, val or test.
        frames: frames in the file or folder.
        listed: frames that the list states, None without a list.
        fps: rate of the file.
        audio_seconds: length of the sound, None without.
        labelled: frames with ground truth.
        fixations: fixations in all.
        outside: fixations that lie outside the picture or after the end.
        dropped: rows of a gaze file that are no fixation on the video, by reason.
        problems: sentences; empty if all is well.
    """

    name: str
    split: str
    frames: int | None = None
    listed: int | None = None
    fps: float | None = None
    audio_seconds: float | None = None
    labelled: int = 0
    fixations: int = 0
    outside: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def recognise(root: Path) -> SaliencyDataModule:
    """Return the DataModule that reads a folder, from what lies in it.

    Raises:
        DataError: nothing known was found.
    """
    import avsal.data as data

    options: dict[str, Any] = {"num_workers": 0}
    if not root.exists():
        raise DataError(f"{root}: there is no such folder.")
    if (root / "synthav.json").is_file():
        import json

        made = json.loads((root / "synthav.json").read_text(encoding="utf-8"))
        return data.SynthAVDataModule(root, ego=made["parameters"]["ego"], **options)
    if (root / "fold_lists").is_dir() and (root / "annotations").is_dir():
        sets = sorted(p.name for p in (root / "annotations").iterdir() if p.is_dir())
        return data.LayoutDataModule(root, sets=sets, val_fraction=0, **options)
    if (root / "annotation").is_dir():
        return data.DHF1KDataModule(root, **options)
    if (root / "ALLSTIMULI").is_dir():
        return data.MIT1003DataModule(root, **options)
    if (root / "maps" / "train").is_dir() and (root / "images").is_dir():
        return data.SALICONDataModule(root, **options)
    if (root / "TrainTestSplit.json").is_file():
        return data.AViMoSDataModule(root, **options)
    if (root / "Train" / "Videos").is_dir() or (root / "Test" / "Videos").is_dir():
        return data.CrowdSALDataModule(root, **options)
    if (root / "video_database.mat").is_file():
        return data.HEVC33DataModule(root, **options)
    if (root / "all_videos_all_frames_fixation").is_dir():
        return data.MVVADataModule(root, **options)
    if any(root.glob("*/event_data")):
        return data.DIEMDataModule(root, gaze="events", **options)
    if any(root.glob("**/Data.mat")):
        return data.LEDOVDataModule(root, **options)
    if any((root / name).is_dir() for name in ("training", "testing")):
        return data.UCFSportsDataModule(root, **options)
    return data.FolderDataModule(root, **options)


def open_data(
    source: str | Path,
    root: str | Path | None = None,
    *,
    fold: int | None = None,
    split: Literal["train", "val", "test", "all"] | None = None,
    stride: int = 1,
    limit: int | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
) -> SaliencyDataModule:
    """Return a data set for testing.

    Args:
        source: a folder or pack, whose kind is recognised, or the name of a data set (`avsal data list`).
        root: the folder of a named data set; SynthAV is generated without one.
        fold: number of the fold, for sets with folds.
        split: the videos that are tested; of a folder of your own videos all by default, else those of "test".
        stride: distance of the scored frames.
        limit: use only the first so many videos.
        batch_size: windows of one video at once.
        num_workers: processes that read videos; by default one for each core but one, at most 8.

    Raises:
        DataError: there is no such folder or data set, or a named set's folder was not given.
        ConfigError: an option does not fit the data set.
    """
    import avsal.data as data
    from avsal.data.catalog import ENTRIES, entry
    from avsal.data.module import default_workers

    path = Path(source).expanduser()
    if root is None and path.is_file():
        module: SaliencyDataModule = data.FolderDataModule(path)  # a pack holds everything itself
    elif root is None and path.is_dir():
        module = recognise(path)
    elif not any(plain(str(source)) in (plain(e.name), plain(e.title)) for e in ENTRIES):
        hint = did_you_mean(str(source), [e.name for e in ENTRIES])
        raise DataError(
            f"{source}: there is no such folder, and no data set of that name.{hint} Give the folder of your videos "
            "with their gaze, or a name that `avsal data list` prints with root= (--root), the folder of that set."
        )
    else:
        known = entry(str(source))
        if root is None and known.name != "synthav":
            raise DataError(
                f"{known.name}: root= (--root) is missing, the folder of the data set; `avsal data info {known.name}` "
                "says how to get it."
            )
        module = getattr(data, known.module)(root)
    for option, value, least in (("stride", stride, 1), ("limit", limit, 1), ("batch_size", batch_size, 1),
                                 ("num_workers", num_workers, 0)):  # fmt: skip
        if value is not None and value < least:
            raise ConfigError(f"{option} {value}: must be at least {least}.")
    if fold is not None:
        if not hasattr(module, "fold"):
            raise ConfigError(f"fold {fold}: {type(module).__name__} has no folds.")
        module.fold = fold
    own = isinstance(module, data.FolderDataModule) and module.splits is None and path.is_dir()
    wanted = split or ("all" if own else "test")
    if wanted != "test" and isinstance(module, data.Ego4DGazeDataModule | data.AriaGazeDataModule):
        raise ConfigError(f"split {wanted}: gaze sets are tested on the clips of their test list.")
    module.test_split, module.test_stride, module.limit = wanted, stride, limit
    module.eval_batch_size = batch_size
    module.num_workers = default_workers() if num_workers is None else num_workers
    return module


def check(
    module: SaliencyDataModule, *, quick: bool = False, progress: Callable[[str], None] | None = None
) -> list[ItemReport]:
    """Look at every video of every split.

    Args:
        module: the data set.
        quick: read the annotation of three frames of each video instead of all.
        progress: called with each name.

    Returns:
        One report for each video, and one for each listed video that has no files.

    Raises:
        DataError: the folder does not hold the data set at all.
    """
    reports: dict[str, ItemReport] = {}
    failures = []
    for split in ("train", "val", "test"):
        try:
            items = list(module.items(split))
        except DataError as error:
            failures.append(f"{split}: {error}")
            continue
        for item in items:
            if item.name not in reports:
                if progress:
                    progress(item.name)
                reports[item.name] = _check_item(item, split, quick)
    if not reports and failures and not module.left_out:
        raise DataError(" ".join(failures))
    for message in module.left_out.values():
        name = message.split(":", 1)[0]
        reports.setdefault(name, ItemReport(name, "", problems=[message]))
    return list(reports.values())


def _check_item(item: VideoItem, split: str, quick: bool) -> ItemReport:
    report = ItemReport(item.name, split, listed=item.frames)
    opened = item.open()
    for part in (_check_frames, _check_sound, lambda o, r: _check_annotation(o, r, quick)):
        try:
            part(opened, report)
        except AvsalError as error:
            report.problems.append(str(error))
    opened.close()
    return report


def _check_frames(opened: OpenItem, report: ItemReport) -> None:
    frames, item = opened.frames, opened.item
    report.frames, report.fps = len(frames), round(float(frames.fps), 4)
    frames.read([0])
    frames.read([len(frames) - 1])
    if item.frames is not None and item.frames != len(frames):
        report.problems.append(f"the list says {item.frames} frames, there are {len(frames)}")
    if item.fps is not None and abs(item.fps - frames.fps) > 0.01 * item.fps:
        report.problems.append(f"the list says {item.fps:g} fps, the file {frames.fps:.3f}")
    if isinstance(frames, FrameFolder):
        missing = frames.missing()
        if missing:
            report.problems.append(f"{len(missing)} frame numbers are missing, the first is {missing[0]}")


def _check_sound(opened: OpenItem, report: ItemReport) -> None:
    stream = opened.audio
    if stream is None or not stream.has_audio:
        return
    report.audio_seconds = round(stream.length / stream.rate, 3)
    if not report.frames or not report.fps or report.frames == 1:
        return
    seconds = report.frames / report.fps
    if abs(report.audio_seconds - seconds) > SOUND_SLACK:
        report.problems.append(f"the sound lasts {report.audio_seconds:.2f} s, the video {seconds:.2f} s")


def _check_annotation(opened: OpenItem, report: ItemReport, quick: bool) -> None:
    annotation = opened.annotation
    if annotation is None:
        report.problems.append("no annotation")
        return
    count = report.frames or opened.item.frames or 0
    wanted = sorted({0, count // 2, max(count - 1, 0)}) if quick else range(count)
    shapes, without = set(), 0
    for k in wanted:
        try:
            found, density = annotation.fixations(k), _map_shape(annotation, k)
        except AvsalError as error:
            report.problems.append(f"frame {k}: {error}")
            continue
        points = len(found[0]) if found is not None else 0
        report.fixations += points
        report.labelled += bool(points or density)
        without += not (points or density)
        if density:
            shapes.add(density)
    if isinstance(annotation, PointAnnotation):
        late = int((annotation.table.frame >= count).sum())
        report.outside = annotation.table.outside + late
        report.dropped = dict(annotation.table.dropped)
        total = len(annotation.table.frame) + annotation.table.outside
        if total and report.outside > 0.05 * total:
            report.problems.append(
                f"{report.outside} of {total} fixations lie outside the picture or after the end"
            )
    if len(shapes | {tuple(annotation.size)}) > 1:
        report.problems.append(
            f"maps and fixations of different sizes: {sorted(shapes | {tuple(annotation.size)})}"
        )
    _check_shape(opened, annotation, report)
    if report.labelled == 0:
        report.problems.append("no frame has ground truth")
    elif without > 0.5 * len(wanted):
        report.problems.append(f"{without} of {len(wanted)} frames have no ground truth")


def _check_shape(opened: OpenItem, annotation: Annotation, report: ItemReport) -> None:
    height, width = opened.frames.read([0]).shape[1:3]
    own = annotation.size
    if abs(np.log((own[1] / own[0]) / (width / height))) > 0.05:
        report.problems.append(f"maps of {own[0]}x{own[1]} for pictures of {height}x{width}: another shape")


def _map_shape(annotation: Annotation, frame: int) -> tuple[int, int] | None:
    if isinstance(annotation, PointAnnotation):
        return None
    density = annotation.density(frame)
    return None if density is None else (density.shape[0], density.shape[1])


def table(reports: list[ItemReport]) -> str:
    """Return the reports as text: one line each, problems below."""
    width = max([len("video"), *(len(r.name) for r in reports)])
    lines = [f"{'video':{width}}  split  frames     fps   sound  labelled  fixations  state"]
    for r in reports:
        sound = f"{r.audio_seconds:.2f}s" if r.audio_seconds is not None else "-"
        lines.append(
            f"{r.name:{width}}  {r.split:5}  {r.frames if r.frames is not None else '-':>6}  {r.fps or 0:6.2f}  "
            f"{sound:>6}  {r.labelled:8}  {r.fixations:9}  "
            + ("ok" if not r.problems else f"{len(r.problems)} problem(s)")
        )
        if r.dropped:
            lines.append(
                f"{'':{width}}    left out: {', '.join(f'{n} {why}' for why, n in r.dropped.items())}"
            )
        lines += [f"{'':{width}}    - {problem}" for problem in r.problems]
    bad = sum(bool(r.problems) for r in reports)
    lines.append(f"{len(reports)} videos, {len(reports) - bad} without problems, {bad} with.")
    return "\n".join(lines)


def as_json(reports: list[ItemReport]) -> list[dict[str, Any]]:
    """Return the reports as plain values."""
    return [asdict(r) for r in reports]
