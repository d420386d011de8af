"""`lightning fit|validate|test|predict`: LightningCLI with avsal's defaults, checks and short errors."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import lightning as L
import lightning.pytorch.callbacks
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

import avsal
from avsal.checkpoints.fetch import Access
from avsal.checkpoints.file import read_pickle
from avsal.errors import ConfigError, DataError, WeightsError, did_you_mean
from avsal.evaluation.provenance import weights_hash
from avsal.evaluation.testing import evaluate, use_protocol
from avsal.files import cache_folder, explained, writing
from avsal.models.base import SaliencyModule, model_name
from avsal.nn.state import make_room
from avsal.zoo.load import fill, load_checkpoint

#: Everything that may stand at the top of a configuration file.
TOP_KEYS = (
    "seed_everything",
    "trainer",
    "model",
    "data",
    "protocol",
    "ckpt_path",
    "verbose",
    "return_predictions",
    "weights_only",
)
_RUN = "AVSAL_RUN_FOLDER"


_MISSING = {
    "model": "No model is configured: add one with -c, for example -c examples/stavis.yaml.",
    "data": "No data set is configured: add one with a second -c, for example -c examples/data/synthetic.yaml "
    "(generated clips, runs anywhere); `avsal data list` names the others.",
}


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, which plain YAML lets the last one win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(
                    f"{node.start_mark.name}, line {key_node.start_mark.line + 1}: {key!r} is given twice; remove one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def check_config_file(path: Path) -> None:
    """Refuse a configuration file with a wrong, empty or doubled top-level key.

    Raises:
        ConfigError: names the file, the key and the nearest right one.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such configuration file; examples/ holds one per paper."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: a configuration file holds keys such as model: and data:.")
    for key, value in content.items():
        name = str(key).removesuffix("+")
        if name not in TOP_KEYS:
            hint = did_you_mean(name, TOP_KEYS)
            raise ConfigError(f"{path}: unknown key {key!r}.{hint} Known keys: {', '.join(TOP_KEYS)}.")
        if isinstance(value, Mapping) and not value:
            raise ConfigError(f"{path}: {key!r} is empty; give it a value or remove the line.")


class SaveConfig(SaveConfigCallback):
    """Write `config.yaml` beside the logs; a run without a log folder leaves none in the working directory."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save the configuration if the run has a folder."""
        if trainer.log_dir is not None and trainer.logger is not None:
            super().setup(trainer, pl_module, stage)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their final name and rename: a killed run leaves the previous one whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save to `path` in one step."""
        with writing(path) as partial, partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())


class SeedEpochs(Callback):
    """Seed every epoch by its number, so that a resumed run draws what the uninterrupted one drew."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed torch for this epoch and rank."""
        torch.manual_seed((self.seed * 1_000_003 + trainer.current_epoch) * 1009 + trainer.global_rank)


class LogMaps(Callback):
    """Log the first validation clips once per epoch: frame, predicted map, ground truth, side by side."""

    def __init__(self, clips: int = 4) -> None:
        self.clips = clips

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log a picture of the first batch."""
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero or "density" not in batch:
            return
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not isinstance(pl_module, SaliencyModule):
            return
        picture = compare(pl_module, outputs, batch, self.clips)
        for logger in loggers:
            logger.experiment.add_image("val/frame_prediction_truth", picture, trainer.current_epoch)


def compare(module: SaliencyModule, output: Any, batch: Any, clips: int) -> torch.Tensor:
    """Return a (3, rows * h, 3 * w) picture in [0, 1]: frame, prediction and ground truth of a few clips."""
    spec = module.spec
    frames = batch["video"][:clips, :, spec.target_index].float().cpu()
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    frames = ((frames * std + mean) / 255.0).clamp(0, 1)

    def panel(maps: torch.Tensor) -> torch.Tensor:
        maps = maps[:clips, :1].detach().float().cpu()
        maps = torch.nn.functional.interpolate(
            maps, size=frames.shape[-2:], mode="bilinear", align_corners=False
        )
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        return ((maps - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1)

    rows = torch.cat([frames, panel(output.saliency()), panel(batch["density"])], dim=3)
    return torch.cat(list(rows), dim=1)


class AvsalCLI(LightningCLI):
    """LightningCLI whose data side is built from the model's `ClipSpec`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the one argument that is neither the trainer's, the model's nor the data's."""
        parser.add_argument(
            "--protocol",
            type=Literal["paper", "full"] | None,
            default=None,
            help="How validation and test score: paper, the frames, metric code and post-processing of the model's "
            "authors; full, every frame by avsal's conventions. By default as the data set's coverage says, which is "
            "full unless configured.",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave the command line as it is; `after_instantiate_classes` compares the checkpoint with it."""

    def instantiate_classes(self) -> None:
        """Build model, data (from the model's spec) and trainer."""
        super().instantiate_classes()
        if hasattr(self.datamodule, "use_spec"):
            self.datamodule.use_spec(self.model.spec)
        if protocol := self._get(self.config_init, "protocol"):
            use_protocol(self.model, self.datamodule, protocol)

    def after_instantiate_classes(self) -> None:
        """Resolve `last`, refuse a checkpoint of another model or configuration, and fill the model from others."""
        if self.subcommand is None:
            return
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            # A run that ends before its first validation has no value to look at.
            if isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/"):
                callback._check_on_train_epoch_end = callback._check_on_train_epoch_end or False
        config, training = self.config_init[self.subcommand], self.subcommand == "fit"
        source = str(config.get("ckpt_path") or "")
        if source == "last":
            source = config["ckpt_path"] = str(self._last_checkpoint())
        if source in ("best", "hpc", "registry"):
            return
        path = Path(source)
        if path.suffix == ".ckpt" or (path.is_file() and path.suffix != ".safetensors"):
            check_checkpoint(path, self.model, training)
            if self.subcommand == "test":
                StartFrom(self.model, source, training)
                self.model.weights_from = (path.name, *self.model.weights_from[1:])
        elif source:
            config["ckpt_path"] = None  # Lightning opens its own files only
            weights = StartFrom(self.model, source, training)
            self.trainer.callbacks += [weights] if training else []  # type: ignore[attr-defined]
        elif not training and (start := self.model.hparams.get("init_from")):
            start_from(self.model, str(start))

    def _root(self) -> Path:
        root = self._get(self.config_init, "trainer").get("default_root_dir") or "runs"
        return (
            Path(root)
            / f"{model_name(self.model)}-{type(self.datamodule).__name__.removesuffix('DataModule')}"
        )

    def _last_checkpoint(self) -> Path:
        found = [p for p in self._root().glob("version_*/checkpoints/last.ckpt") if p.is_file()]
        if not found:
            raise WeightsError(
                f"--ckpt_path last: there is no last.ckpt below {self._root()}; start without --ckpt_path, "
                "or name the file."
            )
        return max(found, key=lambda p: p.stat().st_mtime)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with logs and checkpoints in one folder per run; configured callbacks stay."""
        config = self._get(self.config_init, "trainer")
        self.run_folder = self._new_run_folder()
        root, name, version = self.run_folder.parent.parent, self.run_folder.parent.name, self.run_folder.name
        if config.get("logger") in (None, True) and self.subcommand == "fit":
            kwargs["logger"] = [
                TensorBoardLogger(root, name=name, version=version),
                CSVLogger(root, name=name, version=version),
            ]
        elif config.get("logger") is None:
            kwargs["logger"] = False
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        config["callbacks"] = [*self._missing_callbacks(config), *(config.get("callbacks") or [])]
        return super().instantiate_trainer(**kwargs)

    def _new_run_folder(self) -> Path:
        if _RUN not in os.environ:  # processes that the trainer launches inherit the first one's choice
            logs = self.subcommand == "fit" and not self._get(self.config_init, "trainer").get("fast_dev_run")
            os.environ[_RUN] = str(
                new_run_folder(self._root(), make=logs and getattr(rank_zero_only, "rank", 0) == 0)
            )
        return Path(os.environ[_RUN])

    def _missing_callbacks(self, config: Mapping[str, Any]) -> list[Callback]:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        wanted: list[Callback] = []
        if self.subcommand == "fit":
            seed = self.config_init[self.subcommand].get("seed_everything")
            wanted += [SeedEpochs(int(seed or 0)), LogMaps()]
            checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in given)
            if (
                not checkpoints
                and config.get("enable_checkpointing") is not False
                and not config.get("fast_dev_run")
            ):
                folder = self.run_folder / "checkpoints"
                best = ModelCheckpoint(
                    folder, filename="best-{epoch:03d}", monitor=self.model.monitor, mode="max",
                    save_on_train_epoch_end=False,
                )  # fmt: skip
                last = ModelCheckpoint(
                    folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
                )
                wanted += [best, last]
        bars = any(isinstance(callback, TQDMProgressBar | RichProgressBar) for callback in given)
        if not bars and config.get("enable_progress_bar") is not False and sys.stderr.isatty():
            wanted.append(RichProgressBar())
        kinds = {type(callback) for callback in given}
        return [callback for callback in wanted if type(callback) not in kinds]

    def _open_data(self) -> None:
        """Find faults of the data set before any folder of the run is made."""
        root = getattr(self.datamodule, "root", None)
        try:
            self.datamodule.prepare_data()
            self.datamodule.setup(self.subcommand)
        except DataError as error:
            if root is not None and Path(root).exists():
                raise
            from avsal.data.sets.egocentric import GazeDataModule

            generated = "synthetic-ego" if isinstance(self.datamodule, GazeDataModule) else "synthetic"
            raise DataError(
                f"{error} Without the data, a further -c examples/data/{generated}.yaml takes generated clips."
            ) from None

    def test(self, model: SaliencyModule, datamodule: L.LightningDataModule, **options: Any) -> None:
        """Run the test and write `results/*.json`, with per-video values and everything needed to trust them.

        A test that was interrupted goes on with the next video.
        """
        if options.get("ckpt_path") in ("best", "hpc", "registry"):
            raise WeightsError(f"--ckpt_path {options['ckpt_path']}: name a checkpoint, a file or a folder.")
        out = Path(os.environ.get("AVSAL_RESULTS", "results"))
        results = evaluate(model, datamodule, out=out, protocol=None, trainer=self.trainer)
        if results is None:
            return
        print("  ".join(f"{name} {value:.4f}" for name, value in results.metrics.items()))
        for failure in results.failed:
            print(f"left out: {failure.error}", file=sys.stderr)
        print(f"results: {results.path}")
        if results.complete:
            results.check_scored()

    before_fit = before_validate = before_test = before_predict = _open_data

    def after_fit(self) -> None:
        """Say where the weights are."""
        if self.trainer.is_global_zero and self.trainer.checkpoint_callback is not None:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            print(f"run: {self.run_folder}" + (f"\nbest checkpoint: {best}" if best else ""))


class StartFrom(Callback):
    """Fill a module from a registry name, a file, a folder or a Hub repository, as `--ckpt_path` names them.

    Args:
        model: the module, whose configuration must be that of the weights.
        source: as `from_pretrained` takes it.
        training: fill it when the training begins, after the weights that its configuration starts from.
    """

    def __init__(self, model: SaliencyModule, source: str, training: bool) -> None:
        self.loaded = load_checkpoint(source, Access(cache_folder()))
        if "backbone" in self.loaded.config:
            raise WeightsError(f"--ckpt_path {source}: this is a backbone; --ckpt_path takes whole models.")
        check_arguments(source, self.loaded.config, model, training=False)
        if training:
            rank_zero_info(f"{source} holds weights only: the training begins at its first step.")
        else:
            self._fill(model)

    def _fill(self, model: SaliencyModule) -> None:
        fill(model, self.loaded)
        model.weights_from = (self.loaded.where, self.loaded.sha256, weights_hash(model))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the module."""
        if isinstance(pl_module, SaliencyModule):
            self._fill(pl_module)


def start_from(model: SaliencyModule, source: str) -> None:
    """Fill a module that is not trained further from what its argument `init_from` names.

    Weights that fit only in part leave the rest random: results then name no checkpoint, but the hash of what ran.
    """
    try:
        loaded = load_checkpoint(source, Access(cache_folder()))
        fill(model, loaded)
    except WeightsError:
        model.initialise_from(source)
    else:
        model.weights_from = (source, loaded.sha256, weights_hash(model))


def new_run_folder(base: Path, *, make: bool = True) -> Path:
    """Return the next free `version_N` below a folder.

    Args:
        base: the folder.
        make: create it, so that runs that start at the same moment get folders of their own.

    Raises:
        OutputError: it cannot be made.
    """
    taken = [int(p.name[8:]) for p in base.glob("version_*") if p.name[8:].isdecimal()]
    for number in itertools.count(max(taken, default=-1) + 1):
        folder = base / f"version_{number}"
        if not make:
            break
        with explained(folder, everything=True):
            base.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
                break
            except (FileExistsError, FileNotFoundError):
                if not base.is_dir() or folder.exists():
                    continue  # another run took the number, or left with an empty folder
                raise
    return folder


def _leave_no_empty_folder() -> None:
    """Remove the run's folder and those above it as far as nothing was written: a refused run leaves no trace."""
    if _RUN in os.environ and "LOCAL_RANK" not in os.environ:
        folder = Path(os.environ.pop(_RUN))
        with contextlib.suppress(OSError):
            for empty in (folder, folder.parent):
                empty.rmdir()
            if folder.parent.parent == Path("runs"):  # another root is the user's own
                folder.parent.parent.rmdir()


def check_checkpoint(path: Path, model: SaliencyModule, training: bool = True) -> None:
    """Refuse a checkpoint that is missing, unreadable, of another model or of another configuration.

    Args:
        path: a file that `lightning fit` wrote.
        model: what the configuration builds.
        training: the training goes on, where the optimiser's settings count too.

    Raises:
        WeightsError: names the file and each argument that differs.
    """
    if not path.is_file():
        raise WeightsError(f"--ckpt_path {path}: there is no such file.")
    try:
        content = read_pickle(path)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise WeightsError(f"{path} cannot be loaded as a checkpoint: {reason}") from None
    written = content.get("avsal") if isinstance(content, dict) else None
    if not isinstance(written, Mapping):
        raise WeightsError(
            f"{path} was not written by `lightning fit` of avsal; `avsal convert` turns authors' files into ours."
        )
    check_arguments(path, written, model, training)
    shapes = {name: tuple(value.shape) for name, value in content.get("state_dict", {}).items()}
    make_room(model, content.get("state_dict", {}))
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if odd := sorted(name for name in {*own, *shapes} if own.get(name) != shapes.get(name)):
        raise WeightsError(
            f"{path} holds other entries than the configured {model_name(model)}: {', '.join(odd[:5])}"
            + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
            + ". Use the configuration it was trained with (config.yaml beside its folder)."
        )


def check_arguments(
    source: Path | str, written: Mapping[str, Any], model: SaliencyModule, training: bool
) -> None:
    """Refuse weights of another model, or of other arguments than configured.

    Args:
        source: the weights, for the message.
        written: their `model` and `arguments`.
        model: what the configuration builds.
        training: compare every argument; else only those that change what the network computes, or how it is scored.

    Raises:
        WeightsError: names each argument that differs.
    """
    if written["model"] != model_name(model):
        raise WeightsError(
            f"{source} is a checkpoint of {written['model']}, but the configuration builds {model_name(model)}; "
            "use that model's configuration."
        )
    defaults = type(model).arguments()
    theirs = {k: v for k, v in defaults.items() if k in model.hparams} | dict(written["arguments"])
    ours = dict(model.hparams)
    compared = {*theirs, *ours} - set(model.start_arguments) if training else deciding_arguments(model)
    different = [
        f"{key}: {theirs.get(key)!r} in the checkpoint, {ours.get(key)!r} configured"
        for key in sorted(compared)
        if _plain(theirs.get(key)) != _plain(ours.get(key))
    ]
    if different:
        raise WeightsError(
            f"{source} belongs to another configuration: "
            + "; ".join(different)
            + ". Use the configuration it was trained with"
            + (", or start a new run from its weights with --model.init_args.init_from." if training else ".")
        )


def deciding_arguments(model: SaliencyModule) -> set[str]:
    """Return the constructor arguments that change what the network computes or how it is scored."""
    network = set(inspect.signature(type(model.network).__init__).parameters) - {"self"}
    return (network - set(model.training_arguments)) | set(model.protocol_arguments)


def _plain(value: Any) -> Any:
    """Return tuples as lists, so that a value read from a file compares with one from Python."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _with_package(before: str, argument: str) -> str:
    """Return a command line's argument; a model or a data set of avsal may be named by its class alone."""
    flag, equals, name = argument.rpartition("=") if argument.startswith("--") else (before, "", argument)
    named = re.fullmatch(r"--(model|data)(\.help|\.class_path)?", flag)
    if named and name.endswith("Module") and hasattr(avsal, name):
        return f"{flag}=avsal.{name}" if equals else f"avsal.{name}"
    return argument


def main(argv: ArgsType = None) -> int:
    """Run `lightning fit|validate|test|predict` with the arguments of `sys.argv`.

    Raises:
        ConfigError: an option or a configuration file is wrong; the message fits on one screen.
    """
    from jsonargparse import ArgumentError

    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for noise in (
        "Experiment logs directory",
        ".*isinstance.treespec, LeafSpec",
        "The dirpath has changed",
        "Be aware",
    ):
        warnings.filterwarnings("ignore", message=noise)
    arguments = sys.argv[1:] = [_with_package(*pair) for pair in itertools.pairwise(["", *sys.argv[1:]])]
    if "LOCAL_RANK" not in os.environ:
        os.environ.pop(_RUN, None)
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag in ("-c", "--config"):
            check_config_file(Path(value))
        elif flag.startswith("--config="):
            check_config_file(Path(flag.partition("=")[2]))
    torch.set_float32_matmul_precision("high")
    # Gradients that die out become denormal numbers, which slow a CPU's convolutions down.
    torch.set_flush_denormal(True)
    strict = {"exit_on_error": False, "allow_abbrev": False}
    try:
        AvsalCLI(
            SaliencyModule,
            L.LightningDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_kwargs={
                **strict,
                **dict.fromkeys(("fit", "validate", "test", "predict"), strict),
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except ArgumentError as error:
        raise ConfigError(_one_line(str(error)) or _shortened(str(error))) from None
    finally:
        _leave_no_empty_folder()
    return 0


def _shortened(message: str, lines: int = 12) -> str:
    """Return the telling last lines of a parser's message."""
    if match := re.search(r"required: \S*?(model|data)\b", message):
        return _MISSING[match[1]]
    kept = [line.rstrip() for line in message.splitlines() if line.strip()]
    return (
        "\n".join(kept[-lines:]) + "\nSee `avsal fit --help` for every option, and examples/ for whole files."
    )


def _one_line(message: str) -> str | None:
    """Return what the parser says about a name or a value in one line, with what was probably meant."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if found := re.search(r"(?:does not accept option '|unrecognized arguments: (?:--)?)([\w.+-]+)", message):
        name = found[1]
        section, _, rest = name.partition(".")
        known = {"": TOP_KEYS, "trainer": _arguments_of(L.Trainer)}.get(section if rest else "", ())
        return f"There is no option {name!r}." + (
            did_you_mean(rest, known).replace("'", f"'{section}.", 1) if rest else did_you_mean(name, known)
        )
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        cls, name = found[1], found[2]
        place = f"{keys[0]}: " if keys else ""
        if "." in name:  # a misspelt class_path or init_args
            name = name.split(".")[0]
            return f"{place}unknown key {name!r}.{did_you_mean(name, ('class_path', 'init_args'))}"
        known = _arguments_of(getattr(import_module(cls.rpartition(".")[0]), cls.rpartition(".")[2]))
        return f"{place}{cls.rpartition('.')[2]} takes no argument {name!r}.{did_you_mean(name, known)}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        hint = did_you_mean(found[2], dir(import_module(found[1])))
        return f"{keys[0] if keys else 'class_path'}: {found[1]} has no {found[2]!r}.{hint}"
    if found := re.search(r"Expected a dot import path string: (\w+)", message):
        hint = did_you_mean(found[1], dir(lightning.pytorch.callbacks) if "callback" in keys[0] else ())
        return f"{keys[0]}: there is no class {found[1]!r}.{hint}"
    if found := re.search(r"Expected a ([^\n]*?)\. Got value: ([^\n]*)", message):
        return f"{' '.join(keys)}: expected {found[1].removeprefix('typing.')}, got {found[2]!r}."
    return None


def _arguments_of(cls: Any) -> list[str]:
    """Return the names of a class's constructor arguments, those that go on to its bases too."""
    found: dict[str, Any] = cls.arguments() if issubclass(cls, SaliencyModule) else {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            found |= dict.fromkeys(inspect.signature(base.__init__).parameters)
    return [name for name in found if name not in ("self", "args", "kwargs", "options", "network")]
