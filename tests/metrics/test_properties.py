"""What must hold for every map: invariances, ranges, agreement with plain definitions, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata
from torch import Tensor

from avsal.metrics import functional as F, random_frames_negatives, video_negatives
from avsal.metrics.inputs import MetricInputError

SIZES = st.tuples(st.integers(2, 9), st.integers(2, 9))
#: Few distinct values, so that ties are common, or arbitrary ones.
VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1, width=32))


@st.composite
def frames(draw: st.DrawFn, values: st.SearchStrategy = VALUES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A prediction, a density, fixations (some frames may have none, pixels may repeat) and negatives."""
    height, width = draw(SIZES)
    maps = draw(hnp.arrays(np.float64, (2, 2, height, width), elements=values))
    points = draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=7))
    others = draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=7))
    return (
        torch.from_numpy(maps[0]),
        torch.from_numpy(maps[1]),
        torch.tensor([points, points[::-1]], dtype=torch.int64).reshape(2, -1, 2),
        torch.tensor([others, others[::-1]], dtype=torch.int64).reshape(2, -1, 2),
    )


def same(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=1e-9, equal_nan=True)


def matlab_auc_judd(pred: np.ndarray, fix: np.ndarray) -> float:
    """The ROC of the definition: thresholds at the fixated values, one point per fixation, trapezoid."""
    order = np.sort(pred[fix])[::-1]
    total, count = pred.size, len(order)
    tp, fp = [0.0], [0.0]
    for i, threshold in enumerate(order, 1):
        above = (pred >= threshold).sum()
        tp.append(i / count)
        fp.append((above - i) / (total - count))
    return float(np.trapezoid([*tp, 1.0], [*fp, 1.0]))


@settings(max_examples=150, deadline=None)
@given(frames())
def test_auc_judd_is_the_roc_of_its_definition(case: tuple[Tensor, ...]) -> None:
    pred, _, fix, _ = case
    ours = F.auc_judd(pred, fix, ties="matlab")
    for frame in range(2):
        mask = np.zeros(pred.shape[1:], bool)
        mask[tuple(fix[frame].numpy().T)] = True
        if not mask.any() or mask.all() or pred[frame].amax() == pred[frame].amin():
            assert ours[frame].isnan()
        else:
            assert float(ours[frame]) == pytest.approx(matlab_auc_judd(pred[frame].numpy(), mask), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(frames())
def test_rank_forms_are_mann_whitney(case: tuple[Tensor, ...]) -> None:
    pred, _, fix, other = case
    rank, exact = F.auc_judd(pred, fix, method="rank"), F.sauc(pred, fix, other, method="exact")
    expected = F.auc_judd(pred, fix)
    for frame in range(2):
        values = pred[frame].numpy()
        mask, others = np.zeros(values.shape, bool), np.zeros(values.shape, bool)
        mask[tuple(fix[frame].numpy().T)] = True
        others[tuple(other[frame].numpy().T)] = True
        n, m = mask.sum(), others.sum()
        if n and m:
            ranks = rankdata(np.concatenate((values[mask], values[others])))[:n]
            assert float(exact[frame]) == pytest.approx((ranks.sum() - n * (n + 1) / 2) / (n * m), abs=1e-12)
        if n and n < values.size:
            m = values.size - n
            ranks = rankdata(np.concatenate((values[mask], values[~mask])))[:n]
            whitney = (ranks.sum() - n * (n + 1) / 2) / (n * m)
            assert float(rank[frame]) == pytest.approx(whitney, abs=1e-12)
            low = values[mask].min()
            e, g = (values[~mask] == low).sum(), (values[mask] == low).sum()
            bonus = ((values[~mask] > low).sum() + e * g / (g + 1)) / (2 * n * m)
            assert float(expected[frame]) == pytest.approx(whitney + bonus, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    frames(), st.sampled_from([torch.exp, lambda x: x**3 + x, lambda x: 5 * x - 2, lambda x: (x + 1).log()])
)
def test_rank_metrics_ignore_monotone_changes(case: tuple[Tensor, ...], change) -> None:
    pred, _, fix, other = case
    pred = (pred * 64).round() / 64  # so that no change merges values
    for ties in ("expected", "matlab"):
        assert same(F.auc_judd(change(pred), fix, ties=ties), F.auc_judd(pred, fix, ties=ties))
    assert same(F.sauc(change(pred), fix, other, method="exact"), F.sauc(pred, fix, other, method="exact"))


@settings(max_examples=100, deadline=None)
@given(frames(st.integers(0, 50).map(float)), st.sampled_from([0.25, 1.0, 8.0]), st.sampled_from([0.0, 16.0]))
def test_affine_changes(case: tuple[Tensor, ...], scale: float, shift: float) -> None:
    pred, density, fix, other = case
    moved = scale * pred + shift
    assert same(F.cc(moved, density), F.cc(pred, density))
    assert same(F.nss(moved, fix), F.nss(pred, fix))
    assert same(F.sim(moved, density), F.sim(pred, density))
    assert same(F.sim(scale * pred, density, norm="sum"), F.sim(pred, density, norm="sum"))
    assert same(F.kl_div(scale * pred, density), F.kl_div(pred, density))
    assert same(F.sauc(moved, fix, other), F.sauc(pred, fix, other))
    assert same(F.auc_borji(moved, fix), F.auc_borji(pred, fix))


@settings(max_examples=100, deadline=None)
@given(frames())
def test_ranges_symmetry_and_identity(case: tuple[Tensor, ...]) -> None:
    pred, density, fix, other = case
    for score, low, high in (
        (F.cc(pred, density), -1, 1),
        (F.sim(pred, density), 0, 1),
        (F.sim(pred, density, norm="sum"), 0, 1),
        (F.auc_judd(pred, fix), 0, 1),
        (F.auc_borji(pred, fix), 0, 1),
        (F.sauc(pred, fix, other), 0, 1),
        (F.kl_div(pred, density), -1e-9, np.inf),
    ):
        score = score[~score.isnan()]
        assert ((score >= low - 1e-12) & (score <= high + 1e-12)).all()
    varied = (pred.amax((1, 2)) > pred.amin((1, 2))) & (density.amax((1, 2)) > density.amin((1, 2)))
    assert same(F.cc(pred, density)[varied], F.cc(density, pred)[varied])
    assert same(F.sim(pred, density)[varied], F.sim(density, pred)[varied])
    assert same(F.cc(density, density)[varied], torch.ones(int(varied.sum()), dtype=torch.float64))
    assert same(F.sim(density, density)[varied], torch.ones(int(varied.sum()), dtype=torch.float64))
    assert (F.kl_div(density, density)[varied].abs() < 1e-9).all()
    assert same(
        F.information_gain(pred, fix, pred),
        torch.zeros(2, dtype=torch.float64).where(
            torch.tensor(fix.shape[1] > 0), torch.tensor(torch.nan, dtype=torch.float64)
        ),
    )


@settings(max_examples=60, deadline=None)
@given(frames())
def test_batches_padding_and_repetition_do_not_matter(case: tuple[Tensor, ...]) -> None:
    pred, density, fix, other = case
    padding = torch.full((2, 3, 2), -1)
    padded = torch.cat((padding, fix, padding), 1)
    repeated = torch.cat((fix, fix), 1)
    for metric in (
        lambda p, f, o: F.nss(p, f),
        lambda p, f, o: F.auc_judd(p, f),
        lambda p, f, o: F.auc_borji(p, f),
        lambda p, f, o: F.sauc(p, f, o),
        lambda p, f, o: F.sauc(p, f, o, method="exact"),
    ):
        batched = metric(pred, fix, other)
        # Padding changes the order of a sum: its rounding is all that may differ, which shows where the sum is 0.
        assert same(metric(pred, padded, other), batched, 1e-15)
        assert same(metric(pred, repeated, other), batched, 1e-12)
        assert same(torch.stack([metric(pred[i], fix[i], other[i]) for i in range(2)]), batched, 1e-12)
        assert same(
            metric(pred.reshape(2, 1, *pred.shape[1:]), fix[:, None], other[:, None])[:, 0], batched, 0
        )
    assert same(torch.stack([F.cc(pred[i], density[i]) for i in range(2)]), F.cc(pred, density), 1e-12)


@settings(max_examples=80, deadline=None)
@given(frames(st.integers(0, 255).map(float)))
def test_float32_ranks_are_exact(case: tuple[Tensor, ...]) -> None:
    pred, _, fix, other = case
    for metric in (
        lambda p: F.auc_judd(p, fix),
        lambda p: F.auc_borji(p, fix),
        lambda p: F.sauc(p, fix, other),
        lambda p: F.sauc(p, fix, other, method="exact"),
    ):
        double = metric(pred)
        assert same(metric(pred.float()), double.float(), 0)
        assert same(metric(pred.to(torch.uint8)), double.float(), 0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 3, 1e-5, 255.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_predictions_score_chance_or_nan(value: float, dtype: torch.dtype) -> None:
    pred = torch.full((1, 10, 12), value, dtype=dtype)
    density = torch.rand((1, 10, 12), generator=torch.Generator().manual_seed(0), dtype=dtype)
    fix, other = torch.tensor([[[1, 2], [3, 4], [9, 11]]]), torch.tensor([[[5, 5], [0, 0]]])
    uniform = torch.full_like(pred, 1 / 120)
    scores = {
        "cc": (lambda **o: F.cc(pred, density, **o), 0.0),
        "nss": (lambda **o: F.nss(pred, fix, **o), 0.0),
        "sim": (lambda **o: F.sim(pred, density, **o), float(F.sim(uniform, density))),
        "auc_judd": (lambda **o: F.auc_judd(pred, fix, **o), 0.5 + 1 / 8),
        "rank": (lambda **o: F.auc_judd(pred, fix, method="rank", **o), 0.5),
        "auc_borji": (lambda **o: F.auc_borji(pred, fix, **o), 0.5),
        "sauc": (lambda **o: F.sauc(pred, fix, other, **o), 0.5),
    }
    for name, (score, chance) in scores.items():
        assert float(score()) == pytest.approx(chance, abs=1e-6), name
        assert score(constant="nan").isnan().all(), name
    # Rounding of a mean must not give a constant map a spread.
    nearly = torch.full((1, 10, 12), 0.3, dtype=torch.float64)
    nearly[0, 4, 4] += 5e-17
    assert float(F.nss(nearly, fix)) == 0.0


def test_tiny_and_shifted_maps_keep_their_scores() -> None:
    g = torch.Generator().manual_seed(0)
    pred = torch.rand((3, 40, 50), generator=g)
    density = torch.rand((3, 40, 50), generator=g)
    fix = torch.randint(0, 40, (3, 9, 2), generator=g)
    for scale in (1e-20, 1e20):
        assert same(F.cc(pred * scale, density), F.cc(pred, density), 1e-5)
        assert same(F.nss(pred * scale, fix), F.nss(pred, fix), 1e-5)


def test_everything_is_refused_that_cannot_be_scored() -> None:
    pred, density = torch.rand(2, 5, 6), torch.rand(2, 5, 6)
    fix = torch.zeros((2, 3, 2), dtype=torch.int64)
    for broken, message in (
        (lambda: F.cc(pred, density[:, :4]), "resize"),
        (lambda: F.cc(pred.masked_fill(pred > 0.9, torch.nan), density), "NaN"),
        (lambda: F.nss(pred.masked_fill(pred > 0.9, torch.inf), fix), "NaN"),
        (lambda: F.nss(pred, fix + 5), r"\(5, 5\)"),
        (lambda: F.nss(pred, fix - 2), "outside"),
        (lambda: F.nss(pred, fix.float()), "integer"),
        (lambda: F.nss(pred, fix[0]), "shape"),
        (lambda: F.auc_judd(pred, fix, ties="random"), "'expected', 'matlab'"),
        (lambda: F.auc_judd(pred, fix, duplicates=True), "rank"),
        (lambda: F.sim(pred, density, norm="max"), "norm"),
        (lambda: F.kl_div(pred - 0.9, density), "logits"),
        (lambda: F.sauc(pred, fix, fix, step=0.0), "step"),
        (lambda: F.cc(torch.rand(5), torch.rand(5)), "H, W"),
        (lambda: F.cc(pred, density, constant="zero"), "constant"),
    ):
        with pytest.raises(MetricInputError, match=message):
            broken()


def test_empty_batches_and_empty_fixation_lists() -> None:
    assert F.cc(torch.rand(0, 5, 6), torch.rand(0, 5, 6)).shape == (0,)
    nothing = torch.zeros((2, 0, 2), dtype=torch.int64)
    pred = torch.rand(2, 5, 6)
    for score in (
        F.nss(pred, nothing),
        F.auc_judd(pred, nothing),
        F.auc_borji(pred, nothing),
        F.sauc(pred, nothing, nothing),
        F.sauc(pred, nothing, nothing, method="sampled"),
        F.auc_borji(pred, nothing, method="sampled"),
        F.information_gain(pred, nothing, pred),
    ):
        assert score.isnan().all()
    assert F.fixation_points(torch.zeros(2, 5, 6)).shape == (2, 0, 2)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))))
def test_fixation_points_and_video_negatives(maps: np.ndarray) -> None:
    points = F.fixation_points(torch.from_numpy(maps))
    negatives = video_negatives(points)
    union = maps.any(0)
    for frame in range(len(maps)):
        back, others = np.zeros(maps.shape[1:], int), np.zeros(maps.shape[1:], int)
        kept = points[frame][points[frame, :, 0] >= 0].numpy()
        np.add.at(back, tuple(kept.T), 1)
        assert (back == maps[frame]).all()
        kept = negatives[frame][negatives[frame, :, 0] >= 0].numpy()
        np.add.at(others, tuple(kept.T), 1)
        assert (others == (union & ~maps[frame])).all()
    assert (video_negatives(points, exclude=False)[..., 0] >= 0).sum() == union.sum() * len(maps)


def test_random_frames_negatives_are_unions_of_drawn_frames() -> None:
    g = torch.Generator().manual_seed(0)
    fix = torch.randint(0, 30, (40, 4, 2), generator=g)
    first, again, other = (random_frames_negatives(fix, frames=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    everything = {tuple(p) for p in fix.reshape(-1, 2).tolist()}
    for row in first:
        points = [tuple(p) for p in row[row[:, 0] >= 0].tolist()]
        assert len(points) == len(set(points)) <= 40
        assert len(points) > 30
        assert set(points) <= everything
    few = random_frames_negatives(fix[:3], frames=10)
    assert {tuple(p) for p in few[0].tolist() if p[0] >= 0} == {
        tuple(p) for p in fix[:3].reshape(-1, 2).tolist()
    }
