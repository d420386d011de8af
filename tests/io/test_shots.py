"""Cuts between known shots are found, and motion, fades and noise are none."""

from __future__ import annotations

import numpy as np
import pytest

from avsal.io.shots import ShotDetector


def scene(seed: int, shift: int = 0) -> np.ndarray:
    """A picture (90, 160, 3) of coloured blocks, moved by `shift` pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 20, 3), dtype=np.uint8)
    return np.roll(blocks.repeat(10, 0).repeat(10, 1), shift, axis=1)[:, :160]


def cuts(images: list[np.ndarray], fps: float = 25.0) -> list[int]:
    detector = ShotDetector()
    return [n for n, image in enumerate(images) if detector.push(image, n / fps)]


def test_each_hard_cut_is_found_at_the_first_frame_of_the_new_shot() -> None:
    images = [scene(seed, n) for seed in range(4) for n in range(20)]
    assert cuts(images) == [20, 40, 60]


def test_motion_noise_and_a_slow_dissolve_are_no_cuts() -> None:
    random = np.random.default_rng(0)
    moving = [scene(1, 2 * n) for n in range(40)]
    noisy = [
        np.clip(scene(2) + random.normal(0, 12, (90, 160, 3)), 0, 255).astype(np.uint8) for _ in range(30)
    ]
    mix = np.linspace(0, 1, 40)[:, None, None, None]
    dissolve = list((scene(3) * (1 - mix) + scene(4) * mix).astype(np.uint8))
    for images in (moving, noisy, dissolve):
        assert cuts(images) == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1080, 1920)])
def test_pictures_of_any_size_are_taken(shape: tuple[int, int]) -> None:
    dark, light = np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8)
    assert cuts([dark] * 5 + [light] * 5) == [5]
