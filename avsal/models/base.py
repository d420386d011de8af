"""What every model of the zoo is: a plain network, and the LightningModule beside it.

A new paper subclasses `SaliencyNetwork` (tensors in, tensors out) and `SaliencyModule` (loss, recipe) in
one file of this folder, and names its module class `MODULE` there.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

import avsal
from avsal.checkpoints.file import FORMAT_VERSION, plain, read_safetensors, read_state_dict
from avsal.errors import ConfigError, WeightsError
from avsal.losses import correlation, kl_divergence, similarity
from avsal.nn.s3d import S3DFeatures, pad_to_stride
from avsal.nn.s3d_windows import S3DWindows
from avsal.nn.state import check_finite, entries_of, make_room, random_layers
from avsal.types import Activation, Batch, ClipSpec, Coverage, SaliencyOutput

if TYPE_CHECKING:
    from avsal.inference.video import VideoPrediction
    from avsal.metrics.resize import Pipeline
    from avsal.metrics.saliency import SaliencyMetrics


class WindowRunner:
    """Runs a network on successive windows of one video; networks that can reuse work subclass it.

    One runner serves one video, in order; results equal `network.core` on each window, unless the network
    `follows_film`.

    Attributes:
        delay: seconds beyond a window's target frame that `watch` sees before the window is run.
    """

    delay: float = 0.0

    def __init__(self, network: SaliencyNetwork) -> None:
        self.network = network

    def begin(self, sound: Any) -> None:
        """Take the film's sound before its first frame.

        Args:
            sound: an `avsal.io.audio.AudioStream` at the rate of the network's `AudioSpec`, None without such a spec.
        """

    def watch(self, index: int, time: float, image: Any) -> None:
        """See a frame as decoded, in order, each once.

        Args:
            index: 0-based index of the frame, as in `frame_ids`.
            time: its time in seconds.
            image: (H, W, 3) uint8 RGB, an array of NumPy; not to be changed.
        """

    def end(self) -> None:
        """Learn that no frame follows."""

    def __call__(self, video: Tensor, frame_ids: Tensor, audio_input: Tensor | None) -> SaliencyOutput:
        """Return the output for a batch of windows.

        Args:
            video: (B, 3, T, H, W) float32.
            frame_ids: (B, T) int64; equal ids mean equal frames, ids grow with time.
            audio_input: what `network.frontend` returned for these windows, or None.
        """
        return self.network.core(video, audio_input)


class SaliencyNetwork(nn.Module):
    """A network from a clip (and its sound) to saliency maps. It reads no files and logs nothing.

    Attributes:
        spec: the clip that the network expects.
        activation: how `logits` become a map.
        temperature: logits are divided by it before the activation.
        frozen: the parts that training leaves as they were loaded (see `avsal.nn.state.freeze`).
        follows_film: whether `predict_video` gives more than `core` on every window, because the window runner
            watches the whole film; there is no plain sliding window then.
    """

    spec: ClipSpec
    activation: Activation = "sigmoid"
    temperature: float = 1.0
    frozen: Sequence[nn.Module] = ()
    follows_film: ClassVar[bool] = False

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return the audio encoder's input, computed on the waveform's device.

        Args:
            waveform: (B, S) float32 in [-1, 1], zero-padded at the end.
            audio_length: (B,) samples that belong to each clip; None means all S.
            has_audio: (B,) bool; False applies the paper's rule for missing sound. None means all True.
            frame_times: (B, T) seconds of the clip's frames from the first sample.

        Returns:
            The audio input of `core`, or None for a network that does not hear.
        """
        return None

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return the maps for normalised clips.

        Args:
            video: (B, 3, T, H, W) float32.
            audio_input: what `frontend` returns; None for visual-only networks.
        """
        raise ConfigError(f"{type(self).__name__} defines no core().")

    def forward(
        self,
        video: Tensor,
        audio: Tensor | None = None,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> SaliencyOutput:
        """Return `core(video, frontend(audio, …))`; without `audio` the rule for missing sound applies."""
        return self.core(video, self.audio_input(video, audio, audio_length, has_audio, frame_times))

    def audio_input(
        self,
        video: Tensor,
        audio: Tensor | None = None,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return `frontend`'s result, with missing sound where `audio` is None."""
        if self.spec.audio is None:
            return None
        if audio is None:
            audio = video.new_zeros((len(video), 1), dtype=torch.float32)
            has_audio = torch.zeros(len(video), dtype=torch.bool, device=video.device)
            audio_length = torch.zeros(len(video), dtype=torch.int64, device=video.device)
            frame_times = None
        return self.frontend(audio, audio_length, has_audio, frame_times)

    def window_runner(self) -> WindowRunner:
        """Return a runner for one video's windows (exact reuse lives there)."""
        return WindowRunner(self)

    def output(self, logits: Tensor, aux: Mapping[str, Tensor] | None = None) -> SaliencyOutput:
        """Wrap `logits` (B, T_out, h, w) with this network's activation and temperature."""
        return SaliencyOutput(logits, self.activation, self.temperature, dict(aux or {}))


class S3DNetwork(SaliencyNetwork):
    """A network that decodes the four maps of S3D; reuse between windows comes with it.

    A subclass sets `encoder` and defines `decode`, and `heads` where layers without temporal extent follow the maps.
    """

    encoder: S3DFeatures

    @property
    def heads(self) -> Sequence[nn.Module]:
        """For each of the four maps, a module from (B, C, T, h, w) to (B, C', T, h', w') that works frame by frame."""
        return [nn.Identity()] * 4

    def decode(
        self, stages: list[Tensor], audio_input: Tensor | None, size: tuple[int, int]
    ) -> SaliencyOutput:
        """Return the output for what the heads give.

        Args:
            stages: the four maps (B, C_i, T_i, h_i, w_i), shallow to deep.
            audio_input: as in `core`.
            size: (height, width) of the clip, before it was padded to S3D's stride.
        """
        raise ConfigError(f"{type(self).__name__} defines no decode().")

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return the maps for normalised clips (see `decode` for the extras).

        Args:
            video: (B, 3, frames, H, W) normalised; padded with zeros to multiples of 32 inside.
            audio_input: what `frontend` returns; None is silence.

        Raises:
            ConfigError: the clip has another number of frames.
        """
        return self._run(video, audio_input, self._stages)

    def _stages(self, video: Tensor) -> list[Tensor]:
        return [head(maps) for head, maps in zip(self.heads, self.encoder(video), strict=True)]

    def _run(
        self, video: Tensor, audio_input: Tensor | None, stages: Callable[[Tensor], list[Tensor]]
    ) -> SaliencyOutput:
        if video.shape[2] != self.spec.frames:
            raise ConfigError(f"The clip has {video.shape[2]} frames; this network takes {self.spec.frames}.")
        return self.decode(stages(pad_to_stride(video)), audio_input, (video.shape[-2], video.shape[-1]))

    def window_runner(self) -> WindowRunner:
        """Return a runner that takes slices of S3D and of the heads over from earlier windows of the video."""
        return S3DRunner(self)


class S3DRunner(WindowRunner):
    """Runs an `S3DNetwork` over a video's windows, with exact reuse of S3D and the heads between them."""

    network: S3DNetwork

    def __init__(self, network: S3DNetwork) -> None:
        super().__init__(network)
        self.windows = S3DWindows(network.encoder, network.heads)

    def __call__(self, video: Tensor, frame_ids: Tensor, audio_input: Tensor | None) -> SaliencyOutput:
        """Return what `network.core` returns, in eval mode from reused slices."""
        if self.network.training or torch.is_grad_enabled():
            return self.network.core(video, audio_input)
        return self.network._run(video, audio_input, lambda padded: self.windows(padded, frame_ids))


class SaliencyModule(L.LightningModule):
    """Loss, optimiser recipe and metrics around a `SaliencyNetwork`.

    A subclass sets `network_class` and `self.network`, calls `save_hyperparameters(logger=False)`, and defines
    `loss_terms` and `configure_optimizers`. Its constructor lists the arguments of training and passes `**network` on
    to the network, whose arguments are the paper's ablation switches; together with the state dict they rebuild the
    module.

    Attributes:
        network: the network; its `spec` says what the data side must deliver.
        val_metrics: names of the metrics computed at every validation.
    """

    network: SaliencyNetwork
    val_metrics: ClassVar[tuple[str, ...]] = ("cc", "nss", "auc_judd", "sim")
    test_metrics: ClassVar[tuple[str, ...]] = ("cc", "nss", "auc_judd", "sauc", "sim")
    #: The validation metric that picks the best checkpoint (larger is better); "epoch" picks the last one.
    monitor: str = "val/cc"
    #: Citation key or reference of the paper, for model cards.
    paper: ClassVar[str] = ""
    #: The class that the constructor's `**network` goes to; None where the constructor lists every argument itself.
    network_class: ClassVar[type[SaliencyNetwork] | None] = None
    #: Arguments of the network that change neither its maps nor its cost, only how it learns.
    training_arguments: ClassVar[tuple[str, ...]] = ()
    #: Arguments of the network that a visual-only one has no use for, the switch itself included.
    sound_arguments: ClassVar[tuple[str, ...]] = ("audiovisual",)
    #: Arguments that name the weights a training starts from. Checkpoints store None for them: what came of those
    #: weights is in the file, and training it further must not load the old start over it.
    start_arguments: ClassVar[tuple[str, ...]] = ("init_from", "backbone", "audio_backbone")
    #: Constructor arguments beside the network's that change what a test computes.
    protocol_arguments: ClassVar[tuple[str, ...]] = ()
    #: Arguments of a small network of the same form, which runs in seconds.
    small: ClassVar[Mapping[str, Any]] = {}
    #: Rows of the paper's tables -> their constructor arguments, and a remark on them (`avsal info --variants`).
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    variants_note: ClassVar[str] = ""
    #: Name, sha256 of the file, and hash of the entries that the module was filled with.
    weights_from: tuple[str, str | None, str] | None = None
    #: How validation and test score: "full", by avsal's conventions; "paper", as the authors did (`avsal.evaluation`).
    protocol: Literal["paper", "full"] = "full"
    #: The post-processing of the authors' test script (see `avsal.metrics.postprocess`), None for none ...
    postprocess: ClassVar[Pipeline | None] = None
    #: ... and which form of the output it expects: the activated maps, or the logarithm of the density.
    postprocess_input: ClassVar[Literal["saliency", "log_density"]] = "saliency"
    #: Part of the network that may be frozen -> the argument that names its weights, and the one that trains it.
    weights_of: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._metrics: dict[str, SaliencyMetrics] = {}

    @property
    def spec(self) -> ClipSpec:
        """The clip that the network takes."""
        return self.network.spec

    # -- facts about the model -----------------------------------------------------------------------

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Return the constructor's arguments and their defaults, the network's first.

        An argument without a default has `inspect.Parameter.empty`.
        """
        found: dict[str, Any] = {}
        for part in (cls.network_class, cls):
            if part is not None:
                for name, parameter in inspect.signature(part.__init__).parameters.items():
                    if name != "self" and parameter.kind not in (
                        parameter.VAR_POSITIONAL,
                        parameter.VAR_KEYWORD,
                    ):
                        found[name] = parameter.default
        return found

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Save the constructor's arguments as Lightning does, and the defaults of the network's that were not given."""
        frame = frame or inspect.currentframe().f_back  # type: ignore[union-attr]
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        if not args and self.network_class is not None:
            self.hparams.update({k: v for k, v in self.arguments().items() if k not in self.hparams})
            self._hparams_initial = copy.deepcopy(self._hparams)

    @classmethod
    def architecture(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some constructor arguments that define the network, without those of its training."""
        known = (
            set(inspect.signature(cls.network_class.__init__).parameters)
            if cls.network_class
            else {*arguments}
        )
        left_out = {*cls.training_arguments, *cls.start_arguments}
        return {k: v for k, v in arguments.items() if k in known and k not in left_out}

    @classmethod
    def visual_part(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of `architecture(arguments)` that an audio-visual network and its visual-only twin share."""
        return {k: v for k, v in cls.architecture(arguments).items() if k not in cls.sound_arguments}

    @classmethod
    def modality(cls, arguments: Mapping[str, Any]) -> Literal["AV", "V", "none"]:
        """Return whether the module with these arguments sees and hears ("AV") or sees only ("V").

        "none" is for maps that do not depend on the video. Arguments that are not given have their defaults.
        """
        return "AV" if {**cls.arguments(), **arguments}.get("audiovisual") else "V"

    # -- network -------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> SaliencyOutput:
        """Return the network's output for a batch of clips."""
        return self.network(
            batch["video"],
            batch.get("audio"),
            batch.get("audio_length"),
            batch.get("has_audio"),
            batch.get("frame_times"),
        )

    @classmethod
    def from_authors(cls, state_dict: Mapping[str, Tensor], **options: Any) -> Self:
        """Build the module from the authors' state dict (see `avsal.zoo.convert`)."""
        raise WeightsError(f"The authors of {cls.__name__}'s paper published no weights to convert.")

    # -- training ------------------------------------------------------------------------------------

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar "loss" and its named parts; frames without ground truth do not count."""
        raise ConfigError(f"{type(self).__name__} defines no loss.")

    def setup(self, stage: str) -> None:
        """Load the weights named by the argument `init_from` before training starts."""
        source = self.hparams.get("init_from") if stage == "fit" else None
        if source:
            self.initialise_from(str(source))
        if stage == "fit" and self._trainer is None:
            self.refuse_random_frozen()

    def on_fit_start(self) -> None:
        """Refuse to train behind random frozen parts, once a checkpoint to resume from is loaded too."""
        self.refuse_random_frozen()

    def refuse_random_frozen(self) -> None:
        """Check that every frozen part was given weights.

        Raises:
            ConfigError: names the parts that hold random weights, unless `allow_random_frozen` asks for them.
        """
        if self.hparams.get("allow_random_frozen"):
            return
        names = {part: name for name, part in self.network.named_modules()}
        found = []
        for part in self.network.frozen:
            if random := random_layers(part):
                weights, option = self.weights_of.get(names[part], ("init_from", ""))
                where = ", ".join(random[:3]) + (" …" if len(random) > 3 else "")
                found.append(
                    f"{names[part]} ({where}): give {weights}" + (f", or {option}: false" if option else "")
                )
        if found:
            raise ConfigError(
                f"{type(self).__name__.removesuffix('Module')} would train behind frozen parts of random weights: "
                + "; ".join(found)
                + ". init_from, a checkpoint that holds them, will do too; allow_random_frozen: true trains anyway."
            )

    @staticmethod
    def read_weights(source: str) -> dict[str, Tensor]:
        """Return the entries of a registry name, a file or a Hub repository; authors' files keep their names.

        Raises:
            WeightsError: it cannot be had or read.
        """
        from avsal.zoo import load_state

        path = Path(source).expanduser()
        if path.suffix in (".pth", ".pt", ".pyth", ".tar") and path.is_file():
            return read_state_dict(path)
        if path.suffix == ".safetensors" and path.is_file():
            state, config = read_safetensors(path)
            if config is None:
                return state  # another library's file, such as timm's
        return load_state(source)

    def initialise_from(self, source: str) -> None:
        """Copy every parameter of another checkpoint that has the same name and shape here.

        Args:
            source: a registry name, a file or a Hub repository, as `from_pretrained` takes them.

        Raises:
            WeightsError: nothing in it fits, or it holds NaN or infinite values.
        """
        theirs = self.read_weights(source)
        make_room(self, theirs)
        own = self.state_dict()
        fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
        if not fitting:
            raise WeightsError(
                f"{source}: no entry fits {type(self).__name__}; it is another model's checkpoint."
            )
        self.load_state_dict(fitting, strict=False)
        check_finite(self, source)
        fresh = sorted({".".join(k.split(".")[:3]) for k in own if k not in fitting})
        left = sorted({".".join(k.split(".")[:3]) for k in theirs if k not in fitting})
        rank_zero_info(
            f"Initialised {len(fitting)} of {len(own)} entries from {source}"
            + (f"; newly initialised: {', '.join(fresh)}" if fresh else "")
            + (f"; not used: {', '.join(left)}" if left else "")
        )

    def load_backbone(self, part: nn.Module, source: str | None) -> None:
        """Load published weights into a part of the network; nothing happens without a source.

        Args:
            part: a backbone with a method `load_published(state_dict)`.
            source: see `backbone_weights`.

        Raises:
            WeightsError: the weights cannot be had, or do not fit.
        """
        state = self.backbone_weights(part, source)
        if state is not None:
            part.load_published(entries_of(part, state))  # type: ignore[operator]

    def backbone_weights(self, part: nn.Module, source: str | None) -> dict[str, Tensor] | None:
        """Return published weights for a part of the network; None without a source.

        SynthAV trains from random weights where the published ones cannot be had, with a warning: it is the
        data set that runs everywhere. A part that would be frozen is then trained. On any other data that is an error.

        Args:
            part: of the network.
            source: a registry name such as "s3d-kinetics", a file, or a whole checkpoint of ours that has this part.

        Raises:
            WeightsError: the weights cannot be had.
        """
        if not source:
            return None
        try:
            return self.read_weights(source)
        except WeightsError as error:
            data = getattr(self._trainer, "datamodule", None)
            if getattr(data, "name", None) != "synthav":
                raise
            trained = ""
            if part in self.network.frozen:
                self.network.frozen = [other for other in self.network.frozen if other is not part]
                part.requires_grad_(True)
                trained = ", and is trained with the network"
            rank_zero_warn(f"{type(part).__name__} starts from random weights{trained}: {error}")
            return None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch and log its parts."""
        terms = self.loss_terms(self(batch), batch)
        self.log_dict(
            {f"train/{name}": value.detach() for name, value in terms.items()},
            prog_bar=True,
            batch_size=len(batch["video"]),
        )
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Start the validation metrics afresh."""
        self._metric("val").reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> SaliencyOutput:  # type: ignore[override]
        """Add one batch to the validation loss and metrics."""
        output = self(batch)
        terms = self.loss_terms(output, batch)
        self.log("val/loss", terms["loss"], sync_dist=True, batch_size=len(batch["video"]), on_epoch=True)
        self._update("val", output, batch)
        return output

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics as `val/<name>`."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Start the test metrics afresh."""
        self._metric("test").reset()

    def test_step(self, batch: Batch, batch_idx: int) -> SaliencyOutput:  # type: ignore[override]
        """Add one batch to the test metrics."""
        output = self(batch)
        self._update("test", output, batch)
        return output

    def on_test_epoch_end(self) -> None:
        """Log the test metrics as `test/<name>`."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the densities (B, T_out, h, w), each of which sums to 1."""
        return self(batch).density()

    def metrics(self, stage: str) -> SaliencyMetrics:
        """Return the metric collection of "val" or "test" (per-video values, frames used)."""
        return self._metric(stage)

    def _metric(self, stage: str) -> SaliencyMetrics:
        data = getattr(self._trainer, "datamodule", None)
        if stage not in self._metrics:
            self._metrics[stage] = self.build_metrics(stage, data)
        return self._metrics[stage].to(self.device)

    def build_metrics(self, stage: str, data: Any = None) -> SaliencyMetrics:
        """Return the metrics of a stage on a data set under the module's `protocol`; gaze models override it."""
        from avsal.metrics.saliency import SaliencyMetrics

        names = self.val_metrics if stage == "val" else self.test_metrics
        if self.protocol == "paper":
            return SaliencyMetrics(names, conventions="published", postprocess=self.postprocess)
        return SaliencyMetrics(names)

    def _update(self, stage: str, output: SaliencyOutput, batch: Batch) -> None:
        if "density" not in batch and "fixations" not in batch:
            raise ConfigError("The batch has no ground truth; use `predict` for data without annotations.")
        metric = self._metric(stage)
        rules = getattr(metric, "conventions", None)
        theirs = rules is not None and rules.postprocess == self.postprocess and not rules.quantised
        maps = getattr(output, self.postprocess_input if theirs else "saliency")()
        metric.update(
            maps,
            batch.get("density"),
            batch.get("fixations"),
            negatives=batch.get("negatives"),
            video_id=batch["video_id"],
            frame=batch["frame"],
            labelled=batch.get("labelled"),
        )

    def _log_metrics(self, stage: str) -> None:
        values = self._metric(stage).compute()
        self.log_dict(
            {f"{stage}/{name}": float(value) for name, value in values.items()}, prog_bar=stage == "val"
        )

    # -- use -----------------------------------------------------------------------------------------

    def predict_video(
        self,
        path: str | Path,
        *,
        batch_size: int = 8,
        coverage: Coverage = "full",
        reuse: bool = True,
        stride: int = 1,
    ) -> VideoPrediction:
        """Yield a map for every frame of a video, in order and in constant memory.

        Args:
            path: any file that FFmpeg can open.
            batch_size: windows that go through the network at once.
            coverage: "full" gives every frame exactly one map (windows are clamped at both ends);
                "authors" gives exactly the frames, and the padding, that the paper's authors scored.
            reuse: take the exact reuse of work between windows where the network offers it.
            stride: predict for every `stride`-th frame only.

        Yields:
            `FrameMap(index, time, map)`: 0-based frame index, seconds in the container, and a float32
            tensor (h, w) on the CPU: the network's activated map. Anticipation networks yield (T_out, h, w).

        Raises:
            MediaError: the file cannot be read at all.
        """
        from avsal.inference.video import predict_video

        return predict_video(self, path, batch_size=batch_size, coverage=coverage, reuse=reuse, stride=stride)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Load a checkpoint and check that it is of this class (see `avsal.from_pretrained`)."""
        from avsal.zoo import from_pretrained

        module = from_pretrained(source, **options)
        if not isinstance(module, cls):
            raise WeightsError(f"{source} is a {type(module).__name__}, not a {cls.__name__}.")
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write into a Lightning checkpoint what `from_pretrained` needs to rebuild the module."""
        config = config_of(self)
        checkpoint["avsal"] = {
            "model": config["model"],
            "arguments": config["arguments"],
            "version": config["avsal_version"],
        }

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Write `model.safetensors` and `config.json` into a folder that `from_pretrained` takes.

        Options: `dtype`, `repo_id`, `push_to_hub` (see `avsal.zoo.save_pretrained`).
        """
        from avsal.zoo import save_pretrained

        return save_pretrained(self, Path(folder), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the module on the Hugging Face Hub (see `avsal publish`) and return its address."""
        from avsal.zoo import publish

        return publish(self, repo_id, **options)


def map_weights(density: Tensor, labelled: Tensor | None) -> Tensor:
    """Return (B, T_out) float weights: 1 for maps that have ground truth and are not empty, else 0."""
    weights = (density.flatten(-2).amax(-1) > 0).float()
    return weights if labelled is None else weights * labelled.to(weights)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of `values` under `weights` of the same shape; 0 where all weights are 0."""
    return (torch.where(weights > 0, values, 0) * weights).sum() / weights.sum().clamp_min(1.0)


def kl_cc_sim(
    output: SaliencyOutput, batch: Batch, sim_norm: Literal["sum", "minmax"]
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Return the means of KL divergence, CC and SIM over the labelled maps of a batch.

    Args:
        output: of the network, on the grid of the densities.
        batch: with `density` and, where not every map has ground truth, `labelled`.
        sim_norm: how SIM normalises the maps (see `avsal.losses.similarity`).

    Returns:
        `kl`, `cc` and `sim` (CC and SIM positive), the weights (B, T_out) of the maps, and the regularisation of KL.
    """
    maps, density = output.saliency(), batch["density"]
    weights = map_weights(density, batch.get("labelled"))
    # Under mixed precision zeros of the prediction need a regularisation above its rounding.
    eps = 2.0**-52 if output.logits.dtype == torch.float32 else 1e-7
    terms = {
        "kl": weighted_mean(kl_divergence(maps, density, eps=eps), weights),
        "cc": weighted_mean(correlation(maps, density), weights),
        "sim": weighted_mean(similarity(maps, density, norm=sim_norm), weights),
    }
    return terms, weights, eps


def plateau_or_cosine(
    module: SaliencyModule, optimizer: torch.optim.Optimizer, patience: int
) -> dict[str, Any]:
    """Return Lightning's entries for an optimiser and the schedule that `hparams["schedule"]` names.

    Args:
        module: whose training it is.
        optimizer: of the module.
        patience: "plateau" halves the rate after so many epochs without a lower validation loss; "cosine" falls to 0.
    """
    if module.hparams["schedule"] == "cosine":
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, training_steps(module))}
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss", "strict": False},
    }


def stepwise(optimizer: torch.optim.Optimizer, milestones: Sequence[int]) -> dict[str, Any]:
    """Return Lightning's entries for an optimiser whose rate falls to a tenth at each milestone, an epoch."""
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def training_steps(module: SaliencyModule) -> int:
    """Return how many optimiser steps the training takes, at least 1."""
    return max(1, int(module.trainer.estimated_stepping_batches))


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.05) -> dict[str, Any]:
    """Return Lightning's entry for a rate that rises over a share of the steps and falls to 0 as a cosine."""
    warm = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warm) / max(1, steps - warm))))
        return min(1.0, (step + 1) / warm) * falling

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}


def model_name(module: SaliencyModule | type[SaliencyModule]) -> str:
    """Return the name of the model file that defines a module, as `create_model` takes it."""
    cls = module if isinstance(module, type) else type(module)
    return cls.__module__.rsplit(".", 1)[-1]


def config_of(module: SaliencyModule, **extra: Any) -> dict[str, Any]:
    """Return the configuration that rebuilds a module: model name, constructor arguments, avsal's version.

    Args:
        module: the module; its hyper-parameters are its constructor arguments.
        **extra: further entries, such as `source` and `licence`; None values are left out.
    """
    arguments = {k: None if k in module.start_arguments else v for k, v in dict(module.hparams).items()}
    return {
        "format_version": FORMAT_VERSION,
        "model": model_name(module),
        "arguments": plain(arguments),
        "avsal_version": avsal.__version__,
        **{key: value for key, value in extra.items() if value is not None},
    }


def choice(name: str, value: str, allowed: Mapping[str, Any] | tuple[str, ...] | list[str]) -> str:
    """Return `value` if it is allowed, else raise a ConfigError that lists the allowed ones."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known; allowed: {', '.join(map(str, allowed))}.")
    return value


def check_multiple(name: str, value: int, of: int) -> int:
    """Return `value` if it is a positive multiple of `of`, else raise a ConfigError with the nearest two."""
    if value < 1 or value % of:
        lower = max(of, value - value % of)
        raise ConfigError(
            f"{name}={value} must be a multiple of {of}; the nearest are {lower} and {lower + of}."
        )
    return value


def valid_identifier(name: str) -> bool:
    """Return whether a name can be a model file's name."""
    return re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
