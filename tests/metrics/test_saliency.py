"""The metric collection: averaging, repetition, order, and what is said about frames without a score."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.metrics import (
    GazeMetrics,
    SaliencyMetrics,
    ShuffledAUC,
    cc,
    fold_mean,
    functional,
    nss,
    video_negatives,
)
from avsal.metrics.inputs import MetricInputError

ALL = ("cc", "nss", "auc_judd", "sauc", "sim", "kl", "auc_borji")


def make(frames: int = 23, size: tuple[int, int] = (18, 26), seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    pred = torch.rand((frames, *size), generator=g, dtype=torch.float64)
    density = torch.rand((frames, *size), generator=g, dtype=torch.float64) ** 3
    fixations = torch.stack(
        (torch.randint(size[0], (frames, 9), generator=g), torch.randint(size[1], (frames, 9), generator=g)),
        -1,
    )
    fixations[3] = -1  # a frame that nobody looked at
    fixations[5, 4:] = -1
    video = torch.tensor([0] * 5 + [7] * 11 + [2**62] * (frames - 16))
    frame = torch.cat([torch.arange(n) for n in (5, 11, frames - 16)])
    return {
        "pred": pred,
        "density": density,
        "fixations": fixations,
        "negatives": video_negatives(fixations),
        "video_id": video,
        "frame": frame,
    }


def score(data: dict[str, Tensor], order: Tensor, batch: int = 4, **options) -> SaliencyMetrics:
    metric = SaliencyMetrics(ALL, **options)
    for part in order.split(batch):
        metric.update(**{k: v[part] for k, v in data.items()})
    return metric


def by_hand(data: dict[str, Tensor], name: str, average: str = "video") -> float:
    """Frame by frame through the pure functions, averaged in Python."""
    per_frame: dict[int, list[float]] = {}
    for i in range(len(data["pred"])):
        p, f = data["pred"][i], data["fixations"][i]
        value = {
            "cc": lambda p=p, i=i: functional.cc(p, data["density"][i]),
            "nss": lambda p=p, f=f: functional.nss(p, f),
            "auc_judd": lambda p=p, f=f: functional.auc_judd(p, f),
            "sauc": lambda p=p, f=f, i=i: functional.sauc(p, f, data["negatives"][i]),
            "sim": lambda p=p, i=i: functional.sim(p, data["density"][i]),
            "kl": lambda p=p, i=i: functional.kl_div(p, data["density"][i]),
            "auc_borji": lambda p=p, f=f: functional.auc_borji(p, f),
        }[name]()
        if (f >= 0).any() and not math.isnan(float(value)):
            per_frame.setdefault(int(data["video_id"][i]), []).append(float(value))
    if average == "frame":
        everything = [v for values in per_frame.values() for v in values]
        return sum(everything) / len(everything)
    means = [sum(v) / len(v) for v in per_frame.values()]
    return sum(means) / len(means)


@pytest.mark.parametrize("average", ["video", "frame"])
def test_averages_frame_then_video_then_data_set(average: str) -> None:
    data = make()
    metric = score(data, torch.arange(23), average=average)
    result = metric.compute()
    assert list(result) == list(ALL)
    for name, value in result.items():
        assert isinstance(value, float)
        assert value == pytest.approx(by_hand(data, name, average), abs=1e-12)
    used = metric.frames_used()
    assert used["frames"] == 23
    assert {used[f"frames_{m}"] for m in ALL} == {22}
    assert used["videos"] == 3
    videos = metric.per_video({7: "clip7"})
    assert set(videos) == {0, "clip7", 2**62}
    assert videos[0]["frames"] == 5
    assert videos[0]["frames_cc"] == 4


def test_order_and_repetition_change_nothing() -> None:
    data = make()
    plain = score(data, torch.arange(23)).compute()
    g = torch.Generator().manual_seed(5)
    shuffled = torch.cat((torch.randperm(23, generator=g), torch.tensor([2, 9, 9, 22])))
    assert score(data, shuffled, batch=3).compute() == plain


def test_clips_with_several_maps_and_unlabelled_frames() -> None:
    data = make(frames=24)
    flat = SaliencyMetrics(ALL)
    labelled = torch.ones(24, dtype=torch.bool)
    labelled[[1, 10]] = False
    flat.update(**data, labelled=labelled)
    clips = SaliencyMetrics(ALL)
    shaped = {k: v.reshape(12, 2, *v.shape[1:]) for k, v in data.items()}
    clips.update(**shaped, labelled=labelled.reshape(12, 2))
    assert clips.compute() == flat.compute()
    assert clips.frames_used()["frames"] == 22


def test_prediction_is_resized_to_the_ground_truth() -> None:
    data = make()
    small = torch.rand((23, 9, 13), dtype=torch.float64)
    from avsal.metrics import resize_maps

    direct = SaliencyMetrics()
    direct.update(**{**data, "pred": resize_maps(small, (18, 26))})
    resized = SaliencyMetrics()
    resized.update(**{**data, "pred": small})
    assert resized.compute() == direct.compute()


def test_predictions_with_nan_are_counted_and_said() -> None:
    data = make()
    data["pred"][8, 3, 3] = torch.nan
    data["pred"][9, 0, 0] = torch.inf
    metric = SaliencyMetrics(ALL)
    with pytest.warns(UserWarning, match="frames_failed"):
        metric.update(**data)
    used = metric.frames_used()
    assert used["frames_failed"] == 2
    assert used["frames_cc"] == 20
    assert metric.per_video()[7]["frames_failed"] == 2
    kept = [i for i in range(23) if i not in (8, 9)]
    assert metric.compute() == pytest.approx(score(data, torch.tensor(kept)).compute(), abs=1e-12)
    with pytest.raises(MetricInputError, match="NaN"):
        SaliencyMetrics(ALL, nan="raise").update(**data)


def test_frame_without_fixations_counts_for_nothing_unless_asked() -> None:
    data = make()
    data["density"][3] = 0
    default = score(data, torch.arange(23))
    mit = score(data, torch.arange(23), empty="mit")
    assert default.frames_used()["frames_sim"] == 22
    assert mit.frames_used()["frames_sim"] == 23
    assert mit.frames_used()["frames_nss"] == 22
    assert mit.per_video()[0]["sim"] == pytest.approx(default.per_video()[0]["sim"] * 4 / 5)


def test_missing_ground_truth_gives_nan_for_what_needs_it() -> None:
    data = make()
    metric = SaliencyMetrics(ALL)
    metric.update(data["pred"], None, data["fixations"], video_id=data["video_id"], frame=data["frame"])
    result = metric.compute()
    assert math.isnan(result["cc"])
    assert math.isnan(result["sauc"])
    assert result["nss"] == pytest.approx(by_hand(data, "nss"), abs=1e-12)
    assert metric.frames_used()["frames_cc"] == 0


def test_no_frames_is_nan_and_a_warning() -> None:
    metric = SaliencyMetrics()
    with pytest.warns(UserWarning, match="no frame"):
        assert all(math.isnan(v) for v in metric.compute().values())


def test_reset_and_frames_numbered_by_themselves() -> None:
    data = make()
    metric = SaliencyMetrics()
    for i in range(23):
        metric.update(
            data["pred"][i : i + 1],
            data["density"][i : i + 1],
            data["fixations"][i : i + 1],
            data["negatives"][i : i + 1],
            video_id=data["video_id"][i : i + 1],
        )
    assert metric.compute() == pytest.approx({m: by_hand(data, m) for m in metric.metrics}, abs=1e-12)
    metric.reset()
    metric.update(**data)
    assert metric.frames_used()["frames"] == 23


def test_state_is_a_few_numbers_per_frame() -> None:
    metric = score(make(), torch.arange(23))
    assert sum(t.numel() for state in (metric._keys, metric._scores) for t in state) == 23 * (3 + len(ALL))


def test_single_metric_and_conventions() -> None:
    data = make()
    one = ShuffledAUC(sauc_method="exact")
    one.update(**data)
    whole = SaliencyMetrics(("sauc",), conventions="pysaliency", duplicates=False)
    whole.update(**data)
    assert float(one.compute()) == whole.compute()["sauc"]
    assert one.higher_is_better
    assert one.conventions.describe()["sauc_method"] == "exact"
    assert whole.conventions.name == "pysaliency"


@pytest.mark.parametrize(
    "broken",
    [
        {"metrics": ("cc", "emd")},
        {"metrics": ()},
        {"conventions": "mine"},
        {"average": "clip"},
        {"metrics": ("ig",)},
        {"metrics": ("kl",), "conventions": "crowdsal"},
    ],
)
def test_bad_options_are_refused(broken: dict) -> None:
    with pytest.raises(MetricInputError):
        SaliencyMetrics(**broken)


def test_information_gain_over_a_centre_prior() -> None:
    data, prior = make(), torch.rand((6, 8))
    metric = SaliencyMetrics(("ig",), baseline=prior)
    metric.update(**data)
    from avsal.metrics import resize_maps

    baseline = resize_maps(prior.double(), (18, 26)).clamp(min=0)
    per_frame = functional.information_gain(data["pred"], data["fixations"], baseline)
    videos = [per_frame[data["video_id"] == v].nanmean() for v in data["video_id"].unique()]
    assert metric.compute()["ig"] == pytest.approx(float(torch.stack(videos).mean()), abs=1e-9)


def test_fold_mean() -> None:
    assert fold_mean([{"cc": 0.2, "nss": 1.0}, {"cc": 0.5, "nss": 2.0}]) == {"cc": 0.35, "nss": 1.5}
    with pytest.raises(MetricInputError):
        fold_mean([])


def test_plot_shows_every_video(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    metric = score(make(), torch.arange(23))
    figure, axes = metric.plot()
    assert [len(a.lines[0].get_xdata()) for a in axes.flat] == [3] * len(ALL)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_numpy_arrays_and_lists_score_as_tensors() -> None:
    random = np.random.default_rng(0)
    pred, density = random.random((3, 8, 9)), random.random((3, 8, 9)).astype(np.float32)
    points = np.stack([random.integers(0, 8, (3, 4)), random.integers(0, 9, (3, 4))], -1)
    one, other = SaliencyMetrics(("cc", "nss")), SaliencyMetrics(("cc", "nss"))
    one.update(
        pred, density, points, video_id=np.array([0, 0, 1]), frame=[0, 1, 0], labelled=[True, True, True]
    )
    other.update(torch.from_numpy(pred), torch.from_numpy(density), torch.from_numpy(points),
                 video_id=torch.tensor([0, 0, 1]), frame=torch.tensor([0, 1, 0]))  # fmt: skip
    assert one.compute() == other.compute()
    assert float(nss(pred, points).mean()) == pytest.approx(
        float(nss(*map(torch.from_numpy, (pred, points))).mean())
    )
    flipped = pred[:, ::-1]  # negative strides
    assert torch.equal(cc(flipped, density), cc(flipped.copy(), density))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"video_id": "concert"}, "video_id holds no whole numbers"),
        ({"video_id": ["a", "b"]}, "video_id holds no whole numbers"),
        ({"video_id": 0.5}, "video_id holds no whole numbers"),
        ({"frame": "first"}, "frame holds no whole numbers"),
        ({"pred": "a.png"}, "pred holds no numbers"),
        ({"pred": [[1, 2], [3]]}, "pred holds no numbers"),
        ({"density": object()}, "density holds no numbers"),
        ({"fixations": np.array([["1", "2"]])}, "fixations holds no numbers"),
        ({"labelled": "yes"}, "labelled holds no numbers"),
    ],
)
def test_what_holds_no_numbers_is_refused_by_name(change: dict, says: str) -> None:
    given = {"pred": torch.rand(2, 4, 5), "density": torch.rand(2, 4, 5)}
    with pytest.raises(MetricInputError, match=says):
        SaliencyMetrics(("cc",)).update(**{**given, **change})
    if "fixations" not in change:
        given = {"pred": torch.rand(2, 1, 4, 5), "target": torch.rand(2, 1, 4, 5)}
        names = {"density": "target"}
        with pytest.raises(MetricInputError, match=says.replace("density", "target")):
            GazeMetrics().update(**{**given, **{names.get(k, k): v for k, v in change.items()}})
