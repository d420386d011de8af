"""One test of one checkpoint: written as a results file, and not repeated when that is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avsal.errors import DataError
from avsal.report.published import SIX

if TYPE_CHECKING:
    from avsal.data.module import SaliencyDataModule
    from avsal.evaluation.testing import Protocol
    from avsal.models.base import SaliencyModule


@dataclass(frozen=True)
class Options:
    """What every test and training of `avsal reproduce` shares.

    Attributes:
        data: folder of the data sets.
        dhf1k: folder of DHF1K, if it is not below `data`.
        out: folder of results and trainings.
        weights: name -> file, in place of the registry's.
        fast: small networks after one step.
        protocol: see `avsal.evaluation.testing.evaluate`.
        stride: score every n-th frame.
        batch_size: windows at once.
        num_workers: processes that read videos; None for all cores but one, at most 8.
        accelerator, devices, num_nodes, strategy: of Lightning's Trainer.
    """

    data: Path | None = None
    dhf1k: Path | None = None
    out: Path = Path("results")
    weights: Mapping[str, Path] = field(default_factory=dict)
    fast: bool = False
    protocol: Protocol = "paper"
    stride: int = 1
    batch_size: int = 8
    num_workers: int | None = None
    accelerator: str = "auto"
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"

    @property
    def trainer(self) -> dict[str, Any]:
        """The Trainer's arguments."""
        plain = self.devices == "auto" or "," in self.devices
        return {
            "accelerator": self.accelerator, "devices": self.devices if plain else int(self.devices),
            "num_nodes": self.num_nodes, "strategy": self.strategy, "enable_progress_bar": sys.stderr.isatty(),
        }  # fmt: skip


def run_test(
    module: SaliencyModule,
    data: SaliencyDataModule,
    checkpoint: str,
    data_name: str,
    options: Options,
    *,
    sound: Literal["own", "swapped"] = "own",
    sha256: str | None = None,
) -> Path | None:
    """Test one checkpoint, write its results, and return the file; a finished one is not repeated.

    Args:
        module: with its weights.
        data: the data set.
        checkpoint: name of the weights.
        data_name: for the file's name.
        options: where and how it runs.
        sound, sha256: see `avsal.evaluation.testing.evaluate`.

    Returns:
        The results file; None on every process but the first.
    """
    from avsal.evaluation.provenance import weights_hash
    from avsal.evaluation.testing import evaluate, quiet

    fold = getattr(data, "fold", None) if data_name in SIX else None
    parts: list[str | None] = [
        checkpoint,
        data_name.lower(),
        f"fold{fold}" if fold else None,
        options.protocol,
        sound if sound == "swapped" else None,
    ]
    path = options.out / f"{'-'.join(filter(None, parts))}.json"
    if path.is_file() and _finished(path, data, weights_hash(module), options.protocol, sound):
        say(f"{path}: done before")
        return path
    swapped = ", sound swapped" if sound != "own" else ""
    say(f"{checkpoint} on {data_name}{f' fold {fold}' if fold else ''}{swapped} …")
    with quiet():
        results = evaluate(
            module, data, checkpoint=checkpoint, sha256=sha256, out=path, protocol=options.protocol, sound=sound,
            trainer=options.trainer,
        )  # fmt: skip
    if results is None:
        return None
    for failure in results.failed[:5]:
        say(f"  left out: {failure.error}")
    say("  " + ", ".join(f"{name} {value:.4f}" for name, value in results.metrics.items()) + f" ({path})")
    return path


def _finished(path: Path, data: SaliencyDataModule, weights: str, protocol: str, sound: str) -> bool:
    """Return whether a file holds the whole results of these weights on this data under this protocol."""
    from avsal.evaluation.provenance import data_of
    from avsal.evaluation.results import Results

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
        and known.protocol.get("protocol") in (protocol, {"full": "common"}.get(protocol))
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


def first_process() -> bool:
    """Return whether this is the process that reports."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def say(words: str) -> None:
    """Print a line on stderr, from the first process only."""
    if first_process():
        print(words, file=sys.stderr, flush=True)
