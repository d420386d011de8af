"""The public scorers of the open sets, transcribed here from their description, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avsal.metrics import crowdsal

EPS32 = np.finfo(np.float32).eps


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """OpenCV's bilinear resize: pixel centres aligned, borders repeated, no antialiasing."""

    def taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, source - 1), at - low

    r0, r1, fr = taps(image.shape[0], height)
    c0, c1, fc = taps(image.shape[1], width)
    rows = image[r0] * (1 - fr)[:, None] + image[r1] * fr[:, None]
    return rows[:, c0] * (1 - fc) + rows[:, c1] * fc


def stretch(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min() + EPS32)


def public_scores(pred: np.ndarray, truth: np.ndarray, fixations: np.ndarray) -> dict[str, float]:
    """Scores of one frame as the extracting script computes them; pred and truth as decoded."""
    q = stretch(truth.astype(np.float64))
    p = bilinear(stretch(pred.astype(np.float64)), *q.shape)
    z, y = ((m - m.mean()) / (m.std() + 1e-7) for m in (p, q))
    values = np.sort(p[fixations[:, 0], fixations[:, 1]])[::-1]
    n, columns = len(values), len({tuple(c) for c in fixations.T.tolist()})
    tp = [0.0, *((i + 1) / n for i in range(n)), 1.0]
    fp = [0.0, *(((p >= v).sum() - (i + 1)) / (p.size - columns) for i, v in enumerate(values)), 1.0]
    return {
        "cc": (z * y).sum() / np.sqrt((z * z).sum() * (y * y).sum() + 1e-7),
        "sim": np.minimum(p / (p.sum() + 1e-7), q / (q.sum() + 1e-7)).sum(),
        "nss": z[fixations[:, 0], fixations[:, 1]].mean(),
        "auc_judd": sum((fp[i + 1] - fp[i]) * (tp[i + 1] + tp[i]) / 2 for i in range(n + 1)),
    }


def stream_scores(pred: np.ndarray, truth: np.ndarray, fixations: np.ndarray) -> dict[str, float]:
    """Scores of one frame as CrowdSAL's later script computes them."""
    p, q = stretch(pred.astype(np.float32)), stretch(truth.astype(np.float32))
    z, y = ((m - m.mean()) / (m.std() + EPS32) for m in (p, q))
    level = np.rint(np.clip(p, 0, 1) * np.float32(65535)).astype(int)
    events = level[fixations[:, 0], fixations[:, 1]]
    fixated = np.zeros(p.shape, bool)
    fixated[fixations[:, 0], fixations[:, 1]] = True
    tp, fp = [0.0], [0.0]
    for threshold in sorted(set(events.tolist()), reverse=True):
        tp.append(float((events >= threshold).mean()))
        fp.append(float((level[~fixated] >= threshold).mean()))
    tp.append(1.0)
    fp.append(1.0)
    return {
        "cc": float((z * y).sum() / np.sqrt((z**2).sum() * (y**2).sum() + EPS32)),
        "sim": float(np.minimum(p / (p.sum() + EPS32), q / (q.sum() + EPS32)).sum()),
        "nss": float(z[fixations[:, 0], fixations[:, 1]].mean()),
        "auc_judd": sum((fp[i + 1] - fp[i]) * (tp[i + 1] + tp[i]) / 2 for i in range(len(tp) - 1)),
    }


def case(seed: int, levels: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pred = np.floor(rng.random(size) ** 3 * levels)
    truth = np.floor(rng.random((24, 40)) ** 4 * 1023)
    fixations = np.stack((rng.integers(0, 24, 30), rng.integers(0, 40, 30)), 1)
    fixations[20:] = fixations[:10]  # coinciding fixations count each
    return pred, truth, fixations


@pytest.mark.parametrize("size", [(24, 40), (13, 17), (60, 90)])
@pytest.mark.parametrize("levels", [255, 4, 65535])
def test_extracting_scorer(levels: int, size: tuple[int, int]) -> None:
    for seed in range(3):
        pred, truth, fixations = case(seed, levels, size)
        maps = crowdsal.prepare(torch.from_numpy(pred)[None], torch.from_numpy(truth)[None])
        ours = crowdsal.scores(*maps, torch.from_numpy(fixations)[None])
        for name, value in public_scores(pred, truth, fixations).items():
            if name == "auc_judd" and levels < 65535 and size != (24, 40):
                continue  # between equal pixels interpolation is equal up to rounding only, and ties decide the AUC
            assert float(ours[name]) == pytest.approx(value, abs=1e-10), name


@pytest.mark.parametrize("levels", [255, 4, 65535])
def test_streaming_scorer(levels: int) -> None:
    for seed in range(3):
        pred, truth, fixations = case(seed, levels, (24, 40))
        ours = crowdsal.stream_scores(
            torch.from_numpy(pred)[None], torch.from_numpy(truth)[None], torch.from_numpy(fixations)[None]
        )
        for name, value in stream_scores(pred, truth, fixations).items():
            assert float(ours[name]) == pytest.approx(value, abs=2e-6), name


def test_padding_diagonal_fixations_and_constant_maps() -> None:
    pred, truth, fixations = case(0, 255, (24, 40))
    diagonal = np.array([[3, 3], [9, 9]])  # both coordinates alike: the script sees one column
    padded = torch.full((3, 30, 2), -1)
    padded[0] = torch.from_numpy(fixations)
    padded[1, :2] = torch.from_numpy(diagonal)
    maps = crowdsal.prepare(torch.from_numpy(np.stack([pred] * 3)), torch.from_numpy(np.stack([truth] * 3)))
    ours = crowdsal.scores(*maps, padded)
    later = crowdsal.stream_scores(*(torch.from_numpy(np.stack([m] * 3)) for m in (pred, truth)), padded)
    for row, points in enumerate((fixations, diagonal)):
        for name, value in public_scores(pred, truth, points).items():
            assert float(ours[name][row]) == pytest.approx(value, abs=1e-10)
        for name, value in stream_scores(pred, truth, points).items():
            assert float(later[name][row]) == pytest.approx(value, abs=2e-6)
    assert all(v[2].isnan() for v in (*ours.values(), *later.values()))
    flat = np.full((24, 40), 7.0)
    maps = crowdsal.prepare(torch.from_numpy(flat)[None], torch.from_numpy(truth)[None])
    ours = crowdsal.scores(*maps, torch.from_numpy(fixations)[None])
    for name, value in public_scores(flat, truth, fixations).items():
        assert float(ours[name]) == pytest.approx(value, abs=1e-10)
