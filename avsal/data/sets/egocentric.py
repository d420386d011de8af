"""Ego4D and Aria gaze, as CSTS trains and tests on them, as DataModules."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from avsal.data.gaze.clips import GazeClips, GazeVideo, OpenVrs, collate_gaze
from avsal.data.gaze.segments import (
    ARIA,
    EGO4D,
    SECONDS,
    Protocol,
    Segment,
    read_names,
    read_segments,
    read_untracked,
    segments_of,
)
from avsal.data.module import SaliencyDataModule, Split, in_split
from avsal.data.readers import OpenVideo
from avsal.errors import AvsalError, ConfigError, DataError


class GazeDataModule(SaliencyDataModule):
    """Base of the egocentric gaze sets.

    Args:
        root: folder of the data set: the original download or the authors' pre-processed layout.
        lists: folder with the authors' lists of clips; the root by default. Without lists every recording is cut into
            segments, and the last quarter of the recordings, by name, tests.
        val_fraction: share of the training recordings that validates instead; 0 validates on the test list, as the
            authors did, who so chose their checkpoints on it.
        stored_spectrograms: take the authors' stored spectrograms beside the clips instead of the sound.
        clips: use only the first so many clips of each split, for a quick look.
        batch_size: clips of a training batch.
        eval_batch_size: clips of a validation or test batch.
        options: see `SaliencyDataModule` (`num_workers`, `seed`, `flip`, `strict`, `limit`, `swap_sound`, `spec`). With
            `swap_sound` every test clip that has sound is heard with that of another one. `coverage="authors"` labels
            the frames of Ego4D's raw gaze as the authors' script did (see `read_ego4d_gaze`), in training too.

    Attributes:
        counts: clips per split and what became of them: "listed", "kept", "no video", "too short", "no gaze"; of the
            kept ones, those "without sound".
    """

    protocol: ClassVar[Protocol]
    set_name: ClassVar[str]
    list_names: ClassVar[dict[str, str]]
    clip_folders: ClassVar[tuple[str, ...]]
    stride: ClassVar[int]

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        lists: str | Path | None = None,
        val_fraction: float = 0.0,
        stored_spectrograms: bool = False,
        clips: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, eval_batch_size=eval_batch_size, **options)
        self.lists = Path(lists).expanduser() if lists is not None else None
        self.val_fraction, self.stored_spectrograms, self.clips = val_fraction, stored_spectrograms, clips
        self.counts: dict[str, Counter[str]] = {}
        self._audible: dict[str, bool] = {}
        self._split: dict[str, tuple[list[Segment], list[GazeVideo], list[int]]] = {}
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction={val_fraction} must lie in 0..1 (1 excluded).")

    # What a data set defines

    @abstractmethod
    def recording(self, video: str) -> GazeVideo | None:
        """Return the original recording of that name with its gaze, None if it is not there."""

    @abstractmethod
    def label_file(self, folder: Path, video: str) -> Path:
        """Return the authors' label table of a recording."""

    @abstractmethod
    def recordings(self) -> list[str]:
        """Return the names of all recordings below the root."""

    # Segments

    def _list_of(self, split: Split) -> list[Segment]:
        """Return the segments of a split, as listed or cut."""
        folder = self.lists or self.require_root()
        which: Split = "test" if split == "val" and self.val_fraction == 0 else split
        path = folder / self.list_names["test" if which == "test" else "train"]
        if path.is_file():
            segments = read_segments(path)
        elif self.lists is not None:
            raise DataError(
                f"{path}: there is no such list of clips; lists= names the folder of the authors' csv files."
            )
        else:
            names = sorted(self.recordings())
            tested = set(names[len(names) - max(1, len(names) // 4) :]) if len(names) > 1 else set(names)
            kept = [n for n in names if (n in tested) == (which == "test")] or names
            segments = [segment for name in kept for segment in self._cut(name)]
        if which != "test" and self.val_fraction > 0:
            chosen = in_split(sorted({s.video for s in segments}), split, val=self.val_fraction)
            segments = [s for s in segments if s.video in chosen]
        return segments

    def _cut(self, name: str) -> list[Segment]:
        item = self.recording(name)
        if item is None:
            return []
        try:
            duration = _duration(item)
        except AvsalError as error:
            self.leave_out(f"{item.name}: {error}", error)
            return []
        found = segments_of(name, duration, self.stride, self.untracked().get(name, ()))
        if not found:
            self.report(f"{item.name}: {duration:.2f} s, shorter than a segment of {SECONDS} s.")
        return found

    def untracked(self) -> dict[str, list[tuple[int, int]]]:
        """Return the intervals without usable gaze, by recording."""
        return {}

    def gaze_segments(self, split: Split) -> tuple[list[Segment], list[GazeVideo], list[int]]:
        """Return the usable segments of a split, the files, and the file of each segment; found once.

        Raises:
            DataError: none is usable.
        """
        key = f"{split} {self.coverage}"
        if key in self._split:
            return self._split[key]
        listed = self._list_of(split)
        counts = self.counts[split] = Counter(listed=len(listed))
        clips = next((f for f in (self.require_root() / n for n in self.clip_folders) if f.is_dir()), None)
        find: Callable[[Segment], GazeVideo | str]
        if clips is not None:
            find = lambda segment: self._clip_file(clips, segment)  # noqa: E731
        else:
            durations: dict[str, float] = {}
            known: dict[str, GazeVideo | None] = {}
            find = lambda segment: self._original(segment, known, durations)  # noqa: E731
        segments: list[Segment] = []
        items: dict[str, tuple[int, GazeVideo]] = {}
        which: list[int] = []
        videos: set[str] = set()
        for segment in listed:
            if self.clips is not None and len(segments) >= self.clips:
                break
            if self.limit is not None and segment.video not in videos and len(videos) >= self.limit:
                continue
            found = find(segment)
            if isinstance(found, str):
                counts[found] += 1
                self.report(f"{self.set_name}/{segment.video} ({found}): {found}, first at {segment.clip}.")
                continue
            place, _ = items.setdefault(found.name, (len(items), found))
            segments.append(segment)
            which.append(place)
            videos.add(segment.video)
            counts["without sound"] += found.silent
        counts["kept"] = len(segments)
        counts = self.counts[split] = +counts  # without what did not happen
        if not segments:
            raise DataError(
                f"{self.root}: none of the {len(listed)} clips of the {split} split can be used "
                f"({', '.join(f'{n} {reason}' for reason, n in counts.items() if reason not in ('listed', 'kept'))}). "
                f"Expected the original recordings or the folders {', '.join(self.clip_folders)}."
            )
        self._split[key] = segments, [item for _, item in items.values()], which
        return self._split[key]

    def video_names(self, split: Split) -> dict[int, str]:
        """Return the name of the recording behind every `video_id` of a split's batches."""
        videos = sorted({segment.video for segment in self.gaze_segments(split)[0]})
        return {k: f"{self.set_name}/{video}" for k, video in enumerate(videos)}

    def _original(
        self, segment: Segment, known: dict[str, GazeVideo | None], durations: dict[str, float]
    ) -> GazeVideo | str:
        name = segment.video
        if name not in known:
            known[name] = self.recording(name)
        item = known[name]
        if item is None:
            return "no video"
        if item.gaze_file is None:
            return "no gaze"
        if name not in durations:
            try:
                durations[name] = _duration(item)
                if isinstance(item.open_frames, OpenVrs):
                    item = known[name] = replace(item, silent=not _has_microphone(item.open_frames))
            except AvsalError as error:
                self.leave_out(f"{item.name}: {error}", error)
                durations[name] = 0.0
        # Two frames of tolerance: containers round their duration.
        return item if segment.start + SECONDS <= durations[name] + 0.1 else "too short"

    def _clip_file(self, clips: Path, segment: Segment) -> GazeVideo | str:
        path = clips / segment.video / f"{segment.clip}.mp4"
        if not path.is_file():
            return "no video"
        labels = self.label_file(clips.parent / "gaze_frame_label", segment.video)
        if not labels.is_file():
            return "no gaze"
        sound, begin, silent = self._clip_sound(clips, path, segment)
        stored = None
        if self.stored_spectrograms:
            # The released loader and the released script name this folder differently.
            folders = (clips.parent / "clips.audio_24kHz_stft", clips.with_name(f"{clips.name}.audio_stft"))
            candidates = (f / segment.video / f"{segment.clip}.npy" for f in folders)
            stored = next((c for c in candidates if c.is_file()), None)
            # The authors' script gives the recordings whose sound lies apart no spectrograms: they are computed.
            if stored is None and not silent and sound.stem != segment.video:
                return "no stored spectrogram"
        return GazeVideo(
            f"{self.set_name}/{segment.clip}", None, None, OpenVideo(path), audio=sound, start=segment.start,
            gaze_file=labels, as_spectrogram=self.stored_spectrograms, spectrogram=stored, sound_start=begin,
            silent=silent and stored is None, protocol=self.protocol,
        )  # fmt: skip

    def _clip_sound(self, clips: Path, path: Path, segment: Segment) -> tuple[Path, float, bool]:
        """Return the file with a clip's sound, the seconds at which the clip begins in it, and whether it is silent.

        Sound of whole recordings (`missing_audio/`, which the authors' script copies beside the folders of clips) is
        cut at the segment.
        """
        waves = clips.parent / "clips.audio_24kHz"
        own = waves / segment.video / f"{segment.clip}.wav"
        if own.is_file():
            return own, 0.0, False
        for whole in (clips.parent / "missing_audio", waves):
            if (found := whole / f"{segment.video}.wav").is_file():
                return found, float(segment.start), False
        # One clip is checked for each recording: opening every clip of a list would take minutes.
        if segment.video not in self._audible:
            self._audible[segment.video] = _has_sound(path)
        return path, 0.0, not self._audible[segment.video]

    def gaze_counts(self, split: Split) -> dict[str, int]:
        """Count the frames of a split's segments by the kind of their gaze (reads every gaze file).

        Returns:
            "fixation", "saccade", "outside" and "untracked"; frames past the end of a gaze file are untracked.
        """
        names = ("fixation", "saccade", "outside", "untracked")
        segments, items, which = self.gaze_segments(split)
        total = dict.fromkeys(names, 0)
        by_file = sorted(zip(which, segments, strict=True), key=lambda pair: pair[0])
        for place, group in groupby(by_file, key=lambda pair: pair[0]):
            with closing(items[place].open(sound=False)) as opened:
                for _, segment in group:
                    begin = segment.start * self.protocol.fps
                    kinds = opened.labels[begin : begin + self.protocol.frames, 2].astype(int)
                    for kind, name in enumerate(names):
                        total[name] += int((kinds == kind).sum())
                    total["untracked"] += self.protocol.frames - len(kinds)
        return total

    # Lightning

    def items(self, split: Split) -> list[GazeVideo]:
        """Return the files of a split."""
        return self.gaze_segments(split)[1]

    def _try(self, split: Split) -> None:
        """Read one clip of a split."""
        self._dataset(split, train=split == "train")[0]

    def _dataset(self, split: Split, *, train: bool) -> GazeClips:
        segments, items, which = self.gaze_segments(split)
        ids = {name: k for k, name in self.video_names(split).items()}
        return GazeClips(
            segments,
            items,
            which,
            self.spec,
            self.protocol,
            train=train,
            seed=self.seed,
            flip=self.flip,
            heard=self._others(split) if self.swap_sound and split == "test" else None,
            video_ids=[ids[f"{self.set_name}/{s.video}"] for s in segments],
            set_name=self.set_name,
            strict=self.strict,
        )

    def _others(self, split: Split) -> list[int]:
        """Return, for every segment with sound, another one with sound, of another recording where there is one."""
        segments, items, which = self.gaze_segments(split)
        places = [k for k, place in enumerate(which) if not items[place].silent]
        if len(places) < 2:
            raise ConfigError(
                f"swap_sound: the {split} split of {self.set_name} has {len(places)} clips with sound; to swap it, two "
                "are needed."
            )
        places.sort(key=lambda k: (segments[k].video, segments[k].start))
        # The next clip but as many as the longest recording has: never one of the same, if that is under half of them.
        shift = max(Counter(segments[k].video for k in places).values())
        shift = shift if shift < len(places) else 1
        heard = list(range(len(segments)))
        for here, there in zip(places, places[shift:] + places[:shift], strict=True):
            heard[here] = there
        return heard

    def train_dataset(self) -> GazeClips:  # type: ignore[override]
        """Return the random clips of the training segments."""
        return self._dataset("train", train=True)

    def eval_dataset(self, split: Split) -> GazeClips:  # type: ignore[override]
        """Return the fixed clips of the validation or test segments."""
        return self._dataset(split, train=False)

    def train_dataloader(self) -> Any:
        """Return the training loader."""
        return self._loader(
            self.train_dataset(), shuffle=True, batch_size=self.batch_size, collate_fn=collate_gaze
        )

    def _eval_loader(self, split: Split) -> Any:
        return self._loader(
            self.eval_dataset(split), shuffle=False, batch_size=self.eval_batch_size, collate_fn=collate_gaze
        )


def _has_sound(path: Path) -> bool:
    """Return whether a video has a sound track; a file that cannot be read is reported elsewhere."""
    from avsal.io.video import probe

    try:
        return probe(path).has_audio
    except AvsalError:
        return True


def _has_microphone(vrs: OpenVrs) -> bool:
    with closing(vrs()) as recording:
        return recording.has_audio


def _duration(item: GazeVideo) -> float:
    """Return the seconds of a recording from its container, or from its frames where that gives none."""
    if isinstance(item.open_frames, OpenVideo):
        from avsal.io.video import probe

        announced = probe(item.open_frames.path).duration
        if announced is not None:
            return announced
    with closing(item.open_frames()) as frames:
        return float(frames.times[-1] - frames.times[0]) + 1.0 / item.protocol.fps


class Ego4DGazeDataModule(GazeDataModule):
    """Gaze in Ego4D (27 social videos): 15,310 training and 5,202 test segments.

    Original download below the root: `full_scale.gaze/<uid>.mp4` (or `full_scale/`), `gaze/<uid>.csv`, the separate
    sound of the two silent videos as `missing_audio/<uid>.wav`, and `ego4d_gaze_untracked.csv` (needed only without
    lists). Or the authors' pre-processed `clips.gaze/`, `gaze_frame_label/`, `clips.audio_24kHz/` and
    `clips.audio_24kHz_stft/`. Get it: https://ego4d-data.org/docs/data/gaze/ (licence agreement).
    """

    name = "ego4d"
    protocol = EGO4D
    set_name = "Ego4D"
    list_names: ClassVar[dict[str, str]] = {"train": "train_ego4d_gaze.csv", "test": "test_ego4d_gaze.csv"}
    clip_folders = ("clips.gaze",)
    stride = 5

    def recording(self, video: str) -> GazeVideo | None:
        """Return the full-scale video of that uid with its raw gaze."""
        root = self.require_root()
        folders = (root / name for name in ("full_scale.gaze", "full_scale", "videos"))
        path = next((p for p in (f / f"{video}.mp4" for f in folders) if p.is_file()), None)
        if path is None:
            return None
        gaze = root / "gaze" / f"{video}.csv"
        wave = root / "missing_audio" / f"{video}.wav"
        return GazeVideo(
            f"{self.set_name}/{video}", None, None, OpenVideo(path), audio=wave if wave.is_file() else path,
            silent=not wave.is_file() and not _has_sound(path),
            gaze_file=gaze if gaze.is_file() else None, protocol=EGO4D,
            gaze_kind="ego4d-released" if self.coverage == "authors" else "ego4d",
        )  # fmt: skip

    def label_file(self, folder: Path, video: str) -> Path:
        """Return `<uid>_frame_label.csv`."""
        return folder / f"{video}_frame_label.csv"

    def recordings(self) -> list[str]:
        """Return the uids that have a gaze file."""
        return [p.stem for p in (self.require_root() / "gaze").glob("*.csv") if p.stem != "manifest"]

    def untracked(self) -> dict[str, list[tuple[int, int]]]:
        """Return the intervals of `ego4d_gaze_untracked.csv`."""
        path = (self.lists or self.require_root()) / "ego4d_gaze_untracked.csv"
        return read_untracked(path) if path.is_file() else {}


class AriaGazeDataModule(GazeDataModule):
    """Gaze of Aria Everyday Activities (143 recordings): 10,456 training and 2,901 test segments.

    Original download below the root: `<recording>/recording.vrs` with `mps/eye_gaze/general_eye_gaze.csv` (else
    `personalized_…`; or the file beside the recording); needs the extra `aria`. Or the authors' pre-processed `clips/`,
    `gaze_frame_label/`, `clips.audio_24kHz(_stft)/`. The published lists use the pilot's names: `names` (or
    `aria_video_ids_matching.xlsx` beside the lists) matches them to the current ones.
    Get it: https://www.projectaria.com/datasets/aea/ (licence agreement).

    Args:
        root: folder of the data set.
        names: the authors' sheet of old and new names, or a CSV file of two columns.
        options: see `GazeDataModule`.
    """

    name = "aria"
    protocol = ARIA
    set_name = "Aria"
    list_names: ClassVar[dict[str, str]] = {"train": "train_aria_gaze.csv", "test": "test_aria_gaze.csv"}
    clip_folders = ("clips",)
    stride = 2

    def __init__(
        self, root: str | Path | None = None, *, names: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.names = Path(names).expanduser() if names is not None else None

    @cached_property
    def _other_names(self) -> dict[str, str]:
        path = self.names or (self.lists or self.require_root()) / "aria_video_ids_matching.xlsx"
        if self.names is None and not path.is_file():
            return {}
        return read_names(path)

    def recording(self, video: str) -> GazeVideo | None:
        """Return the recording of that name, old or new, with its directions of gaze."""
        root = self.require_root()
        for name in (video, self._other_names.get(video)):
            if name and (folder := root / name).is_dir() and (vrs := _vrs(folder)) is not None:
                return GazeVideo(
                    f"{self.set_name}/{video}", None, None, OpenVrs(vrs), gaze_file=_mps_gaze(folder),
                    gaze_kind="mps", protocol=ARIA,
                )  # fmt: skip
        return None

    def label_file(self, folder: Path, video: str) -> Path:
        """Return `<recording>.csv`."""
        path = folder / f"{video}.csv"
        return path if path.is_file() else folder / f"{video}_frame_label.csv"

    def recordings(self) -> list[str]:
        """Return the folders that hold a VRS file."""
        return [p.name for p in self.require_root().iterdir() if p.is_dir() and _vrs(p) is not None]


def _vrs(folder: Path) -> Path | None:
    found = folder / "recording.vrs"
    return found if found.is_file() else next(iter(sorted(folder.glob("*.vrs"))), None)


def _mps_gaze(folder: Path) -> Path | None:
    names = ("general_eye_gaze.csv", "personalized_eye_gaze.csv", "generalized_eye_gaze.csv", "eyegaze.csv")
    for place in (folder / "mps" / "eye_gaze", folder / "eye_gaze", folder):
        for name in names:
            if (place / name).is_file():
                return place / name
    return None
