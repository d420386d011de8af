"""The trainings that lead to a paper's weights where its authors published none."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avsal.errors import WeightsError
from avsal.report.papers import System


@dataclass(frozen=True)
class Stage:
    """One training of a system.

    Attributes:
        folder: where it logs and keeps its checkpoints.
        command: words after `avsal`; `{previous}` stands for the checkpoint of the stage before.
    """

    folder: Path
    command: tuple[str, ...]

    def best(self) -> Path | None:
        """Return the best checkpoint of a finished training."""
        if not (self.folder / "finished").is_file():
            return None
        found = sorted(self.folder.rglob("best-*.ckpt"), key=lambda p: p.stat().st_mtime)
        return found[-1] if found else None


@dataclass(frozen=True)
class Training:
    """The stages that lead to a checkpoint, in order."""

    stages: tuple[Stage, ...]

    def best(self) -> Path | None:
        """Return the last stage's checkpoint, if it is finished."""
        return self.stages[-1].best()

    def as_text(self) -> str:
        """Return the commands, one on each line."""
        return "\n".join(
            "  avsal "
            + shlex.join(word.format(previous="<best .ckpt of the stage before>") for word in stage.command)
            for stage in self.stages
        )

    def run(self) -> None:
        """Run the stages that are not finished; an interrupted one goes on from its last checkpoint.

        Raises:
            WeightsError: a stage failed, or left no checkpoint.
        """
        previous: Path | None = None
        for stage in self.stages:
            if stage.best() is None:
                resume = ["--ckpt_path=last"] if list(stage.folder.rglob("last.ckpt")) else []
                words = [word.format(previous=previous) for word in stage.command] + resume
                print("avsal " + shlex.join(words), file=sys.stderr, flush=True)
                done = subprocess.run([sys.executable, "-m", "avsal.cli", *words], check=False)
                if done.returncode:
                    raise WeightsError(
                        f"the training stopped with status {done.returncode}: avsal {shlex.join(words)}"
                    )
                (stage.folder / "finished").touch()
            previous = stage.best()
            if previous is None:
                raise WeightsError(f"{stage.folder}: the training left no best-*.ckpt.")


def training(system: System, fold: int | None, args: argparse.Namespace) -> Training:
    """Return the trainings that make a system's weights.

    Args:
        system: of a paper.
        fold: of the last stages; stages on other data than the six sets serve all folds.
        args: `out`, `data`, `dhf1k`, `accelerator`, `devices`, `num_nodes`, `strategy`.
    """
    examples = Path(__file__).resolve().parents[2] / "examples"
    stages: list[Stage] = []
    for number, (model, data) in enumerate(system.training):
        folded = system.folds and "six" in data
        stem = f"{Path(model).stem}-{Path(data).stem}" + (f"-fold{fold}" if folded else "")
        last = number == len(system.training) - 1
        folder = args.out / "training" / (system.checkpoint(fold) if last and folded else stem)
        root = args.dhf1k if "dhf1k" in data else args.data
        words = ["fit", "-c", _shown(examples / model), "-c", _shown(examples / data)]
        words.append(f"--data.init_args.root={root or ('<DHF1K>' if 'dhf1k' in data else '<ROOT>')}")
        words += [f"--data.init_args.fold={fold}"] if folded else []
        if last:
            words += [f"--model.init_args.{k}={_word(v)}" for k, v in system.arguments.items()]
        words += ["--model.init_args.init_from={previous}"] if number else []
        words.append(f"--trainer.default_root_dir={folder}")
        for option in ("accelerator", "devices", "strategy"):
            value = str(getattr(args, option))
            words += [f"--trainer.{option}={value}"] if value not in ("auto", "1") else []
        words += [f"--trainer.num_nodes={args.num_nodes}"] if args.num_nodes != 1 else []
        stages.append(Stage(folder, tuple(words)))
    return Training(tuple(stages))


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
