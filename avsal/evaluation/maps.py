"""`avsal evaluate`: score saliency maps that any program wrote, video by video, in a stream."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avsal.errors import AvsalError, ConfigError, DataError
from avsal.evaluation.provenance import (
    Checkpoint,
    Data,
    checkpoint_of,
    file_fingerprint,
    fingerprint,
    with_parts,
)
from avsal.evaluation.results import Failure, Results, Stopwatch
from avsal.files import csv_cells, sha256_of, write_text

if TYPE_CHECKING:
    import torch

    from avsal.evaluation.pairs import Format, Pair, Predictions, Truth, TruthVideo
    from avsal.metrics.conventions import Conventions, Preset
    from avsal.metrics.saliency import SaliencyMetrics

CARD = ("cc", "nss", "auc_judd", "sauc", "sim")


@dataclass
class Outcome:
    """What became of one video.

    Attributes:
        name: the video.
        frames: that were scored.
        missing: frames of the fold list with ground truth and without a prediction.
        error: why it could not be scored.
        notes: what else there is to say.
    """

    name: str
    frames: int = 0
    missing: int = 0
    error: str | None = None
    notes: list[str] = field(default_factory=list)


def evaluate_maps(
    predictions: Path,
    ground_truth: Path,
    *,
    format: Format = "stavis",
    fixations: Path | None = None,
    name: str | None = None,
    checkpoint: str | None = None,
    data_name: str | None = None,
    split: str | None = None,
    fold: int | None = None,
    metrics: Sequence[str] | None = None,
    conventions: Preset | Conventions | None = None,
    average: Literal["video", "frame"] = "video",
    first_frame: int = 1,
    device: str = "cpu",
    batch_size: int = 8,
    quiet: bool = True,
) -> Results:
    """Score saliency maps that any program wrote, video by video; nothing is extracted to disk.

    Args:
        predictions: folder of predicted maps (see `avsal.evaluation.pairs`).
        ground_truth: folder of annotations.
        format: layout of the ground truth (see `avsal.evaluation.pairs`).
        fixations: folder of the JSON files of "crowdsal", where it is not beside the videos.
        name: of the model, for the results.
        checkpoint: weights behind the predictions, for the results: a name, a file or a folder.
        data_name: of the data set; by default the ground truth's folder.
        split: name of the split, for the results.
        fold: score the test videos of this fold, as `lightning test` does: the ground truth is `annotations/SET` of the
            STAViS layout, and `fold_lists/SET_list_test_K_fps.txt` lists the videos.
        metrics: names of metrics; by default those of model cards, or of the public scorer's conventions.
        conventions: how metrics are computed; by default "crowdsal" for that format, else "default".
        average: "video" averages a video's frames, then the videos; "frame" averages all frames.
        first_frame: number of the first frame in image names.
        device: where to score: "cpu", "cuda", "cuda:1".
        batch_size: frames scored at once.
        quiet: no progress bar.

    Returns:
        The results; videos that could not be scored are in `failed`.

    Raises:
        AvsalError: nothing can be scored, or an option is wrong.
    """
    from avsal.evaluation.pairs import find_pairs
    from avsal.metrics.conventions import Conventions
    from avsal.metrics.saliency import SaliencyMetrics

    watch = Stopwatch()
    rules = Conventions.of(conventions or ("crowdsal" if format == "crowdsal" else "default"))
    public = rules.name.startswith("crowdsal")
    metric = SaliencyMetrics(
        tuple(metrics or (("cc", "sim", "nss", "auc_judd") if public else CARD)),
        conventions=rules,
        average=average,
    )
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: at least one frame is scored at once.")
    where = device_of(device)
    metric.to(where)
    pairs = find_pairs(
        predictions, ground_truth, format, fixations=fixations, direct=rules.name == "crowdsal-stream"
    )
    listed = _fold(ground_truth, format, fold) if fold is not None else None
    if listed is not None:
        pairs = [pair for pair in pairs if pair.name in listed.frames]
    if not pairs:
        raise DataError(f"{ground_truth}: none of its videos is in the fold's list.")
    outcomes: list[Outcome] = []
    counts: dict[str, int] = {}
    with _progress(len(pairs), quiet=quiet) as tick:
        for number, pair in enumerate(pairs):
            scoring = _Scoring(pair, number, predictions, first_frame, batch_size, listed)
            outcomes.append(scoring.score(metric, counts))
            tick(pair.name, outcomes[-1])
    if listed is not None:
        lost = sorted(set(listed.frames) - {o.name for o in outcomes})
        outcomes += [
            Outcome(n, error=f"{listed.path.name} lists it, but it has no annotation.") for n in lost
        ]
    prefix = f"{listed.name}/" if listed is not None else ""
    failed = [Failure(item=prefix + o.name, error=o.error) for o in outcomes if o.error is not None]
    if len(failed) == len(outcomes):
        raise DataError(f"not one of {len(outcomes)} videos could be scored; the first: {failed[0].error}")
    protocol: dict[str, Any] = {
        "average": average,
        "format": format,
        "negatives": "video" if listed is not None or "sauc" in metric.metrics else None,
        "predictions": str(predictions),
    }
    if listed is None:
        protocol["frames"] = "those with a prediction and ground truth"
        data = Data(
            name=data_name or ground_truth.resolve().name, split=split, fingerprint=fingerprint(counts)
        )
    else:
        # The entries of `lightning test`, where the same frames of the same videos were scored.
        full = not any(o.missing for o in outcomes)
        protocol |= {"coverage": "full" if full else "frames with a prediction", "stride": 1}
        data = listed.data(ground_truth, [p.name for p in pairs], data_name, split)
    return Results.make(
        "evaluate",
        accelerator=_device_name(where),
        model=name,
        checkpoint=_weights(checkpoint) if checkpoint else None,
        data=data,
        protocol=protocol,
        conventions=rules.describe(),
        metrics=metric.compute(),
        frames=metric.frames_used(),
        videos={
            str(k): v for k, v in metric.per_video(dict(enumerate(prefix + p.name for p in pairs))).items()
        },
        failed=failed,
        notes=[f"{o.name}: {note}" for o in outcomes for note in o.notes],
        seconds=watch.seconds,
    )


def write_csv(results: Results, path: Path) -> None:
    """Write one line per video, and the data set's own, with scores and numbers of frames."""
    metrics = list(results.metrics)
    columns = ["video", *metrics, "frames", "frames_failed", *(f"frames_{m}" for m in metrics)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, row in results.videos.items():
        counts = {k: int(v) for k, v in row.items() if k.startswith("frames")}
        writer.writerow({"video": csv_cells([name])[0], **row, **counts})
    writer.writerow(
        {"video": f"all ({results.protocol['average']} average)", **results.metrics, **results.frames}
    )
    write_text(path, text.getvalue())


def _weights(source: str) -> Checkpoint:
    """Return what the weights behind the predictions are known by; of a name that avsal does not know, the name."""
    from avsal.zoo import from_pretrained

    path = Path(source).expanduser()
    try:
        known = checkpoint_of(from_pretrained(source, local_files_only=True))
    except AvsalError:  # another program's weights, or ours that are not on this machine
        known = Checkpoint(sha256=sha256_of(path) if path.is_file() else None)
    return known.model_copy(update={"name": path.name})


def report(results: Results) -> None:
    """Print the table of the data set, the failures and the notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        "metric", "score", "frames", title=f"{results.data.name}, {results.conventions['name']} conventions"
    )
    for name, value in results.metrics.items():
        table.add_row(name, f"{value:.4f}", str(results.frames[f"frames_{name}"]))
    console.print(table)
    frames = results.frames
    left = f", {frames['frames_failed']} predictions with NaN" if frames["frames_failed"] else ""
    console.print(
        f"{frames['videos']} videos, {frames['frames']} frames{left}, {results.seconds:.1f} s",
        highlight=False,
    )
    for note in results.notes[:20]:
        console.print(f"note: {note}", markup=False, highlight=False)
    if len(results.notes) > 20:
        console.print(f"... and {len(results.notes) - 20} more notes in the results file", highlight=False)
    for failure in results.failed:
        console.print(f"failed: {failure.item}: {failure.error}", markup=False, highlight=False)
    if results.failed:
        console.print(
            f"{len(results.failed)} of {len(results.videos) + len(results.failed)} videos could not be scored",
            highlight=False,
        )


# -- folds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
    """The test list of one fold of a set in the STAViS layout."""

    path: Path
    name: str
    number: int
    frames: dict[str, int]
    rates: dict[str, float]

    def data(self, folder: Path, names: list[str], data_name: str | None, split: str | None) -> Data:
        """Return what `lightning test` writes about the same videos."""
        files = {f"{self.name}/{n}": file_fingerprint(with_parts(folder / n)) for n in names}
        return Data(
            name=data_name or self.name,
            split=split or "test",
            fold=self.number,
            fingerprint=fingerprint({f"{self.name}/{n}": [self.frames[n], self.rates[n]] for n in names}),
            annotations=fingerprint(files),
            videos=len(self.frames),
        )


def _fold(ground_truth: Path, format: str, fold: int) -> _Fold:
    from avsal.data.layout import fold_list, read_fold_list

    if format != "stavis":
        raise ConfigError(f"fold {fold}: only the layout stavis has fold lists, not {format}.")
    folder = ground_truth.resolve()
    for root in (folder.parent.parent, folder.parent):
        path = fold_list(root, folder.name, "test", fold)
        if path is not None:
            break
    else:
        raise ConfigError(
            f"fold {fold}: there is no {folder.name}_list_test_{fold}_fps.txt in "
            f"{folder.parent.parent / 'fold_lists'} or {folder.parent / 'fold_lists'}. Give the folder of one set "
            "(annotations/AVAD) as ground truth."
        )
    entries = read_fold_list(path)
    return _Fold(
        path, folder.name, fold, {e.name: e.frames for e in entries}, {e.name: e.fps for e in entries}
    )


class _ListedTruth:
    """Ground truth as `lightning test` takes it: the frames that the list counts, and of these the labelled ones.

    A frame with an empty map and no fixation is not labelled, unless the conventions have a value for it (`empty`).
    """

    def __init__(self, truth: TruthVideo, frames: int, empty: bool) -> None:
        self.truth, self.frames, self.empty = truth, frames, empty
        self.name, self.notes = truth.name, truth.notes
        self._labelled: dict[int, bool] = {}

    def frame(self, index: int) -> Truth | None:
        """Return the ground truth of a labelled frame (0-based)."""
        found = self.truth.frame(index) if index < self.frames else None
        nothing = found is not None and not found.density.any() and len(found.fixations) == 0
        if nothing and not self.empty:
            found = None
        self._labelled[index] = found is not None
        return found

    def union(self) -> Any:
        """Return the distinct pixels fixated in any frame."""
        return self.truth.union()

    def count(self) -> int:
        """Return the number of labelled frames; reads those that were not asked for."""
        for index in range(self.frames):
            if index not in self._labelled:
                self.frame(index)
        return sum(self._labelled.values())

    def close(self) -> None:
        """Close what is open."""
        self.truth.close()


# -- one video ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scoring:
    """How one video is scored.

    Attributes:
        pair: its files.
        number: its `video_id`.
        folder: of the predictions.
        first: number of the first frame in image names.
        batch_size: frames at once.
        listed: the fold's list, None without.
    """

    pair: Pair
    number: int
    folder: Path
    first: int
    batch_size: int
    listed: _Fold | None

    def score(self, metric: SaliencyMetrics, counts: dict[str, int]) -> Outcome:
        """Score the video into a metric of its own, which is merged only if the whole video went well."""
        from avsal.evaluation.pairs import Predictions

        pair, outcome = self.pair, Outcome(self.pair.name)
        truth = None
        try:
            truth = pair.truth()
            if self.listed is not None:
                truth = _ListedTruth(truth, self.listed.frames[pair.name], metric.conventions.empty == "mit")
            else:
                counts[pair.name] = truth.count()
            if pair.prediction is None:
                raise DataError(f"no prediction named {pair.name} in {self.folder}.")
            predictions = Predictions(
                pair.prediction, first=self.first, direct=metric.conventions.name == "crowdsal-stream"
            )
            own = copy.deepcopy(metric)
            own.reset()
            self._stream(predictions, truth, own, outcome)
            metric.merge_state(own)
            outcome.notes += [*predictions.notes, *truth.notes]
        except Exception as error:  # a batch goes on whatever one video does
            outcome.error = (
                str(error) if isinstance(error, AvsalError) else f"{type(error).__name__}: {error}"
            )
            outcome.notes.clear()
        finally:
            if truth is not None:
                truth.close()
        return outcome

    def _stream(
        self, predictions: Predictions, truth: TruthVideo, metric: SaliencyMetrics, outcome: Outcome
    ) -> None:
        import torch

        device = metric.device
        union = torch.from_numpy(truth.union()).to(device) if "sauc" in metric.metrics else None
        unlabelled = 0
        for batch in _batches(predictions, self.batch_size):
            frames = [(index, pred, truth.frame(index)) for index, pred in batch]
            unlabelled += sum(t is None for _, _, t in frames)
            # Frames of one batch share both sizes; a video whose size changes is scored in runs.
            labelled = [(i, p, t) for i, p, t in frames if t is not None]
            for _, run in groupby(labelled, key=lambda f: (f[1].shape, f[2].density.shape)):
                group = list(run)
                pred = torch.stack([torch.from_numpy(p) for _, p, _ in group]).to(device)
                density = torch.stack([torch.from_numpy(t.density) for _, _, t in group]).to(device)
                points = _pad([torch.from_numpy(t.fixations) for _, _, t in group]).to(device)
                others = None
                if union is not None:
                    others = _others(union, points, (density.shape[-2], density.shape[-1]))
                metric.update(
                    pred, density, points, others, video_id=self.number,
                    frame=torch.tensor([i for i, _, _ in group]),
                )  # fmt: skip
                outcome.frames += len(group)
        _check_frames(predictions, truth, metric, outcome, unlabelled)


def _check_frames(
    predictions: Predictions, truth: TruthVideo, metric: SaliencyMetrics, outcome: Outcome, unlabelled: int
) -> None:
    """Compare the numbers of frames of a video that was scored, and note what does not meet."""
    public = metric.conventions.name.startswith("crowdsal")
    left = truth.leftover() if hasattr(truth, "leftover") else 0
    if public and (unlabelled or left):
        raise DataError(
            f"{predictions.path}: {outcome.frames + unlabelled} frames predicted, the ground truth has"
            f" {outcome.frames + left}; the numbers of frames must agree."
        )
    if outcome.frames == 0:
        raise DataError(
            f"{predictions.path}: no frame has both a prediction and ground truth; see --first-frame."
        )
    if unlabelled:
        outcome.notes.append(f"{unlabelled} predicted frames have no ground truth")
    missing = truth.count() - outcome.frames
    outcome.missing = max(0, missing)
    if missing > 0:
        outcome.notes.append(f"{missing} frames of the ground truth have no prediction and are not scored")
    if missing < 0 and public:
        outcome.notes.append(
            f"the last {-missing} frames have no entry in the fixation file and are not scored"
        )
    if metric.conventions.name == "crowdsal" and outcome.frames >= 1000:
        outcome.notes.append(
            "1000 frames or more: the public scorer sorts the names 1000.png and 101.png as text and scores these"
            " frames against others' fixations; here every frame meets its own, so numbers differ"
        )


def _batches(frames: Iterable[Any], size: int) -> Iterator[list[Any]]:
    frames = iter(frames)
    while batch := list(islice(frames, size)):
        yield batch


def _pad(points: list[torch.Tensor]) -> torch.Tensor:
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(points, batch_first=True, padding_value=-1).reshape(len(points), -1, 2)


def _others(union: torch.Tensor, points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the video's fixated pixels without each frame's own, padded with -1 (B, M, 2)."""
    import torch

    height, width = size
    own = torch.zeros((len(points), height * width + 1), dtype=torch.bool, device=points.device)
    flat = torch.where(points[..., 0] >= 0, points[..., 0] * width + points[..., 1], height * width)
    own.scatter_(1, flat, True)
    taken = own[:, union[:, 0] * width + union[:, 1]]
    return torch.where(taken.unsqueeze(-1), -1, union.unsqueeze(0))


# -- options -----------------------------------------------------------------------------------------


def device_of(name: str) -> torch.device:
    """Return the device of that name if this machine has it, else raise a ConfigError."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name}: not usable here ({str(error).splitlines()[0]}).") from error
    return device


def _device_name(device: torch.device) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


class _progress:
    """A progress bar over videos on the terminal, nothing elsewhere or when asked to be quiet."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=quiet or not console.is_terminal)
        self._task = self._bar.add_task("evaluating", total=total)

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, name: str, outcome: Outcome) -> None:
        self._bar.update(self._task, advance=1, description=f"{name}{' (failed)' if outcome.error else ''}")
