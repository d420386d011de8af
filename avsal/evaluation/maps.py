"""`avsal evaluate`: score saliency maps that any program wrote, video by video, in a stream."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from avsal.errors import AvsalError, ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from avsal.evaluation.pairs import Pair, Predictions, Truth, TruthVideo
    from avsal.evaluation.results import Checkpoint, Data, Results
    from avsal.metrics.conventions import Conventions, Preset
    from avsal.metrics.saliency import SaliencyMetrics

_CARD = "cc,nss,auc_judd,sauc,sim"
_PRESETS = ("default", "matlab", "published", "pysaliency", "crowdsal", "crowdsal-stream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `avsal evaluate`."""
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="DIR", help="folder of predicted maps"
    )
    parser.add_argument(
        "--ground-truth", type=Path, required=True, metavar="DIR", help="folder of annotations"
    )
    parser.add_argument(
        "--format",
        choices=("stavis", "crowdsal", "dhf1k"),
        default="stavis",
        help="layout of the ground truth: stavis (<video>/maps/eyeMap_00001.jpg, <video>/fixMap_00001.mat), dhf1k "
        "(<video>/maps/0001.png, <video>/fixation/0001.png), crowdsal (grey-scale videos and fixations.json; also "
        "AViMoS and NTIRE 2026). Default: stavis",
    )
    parser.add_argument(
        "--fixations", type=Path, metavar="DIR", help="crowdsal: folder of the fixation JSON files"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--name", help="name of the model, for the results")
    parser.add_argument(
        "--checkpoint", help="weights behind the predictions, for the results: a name, a file or a folder"
    )
    parser.add_argument("--data-name", help="name of the data set; default: the ground truth's folder")
    parser.add_argument("--split", help="name of the split, for the results")
    parser.add_argument(
        "--fold", type=int, metavar="K",
        help="score the test videos of this fold, as `lightning test` does: the ground truth is annotations/SET of the "
        "STAViS layout, and fold_lists/SET_list_test_K_fps.txt lists the videos",
    )  # fmt: skip
    parser.add_argument(
        "--metrics",
        help=f"comma-separated among cc, nss, auc_judd, sauc, sim, kl, auc_borji. Default: {_CARD}; for the crowdsal "
        "conventions cc,sim,nss,auc_judd",
    )
    parser.add_argument(
        "--conventions",
        choices=_PRESETS,
        help="how metrics are computed: default (docs/metrics.md), matlab (MIT code, no jitter), published (MIT code "
        "with jitter and 100 random splits), pysaliency, crowdsal (the public scorer of AViMoS, NTIRE 2026 and "
        "CrowdSAL that extracts frames), crowdsal-stream (CrowdSAL's later scorer). Default: crowdsal for that format",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one convention, such as auc_judd_ties=matlab or sauc_method=exact; repeatable",
    )
    parser.add_argument(
        "--postprocess",
        choices=("stavis", "vinet"),
        help="rescale (and smooth, stavis) the maps as these papers' scripts do before scoring",
    )
    parser.add_argument(
        "--average",
        choices=("video", "frame"),
        default="video",
        help="mean of a video's frames, then of the videos (default), or mean over all frames",
    )
    parser.add_argument(
        "--first-frame", type=int, default=1, help="number of the first frame in image names; default: 1"
    )
    parser.add_argument("--device", default="cpu", help="where to score: cpu (default), cuda, cuda:1")
    parser.add_argument("--batch-size", type=int, default=8, help="frames scored at once. Default: 8")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


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


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 if every video was scored, 1 if some failed.

    Raises:
        AvsalError: nothing can be scored, or an option is wrong.
    """
    results, outcomes = run(args)
    stem = results.write(args.out)
    table = stem.with_suffix(".csv")
    write_csv(results, table)
    report(results, outcomes)
    print(f"results: {stem}\nper video: {table}")
    results.check_scored()
    return 1 if results.failed else 0


def run(args: argparse.Namespace) -> tuple[Results, list[Outcome]]:
    """Score everything and return the results, without writing them."""
    from avsal.evaluation.pairs import find_pairs
    from avsal.evaluation.results import Data, Failure, Results, Stopwatch, fingerprint
    from avsal.metrics.saliency import SaliencyMetrics

    watch = Stopwatch()
    conventions = _conventions(args)
    public = conventions.name.startswith("crowdsal")
    names = args.metrics or ("cc,sim,nss,auc_judd" if public else _CARD)
    metric = SaliencyMetrics(
        tuple(n.strip() for n in names.split(",")), conventions=conventions, average=args.average
    )
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}: at least one frame is scored at once.")
    device = _device(args.device)
    metric.to(device)
    pairs = find_pairs(
        args.predictions,
        args.ground_truth,
        args.format,
        fixations=args.fixations,
        direct=conventions.name == "crowdsal-stream",
    )
    listed = _fold(args) if args.fold is not None else None
    if listed is not None:
        pairs = [pair for pair in pairs if pair.name in listed.frames]
    outcomes: list[Outcome] = []
    counts: dict[str, int] = {}
    with _progress(len(pairs), quiet=args.quiet) as tick:
        for number, pair in enumerate(pairs):
            outcomes.append(_score_video(pair, number, metric, args, device, counts, listed))
            tick(pair.name, outcomes[-1])
    if listed is not None:
        lost = sorted(set(listed.frames) - {o.name for o in outcomes})
        outcomes += [
            Outcome(n, error=f"{listed.path.name} lists it, but it has no annotation.") for n in lost
        ]
    prefix = f"{listed.name}/" if listed is not None else ""
    failed = [Failure(item=prefix + o.name, error=o.error) for o in outcomes if o.error is not None]
    if not outcomes:
        raise DataError(f"{args.ground_truth}: none of its videos is in the fold's list.")
    if len(failed) == len(outcomes):
        raise DataError(f"not one of {len(outcomes)} videos could be scored; the first: {failed[0].error}")
    checkpoint = _weights(args.checkpoint) if args.checkpoint else None
    ids = dict(enumerate(prefix + p.name for p in pairs))
    protocol: dict[str, Any] = {
        "average": args.average,
        "format": args.format,
        "frames": "those with a prediction and ground truth",
        "negatives": "video" if "sauc" in metric.metrics else None,
        "predictions": str(args.predictions),
    }
    data = Data(
        name=args.data_name or args.ground_truth.resolve().name,
        split=args.split,
        fingerprint=fingerprint(counts),
    )
    if listed is not None:
        # The entries of `lightning test`, where the same frames of the same videos were scored.
        full = not any(o.missing for o in outcomes)
        del protocol["frames"]
        protocol |= {
            "coverage": "full" if full else "frames with a prediction", "stride": 1, "negatives": "video",
        }  # fmt: skip
        data = listed.data(args, [p.name for p in pairs])
    results = Results.make(
        "evaluate",
        accelerator=_device_name(device),
        model=args.name,
        checkpoint=checkpoint,
        data=data,
        protocol=protocol,
        conventions=conventions.describe(),
        metrics=metric.compute(),
        frames=metric.frames_used(),
        videos={str(k): v for k, v in metric.per_video(ids).items()},
        failed=failed,
        notes=[f"{o.name}: {note}" for o in outcomes for note in o.notes],
        seconds=watch.seconds,
    )
    return results, outcomes


def write_csv(results: Results, path: Path) -> None:
    """Write one line per video, and the data set's own, with scores and numbers of frames."""
    from avsal.files import csv_cells, write_text

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
    from avsal.evaluation.results import Checkpoint, checkpoint_of
    from avsal.files import sha256_of
    from avsal.zoo import from_pretrained

    path = Path(source).expanduser()
    try:
        known = checkpoint_of(from_pretrained(source, local_files_only=True))
    except AvsalError:  # another program's weights, or ours that are not on this machine
        known = Checkpoint(sha256=sha256_of(path) if path.is_file() else None)
    return known.model_copy(update={"name": path.name})


def report(results: Results, outcomes: list[Outcome]) -> None:
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
        console.print(f"{len(results.failed)} of {len(outcomes)} videos could not be scored", highlight=False)


# -- folds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fold:
    """The test list of one fold of a set in the STAViS layout."""

    path: Path
    name: str
    number: int
    frames: dict[str, int]
    rates: dict[str, float]

    def data(self, args: argparse.Namespace, names: list[str]) -> Data:
        """Return what `lightning test` writes about the same videos."""
        from avsal.evaluation.results import Data, file_fingerprint, fingerprint, with_parts

        files = {f"{self.name}/{n}": file_fingerprint(with_parts(args.ground_truth / n)) for n in names}
        return Data(
            name=args.data_name or self.name,
            split=args.split or "test",
            fold=self.number,
            fingerprint=fingerprint({f"{self.name}/{n}": [self.frames[n], self.rates[n]] for n in names}),
            annotations=fingerprint(files),
            videos=len(self.frames),
        )


def _fold(args: argparse.Namespace) -> _Fold:
    from avsal.data.layout import fold_list, read_fold_list

    if args.format != "stavis":
        raise ConfigError(f"--fold {args.fold}: only the layout stavis has fold lists, not {args.format}.")
    folder = args.ground_truth.resolve()
    for root in (folder.parent.parent, folder.parent):
        path = fold_list(root, folder.name, "test", args.fold)
        if path is not None:
            break
    else:
        raise ConfigError(
            f"--fold {args.fold}: there is no {folder.name}_list_test_{args.fold}_fps.txt in "
            f"{folder.parent.parent / 'fold_lists'} or {folder.parent / 'fold_lists'}. Give the folder of one set "
            "(annotations/AVAD) as --ground-truth."
        )
    entries = read_fold_list(path)
    return _Fold(
        path, folder.name, args.fold, {e.name: e.frames for e in entries}, {e.name: e.fps for e in entries}
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


def _score_video(
    pair: Pair,
    number: int,
    metric: SaliencyMetrics,
    args: argparse.Namespace,
    device: torch.device,
    counts: dict[str, int],
    listed: _Fold | None = None,
) -> Outcome:
    """Score one video into a copy of the metric's state, which is kept only if the whole video went well."""
    from avsal.evaluation.pairs import Predictions

    outcome = Outcome(pair.name)
    before = len(metric._keys)
    truth = None
    try:
        truth = pair.truth()
        if listed is not None:
            truth = _ListedTruth(truth, listed.frames[pair.name], metric.conventions.empty == "mit")
        else:
            counts[pair.name] = truth.count()
        if pair.prediction is None:
            raise DataError(f"no prediction named {pair.name} in {args.predictions}.")
        predictions = Predictions(
            pair.prediction, first=args.first_frame, direct=metric.conventions.name == "crowdsal-stream"
        )
        _stream(predictions, truth, number, metric, args, device, outcome)
        outcome.notes += [*predictions.notes, *truth.notes]
    except Exception as error:  # a batch goes on whatever one video does
        for state in (metric._keys, metric._scores):
            assert isinstance(state, list)
            del state[before:]
        outcome.error = str(error) if isinstance(error, AvsalError) else f"{type(error).__name__}: {error}"
        outcome.notes.clear()
    finally:
        if truth is not None:
            truth.close()
    return outcome


def _stream(
    predictions: Predictions,
    truth: TruthVideo,
    number: int,
    metric: SaliencyMetrics,
    args: argparse.Namespace,
    device: torch.device,
    outcome: Outcome,
) -> None:
    import torch

    public = metric.conventions.name.startswith("crowdsal")
    union = torch.from_numpy(truth.union()).to(device) if "sauc" in metric.metrics else None
    unlabelled = 0
    for batch in _batches(predictions, args.batch_size):
        frames = [(index, pred, truth.frame(index)) for index, pred in batch]
        unlabelled += sum(t is None for _, _, t in frames)
        # Frames of one batch share both sizes; a video whose size changes is scored in runs.
        for group in _runs([(i, p, t) for i, p, t in frames if t is not None]):
            pred = torch.stack([torch.from_numpy(p) for _, p, _ in group]).to(device)
            density = torch.stack([torch.from_numpy(t.density) for _, _, t in group]).to(device)
            points = _pad([torch.from_numpy(t.fixations) for _, _, t in group]).to(device)
            metric.update(
                pred,
                density,
                points,
                None if union is None else _others(union, points, (density.shape[-2], density.shape[-1])),
                video_id=number,
                frame=torch.tensor([i for i, _, _ in group]),
            )
            outcome.frames += len(group)
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


def _batches(predictions: Predictions, size: int) -> Iterator[list[tuple[int, Any]]]:
    batch: list[tuple[int, Any]] = []
    for item in predictions:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _runs(frames: list[tuple[int, Any, Any]]) -> Iterator[list[tuple[int, Any, Any]]]:
    run: list[tuple[int, Any, Any]] = []
    for frame in frames:
        if run and (frame[1].shape != run[0][1].shape or frame[2].density.shape != run[0][2].density.shape):
            yield run
            run = []
        run.append(frame)
    if run:
        yield run


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


def _conventions(args: argparse.Namespace) -> Conventions:
    from dataclasses import fields

    from avsal.metrics.conventions import Conventions

    preset = args.conventions or ("crowdsal" if args.format == "crowdsal" else "default")
    kinds = {f.name: type(f.default) for f in fields(Conventions)}
    changes: dict[str, Any] = {"postprocess": args.postprocess, "quantised": True} if args.postprocess else {}
    for word in args.set:
        name, equals, text = word.partition("=")
        if not equals or name not in kinds or name == "name":
            known = ", ".join(n for n in kinds if n != "name")
            raise ConfigError(f"--set {word}: give NAME=VALUE with a name among {known}.")
        try:
            changes[name] = _parse(text, kinds[name])
        except ValueError as error:
            raise ConfigError(f"--set {word}: {text!r} is no {kinds[name].__name__}.") from error
    if changes and preset.startswith("crowdsal"):
        raise ConfigError(f"the conventions {preset!r} are fixed; drop --set and --postprocess.")
    return Conventions.of(cast("Preset", preset), **changes)


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError
        return text.lower() in ("true", "1")
    return kind(text) if kind in (int, float) else text


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: not usable here ({str(error).splitlines()[0]}).") from error
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
