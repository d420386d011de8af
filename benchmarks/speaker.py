"""Does the speaker stream listen? Two talking faces side by side, one of their voices, five conditions of sound.

    python -m benchmarks.speaker FOLDER [--checkpoint speaker-lite-openfix] [--out FILE]

FOLDER holds clips in which one person talks, with sound. Every ordered pair of clips is one case: both faces are in
view, both mouths move, and the first one's voice is heard; so the right answer is known. The sound is heard as it
is (own), shifted by three seconds, swapped for a third clip's, almost silent (one step of 16-bit sound), or there
is none. Counted is how often, over frames after the first second, the speaking face has the larger share of the
gate; without its voice that is chance. Faces are found, followed and encoded once for each clip; the backward GRU
runs over the whole clip.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import avsal
from avsal.files import write_text
from avsal.inference.video import VideoPrediction
from avsal.io.audio import load_audio
from avsal.models.speaker import Speaker
from avsal.nn.lightasd import FPS, RATE, ROWS, mfcc
from avsal.nn.speakers import AROUND, DOUBT, LATE, MEMORY, SpeakerStream

CONDITIONS = ("own", "shifted 3 s", "swapped", "near-silent", "none")


def encoded(module: Any, path: Path, cache: Path) -> dict[str, Tensor]:
    """Return a clip's longest track of the largest face, encoded (T, 128), and its sound, encoded (T, 128)."""
    stored = cache / f"{path.stem}.npz"
    network: Speaker = module.network
    if not stored.exists():
        codes: dict[int, list[Tensor]] = {}
        prediction = VideoPrediction(module, path, stride=10**6)
        encode, plain = network.asd.encode, SpeakerStream._score
        current: list[int] = []

        def recorded(faces: Tensor, past: Any = None, *, final: bool = True) -> Any:
            out, past = encode(faces, past, final=final)
            codes.setdefault(current[0], []).append(out[0])
            return out, past

        def watched(stream: SpeakerStream, track: Any, scored: Any) -> None:
            current[:] = [track.number]
            plain(stream, track, scored)

        SpeakerStream._score, network.asd.encode = watched, recorded  # type: ignore[method-assign,assignment]
        try:
            for _ in prediction:
                pass
        finally:
            SpeakerStream._score = plain  # type: ignore[method-assign]
            del network.asd.encode
        longest = max(codes.values(), key=lambda pieces: sum(len(piece) for piece in pieces))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(stored, face=torch.cat(longest).numpy())
    face = torch.from_numpy(np.load(stored)["face"])
    wave, _, _ = load_audio(path, rate=RATE)
    return {"face": face, "sound": heard(network, wave, len(face))}


def heard(network: Speaker, wave: Tensor, ticks: int) -> Tensor:
    """Return a waveform's codes (ticks, 128); what is missing is silence."""
    length = (ticks + 1) * RATE // FPS
    wave = torch.nn.functional.pad(wave, (0, max(length - len(wave), 0)))[:length]
    return network.asd.sound(mfcc(wave)[None, : ROWS * ticks])[0]


def scores(network: Speaker, face: Tensor, sound: Tensor | None) -> Tensor:
    """Return the three scores (T, 3) of a face with a sound, as the stream forms them."""
    asd = network.asd
    seen = asd.looks(face[None])[0]
    near = torch.nn.functional.avg_pool1d(
        seen[None, None], 2 * AROUND + 1, 1, AROUND, count_include_pad=False
    )[0, 0]
    if sound is None:
        return torch.stack([near, 0 * near, 0 * near], -1)
    late = [torch.cat([sound[:1].expand(k, -1), sound[: len(sound) - k]]) for k in (0, *LATE)]
    hidden, _ = asd.model.GRU(face + torch.stack(late))
    logits = asd.speaks(hidden)
    total = weight = 0.0
    agrees = []
    for step in (logits[0] - logits[1:].mean(0)).tolist():
        total, weight = total * np.exp(-1 / MEMORY) + step, weight * np.exp(-1 / MEMORY) + 1
        agrees.append(total / (weight + DOUBT))
    return torch.stack([near, logits[0], torch.tensor(agrees)], -1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all pairs and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speaker", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="speaker-lite-openfix")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speaker.md"))
    args = parser.parse_args(argv)
    module: Any = avsal.from_pretrained(args.checkpoint).eval()
    network: Speaker = module.network
    with torch.no_grad():
        clips = [
            encoded(module, path, args.cache) for path in sorted(args.folder.iterdir()) if path.is_file()
        ]
        noise = (
            torch.rand(RATE * 60, generator=torch.Generator().manual_seed(0)).sub(0.5).mul(2).round() / 32768
        )
        right: dict[str, list[float]] = {name: [] for name in CONDITIONS}
        share: dict[str, list[float]] = {name: [] for name in CONDITIONS}
        for i, k in itertools.permutations(range(len(clips)), 2):
            ticks = min(len(clips[i]["face"]), len(clips[k]["face"]))
            third = next(n for n in range(len(clips)) if n not in (i, k) and (n > i or i >= len(clips) - 2))
            voice = clips[i]["sound"]
            sounds = {
                "own": voice, "shifted 3 s": voice.roll(3 * FPS, 0), "near-silent": heard(network, noise, ticks),
                "swapped": clips[third]["sound"].repeat(-(-ticks // len(clips[third]["sound"])), 1), "none": None,
            }  # fmt: skip
            for name, sound in sounds.items():
                both = [
                    scores(network, clips[n]["face"][:ticks], None if sound is None else sound[:ticks])
                    for n in (i, k)
                ]
                shares = network.gate.shares(torch.stack(both, 1)[FPS:])
                right[name].append(float((shares[:, 0] > shares[:, 1]).float().mean()))
                share[name].append(float((shares[:, 0] / shares.sum(1)).mean()))
    pairs = len(right["own"])
    lines = [
        "# Who of two talking faces is heard?", "",
        f"`python -m benchmarks.speaker FOLDER --checkpoint {Path(args.checkpoint).name}`, {len(clips)} clips of one "
        f"talking person each, {pairs} ordered pairs. Chance is 0.5.", "",
        "| sound | the right face has the larger share | its part of both shares |", "|---|---|---|",
    ]  # fmt: skip
    for name in CONDITIONS:
        error = np.std(right[name]) / np.sqrt(len(clips))
        lines.append(f"| {name} | {np.mean(right[name]):.3f} ± {error:.3f} | {np.mean(share[name]):.3f} |")
    lines += ["", "± is the deviation over pairs by the root of the number of clips: pairs share clips."]
    write_text(args.out, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
