"""Pre-train the backbones of the small networks on SynthAV: which classes of objects are seen, which one is heard?

    python examples/synthav_backbones.py s3d --out s3d-synthav.safetensors
    python examples/synthav_backbones.py sound --out sound-synthav.safetensors
    python examples/synthav_backbones.py soundnet --epochs 20 --out soundnet-synthav.safetensors
    python examples/synthav_backbones.py csts --out csts-encoders

The papers start from an S3D that names the actions of Kinetics, MSPI from a ResNet-18 that names the sounds of
VGGSound, CSTS from an MViT that names actions. This does the same in small:

- `s3d` learns which of SynthAV's six classes of objects a clip shows (AVRSP's `backbone`, MSPI's `motion_weights`).
  Without it the deepest stage, where sound comes in, hardly knows one class from another.
- `sound` learns which class sounds at a clip's last frame, or none (MSPI's `audio_weights`); off-screen sounds are
  left out.
- `soundnet` learns the same from the waveform, at the clip's middle, where AVRSP's window of the sound has its weight
  (AVRSP's `audio_backbone`).
- `csts` does both with CSTS's two encoders on the head-mounted camera's clips (`init_from`).

The answers are those of `synthav.json` for the training split; the printed share is of the validation split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from avsal import AVRSPModule, CSTSModule
from avsal.data import SynthAVDataModule
from avsal.data.synthetic import SHAPES
from avsal.files import writing
from avsal.models.mspi import MSPI
from avsal.nn.state import entries_of
from avsal.types import ClipSpec
from avsal.zoo import load_state


def shown(clip: dict[str, Any]) -> list[float]:
    """Return 1 for each class that the clip's objects have."""
    return [float(shape in clip["classes"]) for shape in SHAPES]


def sounding(clip: dict[str, Any], frame: int) -> int:
    """Return the class that sounds at a frame, as an index of `SHAPES`; their number for none."""
    for begin, end, source in clip["turns"]:
        if begin <= frame < end:
            return SHAPES.index(clip["classes"][source])
    return len(SHAPES)


class Task(nn.Module):
    """A backbone under training: logits, the answers to them, and what to save."""

    conditions: tuple[str, ...] = ("congruent", "offscreen", "silent")
    spec: ClipSpec

    def terms(self, batch: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and which answers are right (0 or 1), for a batch and its clips."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write what training the network starts from."""
        raise NotImplementedError


def seen_terms(logits: Tensor, clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return loss and right answers for the classes on screen."""
    truth = torch.tensor([shown(clip) for clip in clips])
    return F.binary_cross_entropy_with_logits(logits, truth), (
        (logits > 0) == (truth > 0.5)
    ).float().flatten()


def heard_terms(logits: Tensor, clips: list[dict[str, Any]], frames: list[int]) -> tuple[Tensor, Tensor]:
    """Return loss and right answers for the class that sounds at each clip's frame."""
    truth = torch.tensor([sounding(clip, frame) for clip, frame in zip(clips, frames, strict=True)])
    return F.cross_entropy(logits, truth), (logits.argmax(1) == truth).float()


class S3D(Task):
    """S3D's deepest map names the classes on screen."""

    def __init__(self) -> None:
        super().__init__()
        network = small_mspi()
        self.spec, self.encoder = network.spec, network.motion_encoder
        self.encoder.load_published(entries_of(self.encoder, load_state("caspnet-tiny-synthav")))
        self.head = nn.Linear(self.encoder.channels[3], len(SHAPES))

    def terms(self, batch: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """See `Task.terms`."""
        return seen_terms(self.head(self.encoder(batch["video"])[3].mean((2, 3, 4))), clips)

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save(self.encoder, path)


class Sound(Task):
    """The audio encoder's map names the class that sounds."""

    conditions = ("congruent", "silent")

    def __init__(self) -> None:
        super().__init__()
        self.network = small_mspi()
        self.spec = self.network.spec
        self.encoder: Any = self.network.audio_encoder
        self.head = nn.Linear(self.encoder.channels, len(SHAPES) + 1)

    def terms(self, batch: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """See `Task.terms`."""
        sound = self.network.frontend(batch["audio"], batch["audio_length"], batch["has_audio"])
        assert sound is not None
        logits = self.head(self.encoder(sound).mean((2, 3)))
        return heard_terms(logits, clips, batch["frame"][:, 0].tolist())

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save(self.encoder, path)


class WaveformSound(Task):
    """SoundNet's tokens name the class that sounds."""

    conditions = ("congruent", "silent")

    def __init__(self) -> None:
        super().__init__()
        recipe = yaml.safe_load((Path(__file__).parent / "avrsp-tiny.yaml").read_text(encoding="utf-8"))
        arguments = recipe["model"]["init_args"] | {"freeze_audio_bn": False}
        self.network = AVRSPModule(**arguments).network
        self.spec = self.network.spec
        self.encoder = self.network.soundnet
        self.head = nn.Linear(self.encoder.channels, len(SHAPES) + 1)

    def terms(self, batch: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """See `Task.terms`."""
        sound = self.network.frontend(batch["audio"], batch["audio_length"], batch["has_audio"])
        assert sound is not None
        middle = (batch["frame"][:, 0] - self.spec.frames // 2).clamp_min(0)
        return heard_terms(self.head(self.encoder(sound).mean(2)), clips, middle.tolist())

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save(self.encoder, path)


class CSTSEncoders(Task):
    """CSTS's video tokens name the classes in the world, its last audio tokens the class that sounds now."""

    conditions = ("ego",)

    def __init__(self, start: str | None) -> None:
        super().__init__()
        recipe = yaml.safe_load((Path(__file__).parent / "csts-tiny.yaml").read_text(encoding="utf-8"))
        self.module = CSTSModule(**recipe["model"]["init_args"])
        if start:
            self.module.initialise_from(start)
        self.network = self.module.network
        self.spec = self.network.spec
        width = self.network.classifier.in_channels * 8
        self.seen, self.heard = nn.Linear(width, len(SHAPES)), nn.Linear(width, len(SHAPES) + 1)

    def terms(self, batch: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """See `Task.terms`."""
        tokens = self.network.encode_video(batch["video"])[0]
        seen, right_seen = seen_terms(self.seen(tokens.mean(1)), clips)
        sound = self.network.frontend(
            batch["audio"], batch["audio_length"], batch["has_audio"], batch["frame_times"]
        )
        assert sound is not None
        tokens, grid = self.network.encode_audio(sound)
        last = tokens.unflatten(1, (grid[0], -1))[:, -1].mean(1)
        heard, right_heard = heard_terms(self.heard(last), clips, batch["frame"][:, 0].tolist())
        return seen + heard, torch.cat([right_seen, right_heard])

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        self.module.save_pretrained(path)


def small_mspi() -> MSPI:
    """Return the network of mspi-tiny.yaml without its image stream."""
    return MSPI("s3d", (64, 96), width=0.1875, bn_momentum=0.1, image_stream="none", freeze_audio=False)


def save(part: nn.Module, path: Path) -> None:
    """Write a part's entries in one step."""
    with writing(path) as partial:
        save_file(part.state_dict(), partial)


def main() -> None:
    """Train one backbone and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", choices=("s3d", "sound", "soundnet", "csts"))
    parser.add_argument("--clips", type=int, help="of the set; 480, for csts 360")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--start", help="for csts: a checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True, help="a file; for csts a folder")
    options = parser.parse_args()

    torch.manual_seed(0)
    ego = options.backbone == "csts"
    task: Task = {
        "s3d": S3D,
        "sound": Sound,
        "soundnet": WaveformSound,
        "csts": lambda: CSTSEncoders(options.start),
    }[options.backbone]()
    data = SynthAVDataModule(
        clips=options.clips or (360 if ego else 480),
        ego=ego,
        conditions=task.conditions,
        batch_size=8 if ego else 16,
        val_stride=12 if ego else 8,
        **({"segment": None} if ego else {}),
    )
    data.use_spec(task.spec)
    data.prepare_data()
    content = json.loads((Path(str(data.root)) / "synthav.json").read_text(encoding="utf-8"))
    answers = {f"{clip['set']}/{clip['name']}": clip for clip in content["clips"]}

    def terms(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return task.terms(batch, [answers[name] for name in batch["video_name"]])

    optimizer = torch.optim.AdamW(task.parameters(), 1e-3 if ego else 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for epoch in range(options.epochs):
        task.train()
        losses = []
        for batch in data.train_dataloader():
            loss = terms(batch)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        schedule.step()
        print(f"epoch {epoch + 1}: cross-entropy {sum(losses) / len(losses):.3f}", flush=True)
    task.eval()
    with torch.inference_mode():
        right = torch.cat([terms(batch)[1] for batch in data.val_dataloader()])
    print(f"validation: {100 * right.mean():.1f} % of {len(right)} answers are right")
    task.save(options.out)


if __name__ == "__main__":
    main()
