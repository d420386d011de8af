"""Does the speaker stream listen? Re-dubbed clips of talking people, where it is known whose mouth fits the sound.

    python -m benchmarks.speaker FOLDER --cache FOLDER [--same CLIP CLIP…] [--voices FOLDER] [--hevc33 FOLDER]

FOLDER holds clips in which one person talks, with sound; `--same` names those of one person. Every ordered pair of
clips of different people is a case: both faces are in view and the first one's voice is heard, so the right answer is
known. The cases: two talkers; the same with music as loud as the voice; three talkers; beside a talker a face whose
film is played backwards (it moves, but says nothing that is heard); beside a talker a still face (mouths decide).
The sound is heard as it is (own), shifted by three seconds, swapped for the voice of someone who is not in view,
almost silent (one step of 16-bit sound), or there is none. Counted is how often, over frames after the first second,
the right face has the largest share of the gate. A second table is of sounds that belong to no face in view: there the
sound should change nothing. Faces are found, followed and encoded once for each clip; the backward GRU runs over the
whole clip. The music is synthetic: chords and a beat.

The weights of the sound are also fitted on these cases, for each pair on the pairs of all other people.

`--hevc33` adds real gaze: the clips of talking people, which are silent, dubbed with the voices of `--voices`, with
music, and with almost nothing. `--checkpoint` may have `{fold}` in it there, for the fold that a clip is held out of.
Intervals are percentile bootstraps over people (a pair counts as often as both of its people are drawn) or clips.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import avsal
from avsal.data.items import VideoItem
from avsal.data.sets.video_database import HEVC33DataModule
from avsal.files import write_text
from avsal.inference.video import VideoPrediction
from avsal.io.audio import load_audio
from avsal.io.video import VideoStream
from avsal.models.speaker import Speaker
from avsal.nn.lightasd import FPS, RATE, ROWS, LightASD, mfcc
from avsal.nn.speakers import AROUND, DOUBT, LATE, MEMORY, SpeakerStream, face_picture
from avsal.report.statistics import interval, resamples
from benchmarks.real_gaze import TALKING, score

CONDITIONS = ("own", "shifted 3 s", "swapped", "near-silent", "none")
#: The beings beside the talker, and what is heard in the condition "own".
CASES = {
    "two talkers": (("plain",), "voice"),
    "two talkers, music as loud as the voice": (("plain",), "voice and music"),
    "three talkers": (("plain", "plain"), "voice"),
    "a talker and a face played backwards": (("backwards",), "voice"),
    "a talker and a still face": (("still",), "voice"),
}
#: Weights of the sound that are compared: of the logit with sound, and of the mouth's agreement with the sound.
HEARD, AGREES = (0.0, 0.25, 0.5, 1.0, 2.0), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
STRIDE = 24


@dataclass
class Clip:
    """A talking person: encoded faces (T, 128) and encoded sounds (T, 128)."""

    name: str
    person: str
    faces: dict[str, Tensor]
    sounds: dict[str, Tensor]


def pictures(network: Speaker, path: Path) -> Tensor:
    """Return the pictures (T, 112, 112) uint8 of a clip's longest track, 25 per second."""
    stream = SpeakerStream(network.detector, network.asd, faces=0)
    times = []
    with VideoStream(path) as film:
        for frame in film:
            stream.push(frame.image, frame.time)
            times.append(frame.time)
    stream.finish()
    ticks = np.arange(times[0], times[-1] + 0.5 / FPS, 1 / FPS)
    tracks: dict[int, dict[int, Tensor]] = {}
    for tick, time in enumerate(ticks):
        for face in stream.at(time):
            tracks.setdefault(face.track, {})[tick] = face.box
    boxes = max(tracks.values(), key=len)
    shown = np.abs(np.array(times)[None] - ticks[:, None]).argmin(1)
    found: dict[int, Tensor] = {}
    with VideoStream(path) as film:
        for frame in film:
            for tick in np.flatnonzero(shown == frame.index).tolist():
                if tick in boxes:
                    found[tick] = face_picture(frame.image, boxes[tick])
    return torch.stack([found[tick] for tick in sorted(found)]).round().byte()


def music(length: int, seed: int = 0) -> Tensor:
    """Return synthetic music (length,) at 16 kHz: a chord and a beat every half second, root mean square 0.1."""
    random = np.random.default_rng(seed)
    time = np.arange(RATE // 2) / RATE
    bars = []
    for root in itertools.islice(itertools.cycle((220.0, 174.6, 261.6, 196.0)), length // len(time) + 1):
        chord = sum(
            np.sin(2 * np.pi * root * third * k * time) / k for third in (1, 1.26, 1.5) for k in range(1, 6)
        )
        bars.append(np.exp(-3 * time) * chord + 2 * np.exp(-40 * time) * random.standard_normal(len(time)))
    sound = np.concatenate(bars)[:length]
    return torch.from_numpy(0.1 * sound / np.sqrt((sound**2).mean())).float()


def almost_silent(length: int) -> Tensor:
    """Return noise (length,) of at most one step of 16-bit sound."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(length, generator=generator).sub(0.5).mul(2).round() / 32768


def heard(network: Speaker, wave: Tensor, ticks: int) -> Tensor:
    """Return a waveform's codes (ticks, 128); what is missing is silence."""
    length = (ticks + 1) * RATE // FPS
    wave = torch.nn.functional.pad(wave, (0, max(length - len(wave), 0)))[:length]
    return network.asd.sound(mfcc(wave)[None, : ROWS * ticks])[0]


def read(network: Speaker, path: Path, person: str, store: Path) -> Clip:
    """Return a clip's encoded faces and sounds."""
    stored = store / f"{path.stem}.npz"
    if not stored.exists():
        shown = pictures(network, path)
        seen = network.asd.looks(plain := network.asd.faces(shown[None]))[0]
        least = int(seen[AROUND:-AROUND].argmin()) + AROUND  # the mouth that looks most as if it were shut
        still = network.asd.faces(shown[least].expand(1, len(shown), -1, -1))
        back = network.asd.faces(shown.flip(0)[None])
        store.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(stored, plain=plain[0].numpy(), still=still[0].numpy(), backwards=back[0].numpy())
    faces = {name: torch.from_numpy(value) for name, value in np.load(stored).items()}
    ticks = len(faces["plain"])
    wave, _, _ = load_audio(path, rate=RATE)
    loud = wave.square().mean().sqrt() / 0.1
    sounds = {
        "voice": wave, "voice and music": wave + loud * music(len(wave)), "music": loud * music(ticks * RATE // FPS),
        "near-silent": almost_silent((ticks + 1) * RATE // FPS),
    }  # fmt: skip
    return Clip(
        path.stem, person, faces, {name: heard(network, value, ticks) for name, value in sounds.items()}
    )


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
        agrees.append(float(total / (weight + DOUBT)))
    return torch.stack([near, logits[0], torch.tensor(agrees, dtype=torch.float32)], -1)


class Cases:
    """All pairs of clips in all cases and conditions."""

    def __init__(self, network: Speaker, clips: Sequence[Clip]) -> None:
        self.network, self.clips = network, clips
        self.pairs = [
            (i, k)
            for i, k in itertools.permutations(range(len(clips)), 2)
            if clips[i].person != clips[k].person
        ]
        self._scores = cache(self._scored)

    def _scored(self, face: int, variant: str, sound: tuple[int, str] | None, shift: int) -> Tensor:
        codes = self.clips[face].faces[variant]
        if sound is None:
            return scores(self.network, codes, None)
        wave = self.clips[sound[0]].sounds[sound[1]]
        wave = wave.repeat(-(-len(codes) // len(wave)), 1)[: len(codes)]
        return scores(self.network, codes, wave.roll(shift, 0))

    def other(self, *shown: int) -> int:
        """Return a clip of someone who is none of those in view."""
        people = {self.clips[n].person for n in shown}
        order = [(shown[0] + shown[1] + k) % len(self.clips) for k in range(len(self.clips))]
        return next(n for n in order if self.clips[n].person not in people)

    def shown(self, case: str, i: int, k: int) -> list[int]:
        """Return the clips whose faces are in view; the first is the one that is heard."""
        return [i, k, self.other(i, k)][: 1 + len(CASES[case][0])]

    def people(self, case: str, condition: str, i: int, k: int) -> set[str]:
        """Return who takes part with face or voice."""
        shown = self.shown(case, i, k)
        return {
            self.clips[n].person for n in (*shown, *([self.other(*shown)] if condition == "swapped" else ()))
        }

    def scored(self, case: str, condition: str, i: int, k: int) -> Tensor:
        """Return the scores (T, N, 3) of the faces in view after the first second; the first is the right one."""
        beside, own = CASES[case]
        shown = self.shown(case, i, k)
        sound = {
            "own": (i, own), "shifted 3 s": (i, own), "near-silent": (i, "near-silent"), "music": (i, "music"),
            "swapped": (self.other(*shown), own), "none": None,
        }[condition]  # fmt: skip
        shift = 3 * FPS if condition.startswith("shifted") else 0
        found = [self._scores(n, v, sound, shift) for n, v in zip(shown, ("plain", *beside), strict=True)]
        ticks = min(len(one) for one in found)
        return torch.stack([one[:ticks] for one in found], 1)[FPS:]

    @torch.no_grad()
    def right(self, gate: Any, case: str, condition: str) -> np.ndarray:
        """Return, for each pair, in which part of the frames the right face has the largest share."""
        values = []
        for pair in self.pairs:
            shares = gate.shares(self.scored(case, condition, *pair))
            values.append(float((shares[:, :1] > shares[:, 1:]).all(1).float().mean()))
        return np.array(values)

    @torch.no_grad()
    def moved(self, gate: Any, case: str, condition: str) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each pair, how often the sound changes who is brightest, and how far the shares move."""
        turned, by = [], []
        for pair in self.pairs:
            parts = [gate.shares(self.scored(case, one, *pair)) for one in ("none", condition)]
            parts = [part / part.sum(1, keepdim=True) for part in parts]
            turned.append(float((parts[0].argmax(1) != parts[1].argmax(1)).float().mean()))
            by.append(float((parts[0] - parts[1]).abs().amax(1).mean()))
        return np.array(turned), np.array(by)

    def draws(self) -> np.ndarray:
        """Return (DRAWS, pairs) how often each pair counts when people are drawn with replacement."""
        people = sorted({clip.person for clip in self.clips})
        counts = resamples(len(people))
        place = [people.index(clip.person) for clip in self.clips]
        return np.stack([counts[:, place[i]] * counts[:, place[k]] for i, k in self.pairs], 1)

    @torch.no_grad()
    def fitted(self, gate: Any) -> dict[tuple[int, int], tuple[float, float]]:
        """Return, for each pair, the weights of the sound that are best for the cases without its people.

        Best is the mean of -log of the right face's softmax of slope * score: with its voice in all cases, and with
        every other sound where the mouths decide (the still face).
        """
        wanted = [(case, "own") for case in CASES]
        wanted += [
            ("a talker and a still face", c) for c in ("shifted 3 s", "swapped", "near-silent", "music")
        ]
        grid = list(itertools.product(HEARD, AGREES))
        weights = torch.tensor([(1.0, *one) for one in grid])
        slope = float(gate.value("slope").detach())
        losses, people = [], []
        for pair, (case, condition) in itertools.product(self.pairs, wanted):
            logits = slope * self.scored(case, condition, *pair) @ weights.T
            losses.append(-logits.log_softmax(1)[:, 0].mean(0))
            people.append(self.people(case, condition, *pair))
        loss = torch.stack(losses)
        chosen = {}
        for pair in self.pairs:
            held = {self.clips[n].person for n in pair}
            others = [row for row, these in enumerate(people) if not held & these]
            chosen[pair] = grid[int(loss[others].mean(0).argmin())]
        self.best = grid[int(loss.mean(0).argmin())]
        return chosen


def cell(values: np.ndarray, draws: np.ndarray, digits: int = 2) -> str:
    """Return a mean and its interval."""
    draws = draws[draws.sum(1) > 0]  # of few people sometimes one is drawn only: no pair
    low, high = interval((draws @ values) / draws.sum(1))
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def answer_table(cases: Cases, gate: Any) -> list[str]:
    """Return the lines of the table of right answers."""
    draws = cases.draws()
    lines = [
        "| case (chance) | " + " | ".join(CONDITIONS) + " | own less none |",
        "|---" * (len(CONDITIONS) + 2) + "|",
    ]
    for case, (beside, _) in CASES.items():
        rows = {name: cases.right(gate, case, name) for name in CONDITIONS}
        cells = [cell(rows[name], draws) for name in CONDITIONS]
        cells.append(cell(rows["own"] - rows["none"], draws))
        lines.append(f"| {case} ({1 / (1 + len(beside)):.2f}) | " + " | ".join(cells) + " |")
    return lines


def foreign_table(cases: Cases, gate: Any) -> list[str]:
    """Return the lines of the table of sounds that belong to nobody in view."""
    draws = cases.draws()
    lines = [
        "| case | sound | the brightest face is another | largest change of a face's part of all shares |",
        "|---|---|---|---|",
    ]
    for case in ("two talkers", "a talker and a still face"):
        for name, condition in (
            ("a voice from off screen", "swapped"),
            ("music", "music"),
            ("near silence", "near-silent"),
        ):
            turned, by = cases.moved(gate, case, condition)
            lines.append(f"| {case} | {name} | {cell(turned, draws)} | {cell(by, draws)} |")
    return lines


def fit_table(cases: Cases, gate: Any) -> list[str]:
    """Return the lines of the table of fitted weights of the sound."""
    chosen = cases.fitted(gate)
    draws = cases.draws()
    shipped = tuple(gate.value(name).item() for name in ("heard", "agrees"))
    rows: dict[str, Mapping[tuple[int, int], tuple[float, float]]] = {
        f"shipped ({shipped[0]:g}, {shipped[1]:g})": dict.fromkeys(cases.pairs, shipped),
        "fitted without both people": chosen,
    }
    names = [(case, "own") for case in CASES] + [("a talker and a still face", "swapped")]
    heads = [case if name == "own" else f"{case}, voice swapped" for case, name in names]
    lines = ["| weights | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for label, weights in rows.items():
        cells = []
        for case, condition in names:
            values = []
            for pair in cases.pairs:
                score = cases.scored(case, condition, *pair) @ torch.tensor([1.0, *weights[pair]])
                values.append(float((score[:, :1] > score[:, 1:]).all(1).float().mean()))
            cells.append(cell(np.array(values), draws))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    counts = {one: list(chosen.values()).count(one) for one in sorted(set(chosen.values()))}
    told = ", ".join(f"({h:g}, {a:g}) for {n} pairs" for (h, a), n in counts.items())
    lines += [
        "",
        f"Weights (heard, agrees) fitted without a pair's people: {told}; over all pairs {cases.best}.",
    ]
    return lines


# -- real gaze -----------------------------------------------------------------------------------------


class Remembering(LightASD):
    """Light-ASD that encodes the faces of a film once and hands the same codes out when the film is shown again."""

    def __init__(self, asd: LightASD) -> None:
        super().__init__()
        self.load_state_dict(asd.state_dict())
        self.codes: list[Tensor] = []
        self.again: Iterator[Tensor] | None = None

    def encode(
        self, faces: Tensor, past: list[Any] | None = None, *, final: bool = True
    ) -> tuple[Tensor, list[Any]]:
        """Return what `LightASD.encode` returned the first time; what the next call needs is not kept."""
        if self.again is not None:
            return next(self.again), []
        codes, past = super().encode(faces, past, final=final)
        self.codes.append(codes)
        return codes, past


@dataclass
class Wave:
    """A waveform as a film's sound."""

    samples: Tensor
    has_audio: bool = True

    def read(self, begin: int, end: int) -> Tensor:
        """Return the samples [begin, end), zeros outside."""
        inside = self.samples[max(begin, 0) : max(end, 0)]
        return torch.nn.functional.pad(inside, (max(-begin, 0), end - max(begin, 0) - len(inside)))


def dubbed(module: Any, item: VideoItem, sounds: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the scores of a silent clip's maps, as it is ("none") and dubbed with each sound."""
    network: Speaker = module.network
    network.asd = Remembering(network.asd).eval()
    silent = list(VideoPrediction(module, item.files[0], stride=STRIDE, keep_aux=True))
    values = {"none": score(item, 0, lambda _: ((one.index, one.map) for one in silent))}
    for name, sound in sounds.items():
        network.asd.again = iter(network.asd.codes)
        stream = SpeakerStream(network.detector, network.asd, Wave(sound), network.faces)
        with VideoStream(item.files[0]) as film:
            for frame in film:
                stream.push(frame.image, frame.time)
        stream.finish()
        maps = []
        for one in silent:
            faces = [stream.at(one.time)]
            boxes = torch.stack([f.box for f in faces[0]])[None] if faces[0] else torch.zeros(1, 0, 4)
            known = torch.stack([f.scores for f in faces[0]])[None] if faces[0] else torch.zeros(1, 0, 3)
            base = one.aux["base"][0].exp()
            maps.append((one.index, base * network.gate(known, boxes, (base.shape[0], base.shape[1]))[0]))
        values[name] = score(item, 0, lambda _, m=maps: iter(m))  # type: ignore[misc]
    return values


def gaze_table(checkpoint: str, folder: Path, voices: Sequence[Path], folds: int) -> list[str]:
    """Return the lines of the table of HEVC-33's talking people, dubbed."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for fold in range(1, folds + 1):
        for item in HEVC33DataModule(folder, fold=fold, folds=folds, num_workers=0).split_items("test"):
            name = item.name.rpartition("/")[2]
            if name not in TALKING:
                continue
            module = avsal.from_pretrained(checkpoint.replace("{fold}", str(fold))).eval()
            voice, _, _ = load_audio(voices[TALKING.index(name) % len(voices)], rate=RATE)
            length = 12 * RATE
            sounds = {
                "a voice from off screen": voice.repeat(-(-length // len(voice)))[:length],
                "music": music(length), "near silence": almost_silent(length),
            }  # fmt: skip
            rows[name] = dubbed(module, item, sounds)
            print(name, {key: round(value["cc"], 3) for key, value in rows[name].items()}, flush=True)
    draws = resamples(len(rows))
    lines = ["| sound | CC | NSS | CC less none | NSS less none |", "|---|---|---|---|---|"]
    for name in next(iter(rows.values())):
        found = {m: np.array([row[name][m] for row in rows.values()]) for m in ("cc", "nss")}
        none = {m: np.array([row["none"][m] for row in rows.values()]) for m in ("cc", "nss")}
        cells = [cell(found[m], draws, 3) for m in ("cc", "nss")]
        cells += ["" if name == "none" else cell(found[m] - none[m], draws, 4) for m in ("cc", "nss")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run all pairs and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speaker", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--same", nargs="+", action="append", default=[], help="names of clips of one person")
    parser.add_argument("--checkpoint", default="speaker-lite-openfix")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--hevc33", type=Path, help="folder of HEVC-33, to dub")
    parser.add_argument("--hevc33-checkpoint", help="what is scored there (default: --checkpoint)")
    parser.add_argument("--voices", type=Path, help="folder of recordings of voices, to dub it with")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--notes", type=Path, help="Markdown to put below the tables")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speaker.md"))
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    module: Any = avsal.from_pretrained(args.checkpoint).eval()
    network: Speaker = module.network
    person = {name: names[0] for names in args.same for name in names}
    with torch.no_grad():
        paths = [path for path in sorted(args.folder.iterdir()) if path.is_file()]
        clips = [read(network, path, person.get(path.stem, path.stem), args.cache) for path in paths]
        cases = Cases(network, clips)
        lines = [
            "# Whose voice is it?", "",
            f"`python -m benchmarks.speaker FOLDER --checkpoint {Path(args.checkpoint).name}`: {len(clips)} clips of "
            f"one talking person each, {len({clip.person for clip in clips})} people, {len(cases.pairs)} ordered "
            "pairs of people. How often the right face has the largest share of the gate [95 % bootstrap over people]:",
            "",
            *answer_table(cases, network.gate), "",
            "With sounds that belong to nobody in view, beside no sound at all:", "",
            *foreign_table(cases, network.gate), "",
            "The weights of the sound, fitted for each pair on the pairs of all other people:", "",
            *fit_table(cases, network.gate), "",
        ]  # fmt: skip
        if args.hevc33:
            checkpoint = args.hevc33_checkpoint or args.checkpoint
            voices = [path for path in sorted(args.voices.iterdir()) if path.is_file()]
            lines += [
                f"Real gaze: the {len(TALKING)} clips of talking people of HEVC-33, recorded without sound, dubbed "
                f"(every {STRIDE}th frame):", "",
                *gaze_table(checkpoint, args.hevc33, voices, args.folds), "",
            ]  # fmt: skip
    if args.notes:
        lines += [args.notes.read_text(encoding="utf-8").strip(), ""]
    write_text(args.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
