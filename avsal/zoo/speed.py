"""How fast checkpoints run on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path


def frames_per_second(names: Iterable[str], seconds: float = 2.0) -> dict[str, float]:
    """Return how many frames of a video each checkpoint handles per second, from the file to the maps.

    The video is a generated clip with sound (128x192, 25 frames/s) of the given length. Checkpoints that are not on
    this machine are left out: nothing is fetched.
    """
    from avsal.data.synthetic import generate
    from avsal.errors import WeightsError
    from avsal.zoo.load import from_pretrained

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder) / "clip", clips=1, seed=0, seconds=seconds)
        video = next(generated.rglob("*.mp4"))
        for name in names:
            try:
                module = from_pretrained(name, local_files_only=True).eval()
            except WeightsError:
                continue
            next(iter(module.predict_video(video)))  # the first pass sets up kernels and buffers
            began = time.perf_counter()
            frames = sum(1 for _ in module.predict_video(video))
            found[name] = frames / (time.perf_counter() - began)
    return found
