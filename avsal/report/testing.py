"""One test of one checkpoint: written as a results file, and not repeated when that is there."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avsal.errors import DataError
from avsal.report.published import SIX

if TYPE_CHECKING:
    from avsal.data.module import SaliencyDataModule
    from avsal.evaluation.testing import Protocol
    from avsal.models.base import SaliencyModule


def run_test(
    module: SaliencyModule,
    data: SaliencyDataModule,
    checkpoint: str,
    data_name: str,
    args: argparse.Namespace,
    *,
    protocol: Protocol,
    sound: Literal["own", "swapped"] = "own",
    sha256: str | None = None,
) -> Path | None:
    """Test one checkpoint, write its results, and return the file; a finished one is not repeated.

    Args:
        module: with its weights.
        data: the data set.
        checkpoint: name of the weights.
        data_name: for the file's name.
        args: `out`, `accelerator`, `devices`, `num_nodes`, `strategy`.
        protocol, sound, sha256: see `avsal.evaluation.testing.evaluate`.

    Returns:
        The results file; None on every process but the first.
    """
    from avsal.evaluation.results import weights_hash
    from avsal.evaluation.shards import write_frames
    from avsal.evaluation.testing import evaluate, forget

    fold = getattr(data, "fold", None)
    parts = [checkpoint, data_name.lower(), f"fold{fold}" if fold and data_name in SIX else None, protocol]
    parts.append("swapped" if sound == "swapped" else None)
    path = args.out / f"{'-'.join(str(p) for p in parts if p)}.json"
    if path.is_file() and _finished(path, data, weights_hash(module), protocol, sound):
        say(f"{path}: done before")
        return path
    say(f"{checkpoint} on {data_name}{f' fold {fold}' if fold and data_name in SIX else ''}"
         f"{', sound swapped' if sound != 'own' else ''} …")  # fmt: skip
    with quiet():
        found = evaluate(
            module, data, checkpoint=checkpoint, sha256=sha256, work=args.out / ".partial" / path.stem,
            protocol=protocol, sound=sound, trainer=trainer_options(args),
        )  # fmt: skip
    if found is None:
        return None
    results, frames = found
    write_frames(frames, path)
    results.write(path)
    forget(args.out / ".partial" / path.stem)
    for failure in results.failed[:5]:
        say(f"  left out: {failure.error}")
    say("  " + ", ".join(f"{name} {value:.4f}" for name, value in results.metrics.items()) + f" ({path})")
    return path


def _finished(path: Path, data: SaliencyDataModule, weights: str, protocol: str, sound: str) -> bool:
    """Say whether a file holds the whole results of these weights on this data under this protocol."""
    from avsal.evaluation.results import Results, data_of

    try:
        known = Results.read(path)
    except DataError:
        return False
    data.prepare_data()
    there = data_of(data)
    return (
        known.checkpoint is not None
        and weights in known.checkpoint.hashes
        and known.data.fingerprint == there.fingerprint
        and known.data.annotations in (None, there.annotations)
        and known.complete
        and known.protocol.get("protocol") == protocol
        and known.protocol.get("sound") == sound
        and known.protocol.get("stride") == data.test_stride
    )


def file_hash(name: str | Path) -> str | None:
    """Return the sha256 of the file that weights are in: of a path, or as the registry states it for a name."""
    from avsal.checkpoints.registry import entries
    from avsal.files import sha256_of

    if isinstance(name, Path):
        return sha256_of(name) if name.is_file() else None
    entry = entries().get(name)
    stated = {getattr(source, "sha256", None) for source in entry.sources} if entry is not None else set()
    return stated.pop() if len(stated) == 1 else None


def trainer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the Trainer's arguments that the command line gives."""
    devices: int | str = args.devices if args.devices == "auto" or "," in args.devices else int(args.devices)
    return {
        "accelerator": args.accelerator, "devices": devices, "num_nodes": args.num_nodes, "strategy": args.strategy,
        "enable_progress_bar": sys.stderr.isatty(),
    }  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks about hardware and logging from the tables."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*sync_dist.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*ReduceLROnPlateau conditioned.*")
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_process() -> bool:
    """Say whether this is the process that reports."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def say(words: str) -> None:
    """Print a line on stderr, from the first process only."""
    if first_process():
        print(words, file=sys.stderr, flush=True)
