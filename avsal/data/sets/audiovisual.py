"""The six audio-visual sets (DIEM, Coutrot 1 and 2, AVAD, ETMD, SumMe) as DataModules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from avsal.data.items import VideoItem
from avsal.data.layout import fold_list, read_fold_list, read_layout
from avsal.data.module import SaliencyDataModule, Split, in_split, items_in_split
from avsal.data.readers import find_video, video_item
from avsal.data.sets.diem_events import Eyes, open_diem_events, size_in_name
from avsal.errors import ConfigError


class LayoutDataModule(SaliencyDataModule):
    """One or several sets in the STAViS folder layout (see `avsal.data.layout`).

    Args:
        root: the folder that holds `fold_lists`, `annotations` and the videos.
        sets: the sets to use, as their folders are called.
        fold: number of the fold, 1 to 3; sets with one split ignore it.
        val_fraction: share of the training videos that validates instead (chosen by their names); 0 validates
            on the test list, as the papers' authors did. Sets with a `val` list use that.
        options: see `SaliencyDataModule`.
    """

    sets: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        sets: Sequence[str] = (),
        fold: int = 1,
        val_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.sets = tuple(sets) or self.sets
        self.fold, self.val_fraction = fold, val_fraction
        if not self.sets:
            raise ConfigError("sets= names no data set; give the names of the folders below annotations/.")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction={val_fraction} must lie in 0..1 (1 excluded).")

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of all sets."""
        root = self.require_root()
        found: list[VideoItem] = []
        for name in self.sets:
            found += self._set_items(root, name, split)
        return found

    def _set_items(self, root: Path, name: str, split: Split) -> list[VideoItem]:
        def read(which: str) -> list[VideoItem]:
            return read_layout(root, name, which, fold=self.fold, strict=self.strict, report=self.report)

        if split == "test" or fold_list(root, name, "val", self.fold):
            return read(split)
        if split == "val" and self.val_fraction == 0:
            return read("test")
        return items_in_split(read("train"), split, val=self.val_fraction)


class DIEMDataModule(LayoutDataModule):
    """DIEM: 81 clips, 30 fps; its standard split (64 for training, 17 for test) in every fold.

    The folder is the STAViS layout, or DIEM as it was published (see `avsal.data.sets.diem_events`)::

        <name>_<W>x<H>/video/<name>_<W>x<H>.mp4, <name>_<W>x<H>/event_data/*.txt

    Args:
        root: the folder.
        gaze: "maps" reads the layout, "events" the published folders; fold lists are taken from
            `fold_lists` in either case, and without them the clips are dealt by their names.
        eyes: which eye counts with `gaze="events"`: "mean" averages the eyes where both fixate, "left", "right",
            "both".
        sigma: Gaussian of the density in pixels with `gaze="events"`; 1/30 of the width by default.
        options: see `LayoutDataModule`.
    """

    name = "diem"
    sets = ("DIEM",)

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        gaze: Literal["maps", "events"] = "maps",
        eyes: Eyes = "mean",
        sigma: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if gaze not in ("maps", "events"):
            raise ConfigError(f"gaze={gaze!r} is not known; allowed: maps, events.")
        self.gaze, self.eyes, self.sigma = gaze, eyes, sigma

    def items(self, split: Split) -> list[VideoItem]:
        """Return the clips of a split."""
        if self.gaze == "maps":
            return super().items(split)
        root = self.require_root()
        found = []
        for folder in sorted(p for p in root.iterdir() if (p / "event_data").is_dir()):
            video = find_video(folder / "video", folder.name) or find_video(folder, folder.name)
            files = tuple(sorted((folder / "event_data").glob("*.txt")))
            if video is None or not files:
                self.report(f"DIEM/{folder.name}: no video, or no event files, in {folder}.")
                continue
            annotation = partial(
                open_diem_events, files, size_in_name(folder.name), eyes=self.eyes, sigma=self.sigma
            )
            found.append(video_item(f"DIEM/{folder.name}", video, annotation, *files))
        names = [item.name for item in found]
        test_list = fold_list(root, "DIEM", "test", None)
        if test_list is not None:
            test = {f"DIEM/{entry.name}" for entry in read_fold_list(test_list)}
        else:
            test = in_split(names, "test", test=17 / 81)
        training = [name for name in names if name not in test]
        chosen = test if split == "test" else in_split(training, split, val=self.val_fraction)
        if split == "val" and not chosen:
            chosen = test
        return [item for item in found if item.name in chosen]


class Coutrot1DataModule(LayoutDataModule):
    """Coutrot database 1: 60 clips in four categories, 25 fps, three folds."""

    name = "coutrot1"
    sets = ("Coutrot_db1",)


class Coutrot2DataModule(LayoutDataModule):
    """Coutrot database 2: 15 clips of four people in a meeting, 25 fps, three folds."""

    name = "coutrot2"
    sets = ("Coutrot_db2",)


class AVADDataModule(LayoutDataModule):
    """AVAD: 45 clips with visible sound sources, 24 to 30 fps, three folds."""

    name = "avad"
    sets = ("AVAD",)


class ETMDDataModule(LayoutDataModule):
    """ETMD: 12 excerpts of Hollywood films, 25 fps, three folds."""

    name = "etmd"
    sets = ("ETMD_av",)


class SumMeDataModule(LayoutDataModule):
    """SumMe with eye tracking: 25 user videos, 15 to 30 fps, three folds."""

    name = "summe"
    sets = ("SumMe",)


SIX_SETS = ("DIEM", "Coutrot_db1", "Coutrot_db2", "AVAD", "ETMD_av", "SumMe")


class AVSaliencyDataModule(LayoutDataModule):
    """All six audio-visual sets: trains on all of them together, tests on each.

    `video_name` begins with the set's folder, so that results are averaged for each set.

    Args:
        root: the folder of the layout.
        test_sets: sets to test on; all by default.
        options: see `LayoutDataModule`.
    """

    name = "av6"
    sets = SIX_SETS

    def __init__(
        self, root: str | Path | None = None, *, test_sets: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.test_sets = tuple(test_sets) or self.sets

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of all sets, or of the test sets."""
        root = self.require_root()
        names = self.test_sets if split == "test" else self.sets
        return [item for name in names for item in self._set_items(root, name, split)]
