"""How a network of a paper's table comes to its weights: from the registry, or by a training, and what that takes.

A training is the paper's recipe in `examples/` with what the row changes: `avsal fit` runs it. `--fast` runs one step
of a small network of the same form instead, in this process.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import WeightsError
from avsal.report.papers import SYSTEMS, System
from avsal.report.published import SETS
from avsal.report.testing import Options

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule
    from avsal.report.papers import PaperTable

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: Folders below --data in which a set may lie by itself, by the class of its DataModule.
FOLDERS = {
    "DHF1KDataModule": ("DHF1K", "dhf1k"),
    "SALICONDataModule": ("SALICON", "salicon"),
    "MIT1003DataModule": ("MIT1003", "mit1003"),
    "Ego4DGazeDataModule": ("Ego4D", "ego4d"),
    "AriaGazeDataModule": ("Aria", "aria"),
}
#: The smallest size of an encoder whose segments do not fit smaller frames.
FULL_SIZE = {"morphmlps": [224, 224]}


@dataclass(frozen=True, eq=False)
class Training:
    """One training of one system.

    Attributes:
        system: whose.
        fold: of the system and its data; None without folds.
        options: of the command.
    """

    system: System
    fold: int | None
    options: Options

    @property
    def folder(self) -> Path:
        """Where it logs and keeps its checkpoints."""
        return self.options.out / "training" / self.system.checkpoint(self.fold)

    @property
    def recipe(self) -> dict[str, Any]:
        """The configuration files, merged: a data set of another class replaces the one before it."""
        return _merged(self.system.recipe)

    def best(self) -> Path | None:
        """Return the best checkpoint of a finished training."""
        if not (self.folder / "finished").is_file():
            return None
        found = sorted(self.folder.rglob("best-*.ckpt"), key=lambda p: p.stat().st_mtime)
        return found[-1] if found else None

    def model_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments that the recipe's files do not have."""
        system, listed = self.system, self.recipe["model"]["init_args"]
        found = {k: v for k, v in system.arguments.items() if k not in listed or listed[k] != v}
        found |= dict.fromkeys(_dropped(system, listed))
        return found | {k: weights_of(name, self.fold, self.options) for k, name in system.weights.items()}

    def data_arguments(self) -> dict[str, Any]:
        """Return the data set's arguments that the recipe's files do not have."""
        cls = self.recipe["data"]["class_path"].rpartition(".")[2]
        found = {
            "root": str(root_of(cls, self.options) or ("<DHF1K>" if cls.startswith("DHF1K") else "<ROOT>"))
        }
        return {**found, **self.system.data, **({"fold": self.fold} if self.system.folds else {})}

    def command(self) -> list[str]:
        """Return the arguments of `avsal` on the command line."""
        options, here = self.options, Path.cwd()
        found = ["fit"]
        for path in (EXAMPLES / file for file in self.system.recipe):
            found += ["-c", str(path.relative_to(here) if path.is_relative_to(here) else path)]
        found += [f"--data.init_args.{k}={_argument(v)}" for k, v in self.data_arguments().items()]
        found += [f"--model.init_args.{k}={_argument(v)}" for k, v in self.model_arguments().items()]
        found.append(f"--trainer.default_root_dir={self.folder}")
        for name in ("accelerator", "devices", "strategy", "num_nodes"):
            value = str(getattr(options, name))
            found += [f"--trainer.{name}={value}"] if value not in ("auto", "1") else []
        return found

    def data_module(self) -> Any:
        """Return its data set."""
        from avsal import data as rooms

        chosen = self.recipe["data"]
        arguments = {**chosen.get("init_args", {}), **self.data_arguments()}
        if self.options.fast:
            arguments |= {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "limit": 2}
        return getattr(rooms, chosen["class_path"].rpartition(".")[2])(**arguments)

    def run(self) -> None:
        """Train; an interrupted training goes on from its last checkpoint.

        Raises:
            WeightsError: it failed, or left no checkpoint.
        """
        if self.options.fast:
            self._step()
        else:
            command = self.command() + (["--ckpt_path=last"] if list(self.folder.rglob("last.ckpt")) else [])
            print("avsal " + shlex.join(command), file=sys.stderr, flush=True)
            done = subprocess.run([sys.executable, "-m", "avsal.cli", *command], check=False)
            if done.returncode:
                raise WeightsError(
                    f"the training stopped with status {done.returncode}: avsal {shlex.join(command)}"
                )
        (self.folder / "finished").touch()
        if self.best() is None:
            raise WeightsError(f"{self.folder}: the training left no best-*.ckpt.")

    def small(self) -> SaliencyModule:
        """Return the network of `--fast`: the row's, of small size, from random weights."""
        from avsal.models import create_model, model_class

        arguments = {**self.recipe["model"]["init_args"], **self.system.arguments}
        cls = model_class(self.system.model)
        arguments |= cls.small
        size = self.system.arguments.get("size", [1, 1])
        if size[0] != size[1]:
            arguments["size"] = [cls.small["size"][0], 2 * cls.small["size"][0]]
        arguments["size"] = FULL_SIZE.get(str(arguments.get("encoder")), arguments["size"])
        arguments |= {name: None for name in cls.start_arguments if name in arguments}
        for argument, name in self.system.weights.items():
            if name in SYSTEMS:
                arguments[argument] = weights_of(name, self.fold, self.options)
        return create_model(self.system.model, **arguments)

    def _step(self) -> None:
        """One step on two clips."""
        import lightning as L
        import torch

        from avsal.evaluation.testing import quiet

        L.seed_everything(0, verbose=False)
        module, data = self.small(), self.data_module()
        data.use_spec(module.spec)
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1.0  # one batch is all that they see
        with quiet():
            runner = L.Trainer(
                max_steps=1, accelerator=self.options.accelerator, devices=1, logger=False, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
            )  # fmt: skip
            runner.fit(module, datamodule=data)
            self.folder.mkdir(parents=True, exist_ok=True)
            runner.save_checkpoint(self.folder / "best-step.ckpt", weights_only=True)


def chain(system: System, fold: int | None, options: Options) -> list[Training]:
    """Return the trainings that lead to a system's weights, in order, without those that are not needed any more."""
    if source_of(system, fold, options) is not None:
        return []
    before = [
        t for name in system.weights.values() if name in SYSTEMS for t in chain(SYSTEMS[name], fold, options)
    ]
    own = Training(system, fold if system.folds else None, options)
    return [*before, *([own] if own.best() is None else [])]


def source_of(system: System, fold: int | None, options: Options) -> str | Path | None:
    """Return where a system's weights are: a file that `--weights` gives, or its name in the registry; None else."""
    from avsal.checkpoints.registry import entries

    name = system.checkpoint(fold)
    for known in (name, system.name):
        if known in options.weights:
            file: Path = options.weights[known]
            return file
    return name if name in entries() and not options.fast else None


def weights_of(name: str, fold: int | None, options: Options) -> str:
    """Return the weights that a training starts from: a file, a registry name, or a placeholder."""
    if name not in SYSTEMS:
        return str(options.weights.get(name, name))
    system = SYSTEMS[name]
    best = Training(system, fold if system.folds else None, options).best()
    return str(source_of(system, fold, options) or best or f"<best .ckpt of {system.checkpoint(fold)}>")


def missing_weights(trainings: Iterable[Training]) -> list[str]:
    """Return a sentence for each file that only the user can provide, of what these trainings start from."""
    names = dict.fromkeys(
        name for t in trainings for name in needed_weights(t.system) if name not in t.options.weights
    )
    reasons = {name: _by_hand(name) for name in names if name not in SYSTEMS}
    return [
        f"{name} {why}: give the file with --weights {name}=FILE." for name, why in reasons.items() if why
    ]


def _by_hand(name: str) -> str:
    """Return why weights are not fetched by themselves; "" if they are, or lie in the cache."""
    from avsal.checkpoints.fetch import is_cached
    from avsal.checkpoints.registry import PageOrigin, entries

    entry = entries().get(name)
    if entry is None:
        return "is not in the registry"
    pages = [source for source in entry.sources if isinstance(source, PageOrigin)]
    if len(pages) < len(entry.sources) or is_cached(entry):
        return ""
    return f"is not fetched by itself ({', '.join(f'{page.url}, {page.how}' for page in pages)})"


def needed_weights(system: System) -> list[str]:
    """Return the names of all weights that a system's training starts from, of systems and of the registry."""
    from avsal.models import model_class

    start = model_class(system.model).start_arguments
    listed: Mapping[str, Any] = _merged(system.recipe)["model"]["init_args"]
    dropped = {*_dropped(system, listed), *system.weights}
    own = [v for k, v in listed.items() if k in start and v and k not in dropped]
    return [*own, *system.weights.values()]


def _dropped(system: System, listed: Mapping[str, Any]) -> list[str]:
    """Return the weights of a recipe that the row's network has no place for: a row that names any names all."""
    named = any(name.endswith("_weights") for name in system.weights)
    silent = system.modality == "V" and listed.get("audio_backbone")
    given = [k for k in listed if k.endswith("_weights") and k not in ("loss_weights", *system.weights)]
    return [*(["audio_backbone"] if silent else []), *(given if named else [])]


def root_of(cls: str, options: Options) -> Path | None:
    """Return the folder of a data set: --dhf1k, a folder of its name below --data, or --data itself."""
    if cls == "DHF1KDataModule" and options.dhf1k is not None:
        return options.dhf1k
    if options.data is None:
        return None
    own = (options.data / folder for folder in FOLDERS.get(cls, ()))
    found = next((path for path in own if path.is_dir()), None)
    return found or (None if cls == "DHF1KDataModule" else options.data)


@cache
def _merged(files: tuple[str, ...]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for file in files:
        for part, content in yaml.safe_load((EXAMPLES / file).read_text(encoding="utf-8")).items():
            old = found.get(part)
            if isinstance(old, dict) and old.get("class_path") == content.get("class_path"):
                content = {**old, **content}
                if "init_args" in old:
                    content["init_args"] = {**old["init_args"], **content["init_args"]}
            found[part] = content
    return found


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


# -- what it takes -----------------------------------------------------------------------------------------------

#: The GPU of the estimates, and what it is taken to do: about a third of its peak in float32.
GPU, FLOPS = "RTX 3090", 12e12
#: Segments of 90 frames and videos to train on, and frames to test, of one fold; clips or images of the other sets.
SIZES = {
    "DIEM": (2843, 64, 27414), "Coutrot_db1": (234, 40, 8397), "Coutrot_db2": (156, 10, 5661), "AVAD": (96, 30, 3154),
    "ETMD_av": (559, 8, 20556), "SumMe": (994, 17, 35273), "DHF1K": (4834, 600, 0), "SALICON": (10000, 10000, 5000),
    "MIT1003": (812, 812, 101), "Ego4D": (15310, 15310, 5202), "Aria": (10456, 10456, 2901),
}  # fmt: skip
_FOLDERS = {SETS.get(folder, folder): folder for folder in SIZES}


def training_sets(system: System) -> tuple[str, ...]:
    """Return the folders of the sets that a system learns from."""
    from avsal.data.sets.audiovisual import SIX_SETS

    cls = _merged(system.recipe)["data"]["class_path"].rpartition(".")[2]
    if cls == "AVSaliencyDataModule":
        return tuple(system.data.get("sets", SIX_SETS))
    return (cls.removesuffix("DataModule").removesuffix("Gaze"),)


def training_hours(system: System) -> float:
    """Return an estimate of one training's hours on one `GPU`: forward and backward passes count three forward ones."""
    recipe = _merged(system.recipe)
    by_video = recipe["data"].get("init_args", {}).get("segment", 90) is None
    clips = sum(SIZES[name][by_video] for name in training_sets(system))
    return 3 * clips * recipe["trainer"]["max_epochs"] * system.gmacs * 2e9 / FLOPS / 3600


def needs(table: PaperTable, options: Options) -> list[str]:
    """Return what a table needs, a sentence each: data, weights, trainings, hours."""
    folds = (1,) if table.form == "retention" else (1, 2, 3)  # a picture needs one network
    trainings: dict[Path, Training] = {}
    ready: dict[str, None] = {}
    for system in (SYSTEMS[name] for name in table.systems):
        for fold in folds if system.folds else (None,):
            found = chain(system, fold, options)
            trainings |= {t.folder: t for t in found if t.folder not in trainings}
            if not found:
                ready[system.checkpoint(fold)] = None
    starts: dict[str, None] = {}
    for training in trainings.values():
        for name in needed_weights(training.system):
            if name not in SYSTEMS:
                starts[f"{name} (--weights {name}=FILE)" if _by_hand(name) else name] = None
            elif source_of(SYSTEMS[name], training.fold, options) is not None:
                starts[SYSTEMS[name].checkpoint(training.fold)] = None
    tested = dict.fromkeys((row.systems[data], data) for row in table.rows for data in row.systems)
    trained = dict.fromkeys(SETS.get(s, s) for t in trainings.values() for s in training_sets(t.system))
    hours = sum(training_hours(t.system) for t in trainings.values())
    tests = sum(
        SIZES[_FOLDERS[data]][2]
        * SYSTEMS[name].gmacs
        * 2e9
        / FLOPS
        / 3600
        * (len(folds) if SYSTEMS[name].folds else 1)
        for name, data in tested
    )
    lines = [
        f"data: test on {', '.join(dict.fromkeys(data for _, data in tested))}"
        + (f"; train on {', '.join(trained)}" if trained else "")
    ]
    lines += [f"weights: {', '.join(ready)}"] if ready else []
    if trainings:
        count = f"{len(trainings)} training{'s' if len(trainings) > 1 else ''}"
        lines.append(count + (f" from {', '.join(starts)}" if starts else ""))
    digits = 0 if hours + tests >= 10 else 1
    lines.append(
        f"estimated, not measured: {hours:.{digits}f} hours of training and {tests:.{digits}f} of tests on one {GPU}"
    )
    return lines
