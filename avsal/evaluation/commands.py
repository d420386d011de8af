"""`avsal evaluate`: score maps that any program wrote, or a checkpoint on data."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from avsal.errors import ConfigError

if TYPE_CHECKING:
    from avsal.evaluation.results import Results
    from avsal.metrics.conventions import Conventions, Preset

#: Options that only one of the two kinds of scoring has.
_MAPS = (
    "ground_truth", "format", "fixations", "name", "data_name", "metrics", "conventions", "set", "postprocess",
    "average", "first_frame",
)  # fmt: skip
_CHECKPOINT = ("root", "protocol", "sound", "stride", "limit", "num_workers")


def evaluate(
    *,
    predictions: Path | None = None,
    ground_truth: Path | None = None,
    format: Literal["stavis", "crowdsal", "dhf1k"] = "stavis",
    fixations: Path | None = None,
    checkpoint: str | None = None,
    data: str | None = None,
    root: Path | None = None,
    protocol: Literal["paper", "full"] = "full",
    sound: Literal["own", "swapped"] = "own",
    stride: int = 1,
    limit: int | None = None,
    num_workers: int | None = None,
    out: Path = Path("results"),
    name: str | None = None,
    data_name: str | None = None,
    split: str | None = None,
    fold: int | None = None,
    metrics: str | None = None,
    conventions: Literal["default", "matlab", "published", "pysaliency", "crowdsal", "crowdsal-stream"]
    | None = None,
    set: tuple[str, ...] = (),
    postprocess: Literal["stavis", "vinet"] | None = None,
    average: Literal["video", "frame"] = "video",
    first_frame: int = 1,
    device: str = "cpu",
    batch_size: int = 8,
    quiet: bool = False,
) -> int:
    """Score maps of any program (--predictions, --ground-truth), or a checkpoint on data (--checkpoint, --data).

    Args:
        predictions: folder of predicted maps
        ground_truth: folder of annotations
        format: layout of the ground truth: stavis (<video>/maps/eyeMap_00001.jpg, <video>/fixMap_00001.mat), dhf1k
            (<video>/maps/0001.png, <video>/fixation/0001.png), crowdsal (grey-scale videos and fixations.json; also
            AViMoS and NTIRE 2026).
        fixations: crowdsal: folder of the fixation JSON files
        checkpoint: with --data, the weights to score: a name, a file, a folder or a Hub repository; with --predictions,
            the weights behind them, for the results
        data: what to score the checkpoint on: a folder of your own videos with gaze, the folder of a known data set, or
            the name of one (`avsal data list`) with --root
        root: folder of the data set that --data names
        protocol: paper, the frames, metric code and post-processing of the model's authors; full, every frame by
            avsal's conventions.
        sound: swapped gives every video the sound of another one.
        stride: score every n-th frame
        limit: score only the first so many videos
        num_workers: processes that read videos. Default: all cores but one, at most 8
        out: folder of the results, or their file
        name: name of the model, for the results
        data_name: name of the data set; default: the ground truth's folder
        split: with --data, the videos to score: test, val, train or all (default: all of a folder of your own videos,
            else test); with --predictions, the split's name, for the results
        fold: score the test videos of this fold; with --predictions the ground truth is annotations/SET of the STAViS
            layout, and fold_lists/SET_list_test_K_fps.txt lists the videos
        metrics: comma-separated among cc, nss, auc_judd, sauc, sim, kl, auc_borji. Default: cc,nss,auc_judd,sauc,sim;
            for the crowdsal conventions cc,sim,nss,auc_judd
        conventions: how metrics are computed: default (docs/metrics.md), matlab (MIT code, no jitter), published (MIT
            code with jitter and 100 random splits), pysaliency, crowdsal (the public scorer of AViMoS, NTIRE 2026 and
            CrowdSAL that extracts frames), crowdsal-stream (CrowdSAL's later scorer). Default: crowdsal for that format
        set: change one convention, such as auc_judd_ties=matlab or sauc_method=exact; repeatable
        postprocess: rescale (and smooth, stavis) the maps as these papers' scripts do before scoring
        average: mean of a video's frames, then of the videos, or mean over all frames
        first_frame: number of the first frame in image names
        device: where to compute: cpu, cuda, cuda:1
        batch_size: frames at once
        quiet: no progress bar

    Returns:
        0 if every video was scored, 1 if some failed.

    Raises:
        AvsalError: nothing can be scored, or an option is missing or wrong.
    """
    given = dict(locals())
    defaults = {k: p.default for k, p in inspect.signature(evaluate).parameters.items()}
    used = {k for k, v in given.items() if v != defaults[k]}
    if data is not None:
        _refuse(used, ("predictions", *_MAPS), "--data")
        if checkpoint is None:
            raise ConfigError(
                "--checkpoint is missing: the weights to score on --data; `avsal zoo list` names some."
            )
        if split not in (None, "train", "val", "test", "all"):
            raise ConfigError(f"--split {split}: the videos to score are test, val, train or all.")
        results = _checkpoint(given)
    else:
        if predictions is None or ground_truth is None:
            missing = (
                "--ground-truth" if predictions is not None else "--data" if checkpoint else "--predictions"
            )
            raise ConfigError(
                f"{missing} is missing: give --predictions MAPS with --ground-truth ANNOTATIONS to score maps, or "
                "--checkpoint NAME with --data FOLDER to score a checkpoint."
            )
        _refuse(used, _CHECKPOINT, "--predictions")
        from avsal.evaluation.maps import evaluate_maps

        results = evaluate_maps(
            predictions, ground_truth, format=format, fixations=fixations, name=name, checkpoint=checkpoint,
            data_name=data_name, split=split, fold=fold, average=average, first_frame=first_frame, device=device,
            metrics=[n.strip() for n in metrics.split(",")] if metrics else None, batch_size=batch_size, quiet=quiet,
            conventions=_conventions(conventions or (format if format == "crowdsal" else "default"), set, postprocess),
        )  # fmt: skip
        results.write(out)
    from avsal.evaluation.maps import report, write_csv

    assert results.path is not None
    table = results.path.with_suffix(".csv")
    write_csv(results, table)
    report(results)
    print(f"results: {results.path}\nper video: {table}")
    results.check_scored()
    return 1 if results.failed else 0


def _refuse(used: set[str], names: Sequence[str], beside: str) -> None:
    """Refuse options that mean nothing beside another one."""
    if wrong := [name for name in names if name in used]:
        raise ConfigError(
            f"--{wrong[0].replace('_', '-')} does not go with {beside}; see `avsal evaluate --help`."
        )


def _checkpoint(given: dict[str, Any]) -> Results:
    from avsal.data import open_data
    from avsal.evaluation.maps import device_of
    from avsal.evaluation.testing import evaluate as test, quiet
    from avsal.zoo import from_pretrained

    device = device_of(given["device"])
    options = {k: given[k] for k in ("root", "fold", "split", "stride", "limit", "batch_size", "num_workers")}
    data = open_data(given["data"], **options)
    module = from_pretrained(given["checkpoint"])
    bar = not given["quiet"] and sys.stderr.isatty()
    devices = [device.index or 0] if device.type == "cuda" else 1
    trainer = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type), "devices": devices, "enable_progress_bar": bar,
    }  # fmt: skip
    with quiet():
        found = test(
            module, data, out=given["out"], protocol=given["protocol"], sound=given["sound"], trainer=trainer
        )
    assert found is not None  # one process
    return found


def _conventions(preset: str, changes: Sequence[str], postprocess: str | None) -> Conventions:
    """Return a preset with what `--set` and `--postprocess` change."""
    from dataclasses import fields

    from avsal.metrics.conventions import Conventions

    kinds = {f.name: type(f.default) for f in fields(Conventions)}
    found: dict[str, Any] = {"postprocess": postprocess, "quantised": True} if postprocess else {}
    for word in changes:
        name, equals, text = word.partition("=")
        if not equals or name not in kinds or name == "name":
            known = ", ".join(n for n in kinds if n != "name")
            raise ConfigError(f"--set {word}: give NAME=VALUE with a name among {known}.")
        try:
            found[name] = _parse(text, kinds[name])
        except ValueError as error:
            raise ConfigError(f"--set {word}: {text!r} is no {kinds[name].__name__}.") from error
    if found and preset.startswith("crowdsal"):
        raise ConfigError(f"the conventions {preset!r} are fixed; drop --set and --postprocess.")
    return Conventions.of(cast("Preset", preset), **found)


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError
        return text.lower() in ("true", "1")
    return kind(text) if kind in (int, float) else text
