"""CSTS on miniatures: test clips, labels of raw gaze and thresholds as the authors' code has them (see README.md)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from avsal.data import AriaGazeDataModule, Ego4DGazeDataModule
from avsal.data.gaze.clips import read_ego4d_gaze
from avsal.models.csts import CSTS, CSTSModule
from tests.recipes.miniature import csts_clips, ego4d_gaze

REFERENCE = np.load(Path(__file__).with_name("csts.npz"))


def test_raw_gaze_is_labelled_as_the_authors_script_does_where_it_is_asked_for(tmp_path: Path) -> None:
    path = ego4d_gaze(tmp_path)
    expected = REFERENCE["labels"]
    times = expected[:, 0] / 30
    found = read_ego4d_gaze(path, times, released=True)
    np.testing.assert_allclose(found, expected[:, 1:], atol=1e-9)
    # By itself a sample at (0, 0) is lost, so is a frame in a gap, and the last samples count.
    careful = read_ego4d_gaze(path, times)
    zero = (expected[:, 1] == 0) & (expected[:, 2] == 1) & (expected[:, 3] != 3)
    assert zero.sum() >= 5
    assert (careful[zero, 2] == 3).all()
    assert (careful[:, 2] == 3).sum() > zero.sum()


def test_the_paper_protocol_reads_ego4ds_labels_so(tmp_path: Path) -> None:
    ego4d_gaze(tmp_path)
    (tmp_path / "full_scale.gaze").mkdir()
    (tmp_path / "full_scale.gaze" / "miniature.mp4").write_bytes(b"")
    data = Ego4DGazeDataModule(tmp_path)
    kinds = []
    for coverage in ("full", "authors"):
        data.coverage = coverage  # type: ignore[assignment]
        item = data.recording("miniature")
        assert item is not None
        kinds.append(item.gaze_kind)
    assert kinds == ["ego4d", "ego4d-released"]


def test_a_test_clip_is_the_authors(tmp_path: Path) -> None:
    data = Ego4DGazeDataModule(csts_clips(tmp_path), stored_spectrograms=True, num_workers=0)
    network = CSTS(embed_dim=8, depths=(1, 1, 1, 1), contrast_dim=8)
    data.use_spec(network.spec)
    batch = next(iter(data.test_dataloader()))
    frames = (batch["video"][0] * 0.225 + 0.45) * 255
    # Within two grey levels: encoders of H.264 differ a little from version to version.
    assert np.abs(frames[:, ::3, ::16, ::16].numpy() - REFERENCE["frames"]).max() <= 2
    assert batch["frame"][0].tolist() == REFERENCE["frame_numbers"].tolist()
    np.testing.assert_allclose(batch["gaze"][0].numpy(), REFERENCE["gaze"][:, :2], atol=1e-5)
    assert batch["gaze_type"][0].tolist() == REFERENCE["gaze"][:, 2].tolist()
    np.testing.assert_allclose(batch["density"][0, :, ::4, ::4].numpy(), REFERENCE["heatmaps"], atol=1e-6)
    heard = network.windows.cut(
        batch["spectrogram"], batch["columns"], batch["seconds"], batch["frame_times"]
    )
    np.testing.assert_allclose(heard[0, 0, :, ::32, ::32].numpy(), REFERENCE["audio"], atol=1e-6)


TINY: dict[str, Any] = {
    "size": (32, 32), "embed_dim": 8, "depths": (1, 1, 1, 1), "contrast_dim": 8, "spectrogram": (128, 32), "frames": 4,
}  # fmt: skip


def test_thresholds_are_those_of_the_data_set_that_is_scored(tmp_path: Path) -> None:
    aria, ego4d = AriaGazeDataModule(tmp_path), Ego4DGazeDataModule(tmp_path)
    lists = {"aria": np.linspace(0, 0.02, 21), "ego4d": np.linspace(0.01, 0.07, 31)}
    for timing in ("ego4d", "aria"):
        module = CSTSModule(timing=timing, **TINY)  # type: ignore[arg-type]
        for name, data in (("aria", aria), ("ego4d", ego4d), ("aria", aria)):
            # One module, tested on one set after another.
            module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
            np.testing.assert_allclose(module.metrics("test").levels, lists[name])  # type: ignore[attr-defined]
            np.testing.assert_allclose(module.build_metrics("test", data).levels, lists[name])
        module._trainer = None
        np.testing.assert_allclose(module.build_metrics("test", None).levels, lists[timing])
    estimation = CSTSModule(task="estimation", **TINY)
    np.testing.assert_allclose(estimation.build_metrics("test", ego4d).levels, np.linspace(0, 0.02, 11))
    own = CSTSModule(metric_thresholds=[0.1, 0.5], **TINY)
    assert own.build_metrics("test", aria).levels.tolist() == [0.1, 0.5]
