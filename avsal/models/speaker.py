"""Who speaks: a saliency model's maps, brightened where a face speaks.

Around any visual network of the zoo: faces are detected, followed over the film and scored by an active-speaker network
(Light-ASD), and the map is multiplied by 1 + sum of weight(score) * Gaussian(face). The few numbers of that gate are
all that is trained. The scores need the film in order and at its own resolution, so they exist in `predict_video` only;
a clip alone gives the base network's map (docs/models/speaker.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.models.base import SaliencyModule, SaliencyNetwork, WindowRunner
from avsal.nn.facedetector import FaceDetector
from avsal.nn.lightasd import RATE, LightASD
from avsal.nn.speakers import DELAY, SCORES, Face, Sound, SpeakerStream
from avsal.types import AudioSpec, Batch, SaliencyOutput

#: The gate's numbers as they are before training, and the range that each is kept in.
GATE = {
    "strength": (3.0, 0.0, 100.0),  # brightness of the face that speaks most, on top of 1
    "rest": (
        0.3,
        0.0,
        10.0,
    ),  # what a face counts that surely does not speak; the one that speaks most counts 1 + rest
    "slope": (0.7, 0.05, 2.0),  # how much a step of the score counts
    "heard": (0.5, 0.0, 2.0),  # weight of the score with sound, beside the picture's own score of weight 1
    "agrees": (3.0, 0.0, 6.0),  # ... of the mouth's agreement with the sound
    "even": (-2.0, -10.0, 10.0),  # the score at even odds that anyone in view speaks
    "down": (0.1, -0.3, 0.3),  # centre of the Gaussian below the middle of the box, in its heights
    "width": (0.5, 0.15, 1.0),  # standard deviation in widths of the box
    "height": (0.5, 0.15, 1.0),  # ... in its heights
}


class SpeakerGate(nn.Module):
    """The gate: maps times 1 + strength * anyone * sum over faces of share * Gaussian, with the numbers of `GATE`.

    A face's share is (exp(slope * (score - best score in view)) + rest) / (1 + rest), so that faces compete: the one
    that speaks most, or is alone, has the full share. `anyone` is how likely somebody in view speaks, by the picture
    alone or with the sound, whichever is more: false faces and silent listeners brighten little.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, (start, _, _) in GATE.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(start)))

    def value(self, name: str) -> Tensor:
        """Return one number, within its range."""
        return getattr(self, name).clamp(*GATE[name][1:])

    def score(self, scores: Tensor) -> Tensor:
        """Return each face's one score (...) from its three (..., 3), NaN where they are not known."""
        seen, heard, agrees = scores.unbind(-1)
        return seen + self.value("heard") * heard + self.value("agrees") * agrees

    def shares(self, scores: Tensor) -> Tensor:
        """Return each face's share (B, N) in 0..1 from scores (B, N, 3); 0 where they are not known."""
        score, rest = self.score(scores), self.value("rest")
        known = ~score.isnan()
        score = score.masked_fill(~known, -1e4)
        best = score.amax(1, keepdim=True)
        return known * (torch.exp(self.value("slope") * (score - best)) + rest) / (1 + rest)

    def speaks(self, scores: Tensor) -> Tensor:
        """Return how likely each face speaks (...) in 0..1: an uncalibrated figure for people, NaN where not known."""
        return torch.sigmoid(self.score(scores) - self.value("even"))

    def forward(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the factor (B, h, w), at least 1.

        Args:
            scores: (B, N, 3), NaN for a place without a face or a face without a score.
            boxes: (B, N, 4) left, top, right, bottom in 0..1.
            size: (h, w) of the map.
        """
        height, width = size
        if not boxes.shape[1]:
            return boxes.new_ones(len(boxes), height, width)
        boxes = boxes.nan_to_num(0.0)
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-3)
        x = (boxes[..., 0] + boxes[..., 2]) / 2
        y = (boxes[..., 1] + boxes[..., 3]) / 2 + self.value("down") * sides[..., 1]
        across = _bell(width, x, self.value("width") * sides[..., 0])
        along = _bell(height, y, self.value("height") * sides[..., 1])
        bright = torch.einsum("bn,bnh,bnw->bhw", self.shares(scores), along, across)
        # Sound may tell that someone speaks; that it is silent, or another's, does not make a face less looked at.
        seen = torch.sigmoid(scores[..., 0] - self.value("even"))
        anyone = torch.maximum(seen, self.speaks(scores)).nan_to_num(0.0).amax(1)
        return 1 + self.value("strength") * anyone[:, None, None] * bright


def _bell(count: int, middle: Tensor, deviation: Tensor) -> Tensor:
    """Return exp(-(t - middle)^2 / (2 deviation^2)), (..., count), at the middles of `count` pixels of 0..1."""
    places = (torch.arange(count, device=middle.device) + 0.5) / count
    return torch.exp(-0.5 * ((places - middle[..., None]) / deviation[..., None]).square())


class Speaker(SaliencyNetwork):
    """A visual saliency network and the speaker stream beside it; see `SpeakerModule`."""

    activation = "softmax"
    follows_film = True

    def __init__(self, base: SaliencyNetwork, faces: int = 6) -> None:
        super().__init__()
        if base.spec.audio is not None:
            raise ConfigError(
                "The speaker stream has its own ears: its base network must be a visual-only one."
            )
        if isinstance(base.spec.target, tuple):
            raise ConfigError("The speaker stream's base network must give one map for each frame.")
        if faces < 1:
            raise ConfigError(f"faces={faces}: at least one face is scored.")
        self.spec = replace(base.spec, audio=AudioSpec(sample_rate=RATE, after=1.0))
        self.base, self.faces = base, int(faces)
        self.detector, self.asd, self.gate = FaceDetector(), LightASD(), SpeakerGate()

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return the base network's maps as log-densities (B, 1, h, w): a clip alone does not show who speaks."""
        return self.output(self._log_density(self.base.core(video)))

    @staticmethod
    def _log_density(output: SaliencyOutput) -> Tensor:
        return output.density().clamp_min(1e-12).log()

    def gated(self, base: SaliencyOutput, faces: Sequence[Sequence[Face]]) -> SaliencyOutput:
        """Return the gated maps, with the faces in `aux`.

        Args:
            base: the base network's output for B frames.
            faces: each frame's faces.

        Returns:
            `aux` has, padded to the largest number N of faces, `faces` (B, N, 4) in 0..1 and `speaking` (B, N) in 0..1,
            both NaN where there is none (or no score), `tracks` (B, N) int64 with -1, and the gate's inputs: `scores`
            (B, N, 3) and `base` (B, 1, h, w), the base network's log-densities.
        """
        logits = self._log_density(base)
        count = max((len(row) for row in faces), default=0)
        boxes = torch.full((len(faces), count, 4), float("nan"))
        scores = torch.full((len(faces), count, len(SCORES)), float("nan"))
        tracks = torch.full((len(faces), count), -1)
        for i, row in enumerate(faces):
            for j, face in enumerate(row):
                boxes[i, j], scores[i, j], tracks[i, j] = face.box, face.scores, face.track
        boxes, scores = boxes.to(logits.device), scores.to(logits.device)
        factor = self.gate(scores, boxes, (logits.shape[-2], logits.shape[-1]))
        aux = {"faces": boxes, "tracks": tracks, "speaking": self.gate.speaks(scores)}
        aux |= {"scores": scores, "base": logits}
        return self.output(logits + factor.log()[:, None], aux)

    def window_runner(self) -> SpeakerRunner:
        """Return a runner that follows the faces of one film."""
        return SpeakerRunner(self)


class SpeakerRunner(WindowRunner):
    """Runs the base network on its windows and multiplies each map once its faces' scores are known."""

    network: Speaker
    delay = DELAY

    def __init__(self, network: Speaker) -> None:
        super().__init__(network)
        self.base = network.base.window_runner()
        self.stream: SpeakerStream | None = None
        self._times: dict[int, float] = {}

    def begin(self, sound: Sound | None) -> None:
        """Begin the stream (see `WindowRunner`)."""
        self.stream = SpeakerStream(self.network.detector, self.network.asd, sound, self.network.faces)

    def watch(self, index: int, time: float, image: np.ndarray) -> None:
        """Show the stream a frame (see `WindowRunner`)."""
        assert self.stream is not None, "begin() comes before watch()"
        self.stream.push(image, time)
        self._times[index] = time

    def end(self) -> None:
        """Let the stream score what is waiting."""
        assert self.stream is not None, "begin() comes before end()"
        self.stream.finish()

    def __call__(self, video: Tensor, frame_ids: Tensor, audio_input: Tensor | None) -> SaliencyOutput:
        """Return the output for a batch of windows whose frames were watched (see `WindowRunner`)."""
        if self.stream is None:
            raise ConfigError(
                "The speaker stream has seen no film: use predict_video, or core() for single clips."
            )
        targets = frame_ids[:, self.network.spec.target_index].tolist()
        faces = [self.stream.at(self._times[target]) for target in targets]
        for old in [index for index in self._times if index < targets[-1]]:
            del self._times[old]
        return self.network.gated(self.base(video, frame_ids, None), faces)


class SpeakerModule(SaliencyModule):
    """A visual model's maps, brightened where a face speaks: faces, tracks, Light-ASD and a gate of nine numbers.

    The gate is trained by `examples/speaker_gate.py` from stored maps and scores.

    Args:
        base: name of the visual model (`create_model`), such as "isp".
        base_arguments: its constructor arguments.
        faces: so many faces at once are scored, the largest first.
    """

    paper = "Light-ASD: Liao et al., A Light Weight Model for Active Speaker Detection, CVPR 2023"
    protocol_arguments = ("base", "base_arguments")
    network: Speaker

    @classmethod
    def modality(cls, arguments: Mapping[str, Any]) -> Literal["AV"]:
        """Return "AV": the speaker stream hears, whatever its base network."""
        return "AV"

    def __init__(
        self, base: str = "isp", base_arguments: Mapping[str, Any] | None = None, faces: int = 6
    ) -> None:
        super().__init__()
        from avsal.models import create_model

        if base == "speaker":
            raise ConfigError("base='speaker': the speaker stream does not go around itself.")
        self.save_hyperparameters(logger=False)
        self.network = Speaker(create_model(base, **dict(base_arguments or {})).network, faces)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Refuse: clips without their film do not show who speaks.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "The speaker stream follows faces over a whole film and cannot be trained or tested on clips. "
            "Train its gate with examples/speaker_gate.py; score it with `avsal evaluate --checkpoint` or `avsal test`."
        )

    def test_step(self, batch: Batch, batch_idx: int) -> SaliencyOutput:  # type: ignore[override]
        """Refuse, as `loss_terms` does."""
        self.loss_terms(self(batch), batch)
        raise AssertionError


MODULE = SpeakerModule
