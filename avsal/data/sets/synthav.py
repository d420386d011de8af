"""SynthAV, the embedded data set whose right answer is known, as a DataModule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avsal.data.items import VideoItem
from avsal.data.module import Split
from avsal.data.sets.audiovisual import LayoutDataModule
from avsal.data.synthetic import CONDITIONS, SynthSpec, generate
from avsal.errors import ConfigError, DataError
from avsal.files import cache_folder


class SynthAVDataModule(LayoutDataModule):
    """SynthAV, made on first use in the cache: a data set whose right answer is known.

    Args:
        root: folder of a set that `avsal data synth` made; by default one is generated in the cache.
        clips: clips over all conditions.
        synth_seed: seed of the clips.
        seconds: length of a clip.
        observers: simulated observers.
        difficulty: "easy", "medium", "hard", or "mixed".
        conditions: conditions to use in every split.
        test_conditions: conditions to use in test; `conditions` by default.
        ego: the egocentric set instead of the three conditions.
        options: see `SaliencyDataModule`.

    Example:
        >>> data = SynthAVDataModule(clips=24, batch_size=4)
        >>> data.use_spec(model.spec)                        # doctest: +SKIP
        >>> next(iter(data.train_dataloader()))["video"].shape  # doctest: +SKIP
    """

    name = "synthav"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        clips: int = 240,
        synth_seed: int = 0,
        seconds: float | None = None,
        observers: int = 15,
        difficulty: str = "mixed",
        conditions: Sequence[str] = CONDITIONS,
        test_conditions: Sequence[str] | None = None,
        ego: bool = False,
        **options: Any,
    ) -> None:
        if ego:
            conditions = test_conditions = ("ego",)
        for condition in (*conditions, *(test_conditions or ())):
            if condition not in (*CONDITIONS, "ego"):
                raise ConfigError(f"condition {condition!r} is not known; allowed: {', '.join(CONDITIONS)}.")
        super().__init__(root, sets=[f"SynthAV_{c}" for c in conditions], **options)
        self.synth = SynthSpec(
            clips, synth_seed, seconds or (8.0 if ego else 3.0), observers, difficulty, ego
        )
        self.conditions = tuple(conditions)
        self.test_conditions = tuple(test_conditions or conditions)
        self._generate = root is None
        if self._generate:
            self.root = cache_folder() / "synthav" / f"{self.synth.clips}-{self.synth.key}"

    def prepare_data(self) -> None:
        """Generate the set if it is not there yet; several processes may call this at once."""
        if self._generate:
            assert self.root is not None
            generate(self.root, **asdict(self.synth))

    def _packed(self, split: Split) -> list[VideoItem]:
        """Return the chosen conditions' clips of a pack, if `root` is one."""
        packed = super()._packed(split)
        chosen = self.test_conditions if split == "test" else self.conditions
        found = [item for item in packed if item.name.startswith(tuple(f"SynthAV_{c}/" for c in chosen))]
        if packed and not found:
            sets = sorted({item.name.split("/")[0] for item in packed})
            raise DataError(
                f"{self.root} holds {', '.join(sets)} in its {split} split, not of the conditions {', '.join(chosen)}: "
                "choose others with conditions=, or pack the set again."
            )
        return found

    def items(self, split: Split) -> list[VideoItem]:
        """Return the clips of the chosen conditions."""
        self.prepare_data()
        root = self.require_root()
        if not (root / "synthav.json").is_file():
            raise DataError(
                f"{root} is no SynthAV set: synthav.json is missing. Make one with 'avsal data synth --out'."
            )
        found: list[VideoItem] = []
        for condition in self.test_conditions if split == "test" else self.conditions:
            found += self._set_items(root, f"SynthAV_{condition}", split)
        return found
