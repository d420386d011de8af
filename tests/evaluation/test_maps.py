"""`avsal evaluate` on self-made predictions and ground truth of every layout."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from avsal.cli import _run
from avsal.errors import AvsalError, DataError
from avsal.evaluation.maps import write_csv
from avsal.evaluation.pairs import Predictions
from avsal.evaluation.results import Data, Results
from avsal.metrics import SaliencyMetrics, fixation_points, video_negatives
from tests.metrics.test_crowdsal import public_scores, stream_scores

SIZE = (24, 40)


def write_video(path: Path, frames: np.ndarray, pixels: str, codec: str = "ffv1") -> None:
    """Encode (T, H, W) frames losslessly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if codec == "libx264":
            stream.options = {"qp": "0", "preset": "ultrafast"}
        for frame in frames:
            if pixels == "yuv420p":
                picture = av.VideoFrame(frame.shape[1], frame.shape[0], "yuv420p")
                planes = (frame, *(np.full((frame.shape[0] // 2, frame.shape[1] // 2), 128, np.uint8),) * 2)
                for plane, values in zip(picture.planes, planes, strict=True):
                    padded = np.zeros((plane.height, plane.line_size), np.uint8)
                    padded[:, : values.shape[1]] = values
                    plane.update(padded.tobytes())
            else:
                picture = av.VideoFrame.from_ndarray(frame, format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def blobs(rng: np.random.Generator, frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth (T, H, W) maps in 0..1."""
    y, x = np.mgrid[: size[0], : size[1]]
    out = []
    for _ in range(frames):
        cy, cx = rng.uniform(0.2, 0.8, 2) * size
        out.append(
            np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * (size[0] / 6) ** 2)) + 0.02 * rng.random(size)
        )
    out = np.array(out)
    return (out - out.min((1, 2), keepdims=True)) / np.ptp(out, axis=(1, 2), keepdims=True)


def command(tmp_path: Path, *words: str) -> int:
    folders = ["--predictions", str(tmp_path / "pred"), "--ground-truth", str(tmp_path / "truth")]
    return _run(["evaluate", *folders, "--out", str(tmp_path / "out"), "--quiet", *words])


def run(tmp_path: Path, *words: str) -> tuple[int, Results]:
    status = command(tmp_path, *words)
    (path,) = (tmp_path / "out").glob("*.json")
    return status, Results.read(path)


# -- folders of images -------------------------------------------------------------------------------


def stavis_truth(
    root: Path, rng: np.random.Generator, names: tuple[str, ...], frames: int = 7
) -> dict[str, dict]:
    truth = {}
    for name in names:
        density = np.round(blobs(rng, frames) * 255).astype(np.uint8)
        fixated = rng.random((frames, *SIZE)) < 0.01
        fixated[2] = False
        (root / name / "maps").mkdir(parents=True)
        for k in range(frames):
            Image.fromarray(density[k]).save(root / name / "maps" / f"eyeMap_{k + 1:05d}.png")
            savemat(root / name / f"fixMap_{k + 1:05d}.mat", {"eyeMap": fixated[k].astype(np.uint8)})
        truth[name] = {"density": density / 255, "fixated": fixated}
    return truth


def expected(truth: dict[str, dict], maps: dict[str, np.ndarray], frames: range) -> SaliencyMetrics:
    metric = SaliencyMetrics()
    for number, (name, t) in enumerate(truth.items()):
        points = fixation_points(torch.from_numpy(t["fixated"]))
        negatives = video_negatives(points)
        which = list(frames)
        metric.update(
            torch.from_numpy(maps[name][which].astype(np.float32)),
            torch.from_numpy(t["density"][which].astype(np.float32)),
            points[which],
            negatives[which],
            video_id=number,
            frame=torch.tensor(which),
        )
    return metric


@pytest.mark.parametrize("kind", ["images", "video", "npz", "npy", "predict"])
def test_stavis_layout_with_every_kind_of_prediction(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    truth = stavis_truth(tmp_path / "truth", rng, ("clip1", "set/clip2"))
    bytes_ = {name: np.round(blobs(rng, 7, (15, 25)) * 255).astype(np.uint8) for name in truth}
    first = 2 if kind in ("images", "npz", "predict") else 0  # these kinds may leave frames out
    for name, maps in bytes_.items():
        base = tmp_path / "pred" / Path(name).name
        base.parent.mkdir(exist_ok=True)
        if kind == "images":
            base.mkdir()
            for k in range(first, 7):
                Image.fromarray(maps[k]).save(base / f"pred_sal_{k + 1:06d}.png")
        elif kind == "video":
            write_video(base.with_suffix(".mkv"), maps, "gray")
        elif kind == "npz":
            np.savez(base.with_suffix(".npz"), maps=maps[first:], frame=np.arange(first, 7))
        elif kind == "npy":
            np.save(base.with_suffix(".npy"), maps / 255.0)
        else:
            base.mkdir()
            np.save(base / "maps.npy", maps[first:, None].astype(np.float32))
            peaks = [{"frame": k, "time": k / 25} for k in range(first, 7)]
            (base / "summary.json").write_text(json.dumps({"peaks": peaks}))
            (base / "overlay.mp4").write_bytes(b"not looked at")
    status, results = run(tmp_path)
    metric = expected(truth, bytes_, range(first, 7))
    assert status == 0
    assert results.metrics == pytest.approx(metric.compute(), abs=1e-5)
    assert results.frames == metric.frames_used()
    assert results.videos["set/clip2"]["nss"] == pytest.approx(metric.per_video()[1]["nss"], abs=1e-5)
    assert results.conventions["auc_judd_ties"] == "expected"
    assert len(results.notes) == (2 if first else 0)
    (table,) = (tmp_path / "out").glob("*.csv")
    rows = list(csv.DictReader(table.open()))
    assert [r["video"] for r in rows] == ["clip1", "set/clip2", "all (video average)"]
    assert float(rows[-1]["cc"]) == pytest.approx(results.metrics["cc"])
    assert rows[0]["frames_cc"] == str(6 - first + (first > 2))


def test_dhf1k_layout_and_named_conventions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    density, pred = (np.round(blobs(rng, 5) * 255).astype(np.uint8) for _ in range(2))
    fixated = rng.random((5, *SIZE)) < 0.02
    for folder in ("truth/0601/maps", "truth/0601/fixation", "pred/0601"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(5):
        Image.fromarray(density[k]).save(tmp_path / "truth/0601/maps" / f"{k + 1:04d}.png")
        Image.fromarray(fixated[k]).convert("L").save(tmp_path / "truth/0601/fixation" / f"{k + 1:04d}.png")
        Image.fromarray(pred[k]).save(tmp_path / "pred/0601" / f"{k:04d}.png")
    words = (
        "--format",
        "dhf1k",
        "--first-frame",
        "0",
        "--conventions",
        "matlab",
        "--metrics",
        "auc_judd,kl,sim",
    )
    status, results = run(tmp_path, *words, "--set", "sim_norm=sum", "--average", "frame", "--name", "mine")
    assert status == 0
    metric = SaliencyMetrics(("auc_judd", "kl", "sim"), conventions="matlab", sim_norm="sum", average="frame")
    points = fixation_points(torch.from_numpy(fixated))
    metric.update(
        torch.from_numpy(pred / np.float32(255)), torch.from_numpy(density / np.float32(255)), points
    )
    assert results.metrics == pytest.approx(metric.compute(), abs=1e-6)
    assert results.model == "mine"
    assert results.conventions["name"] == "matlab"
    assert results.conventions["sim_norm"] == "sum"


def test_one_bad_video_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    truth = stavis_truth(tmp_path / "truth", rng, ("a", "b", "c", "d"))
    maps = {name: np.round(blobs(rng, 7) * 255).astype(np.uint8) for name in truth}
    for name in ("a", "d"):
        write_video(tmp_path / "pred" / f"{name}.mkv", maps[name], "gray")
    (tmp_path / "pred" / "b.mp4").write_text("no video")
    (tmp_path / "truth" / "d" / "fixMap_00005.mat").write_bytes(b"broken half-way")
    status, results = run(tmp_path)
    assert status == 1
    assert [f.item for f in results.failed] == ["b", "c", "d"]
    assert "b.mp4" in results.failed[0].error
    assert "no prediction" in results.failed[1].error
    assert "fixMap_00005" in results.failed[2].error
    assert set(results.videos) == {"a"}
    assert results.metrics == pytest.approx(expected({"a": truth["a"]}, maps, range(7)).compute(), abs=1e-5)
    assert "3 of 4 videos could not be scored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "sim=sum"), "NAME=VALUE"),
        (("--set", "splits=many"), "int"),
        (("--set", "sim_norm=max"), "'minmax'"),
        (("--metrics", "cc,emd"), "emd"),
        (("--conventions", "crowdsal", "--set", "nss_ddof=1"), "fixed"),
        (("--device", "warp"), "device warp"),
        (("--batch-size", "0"), "batch"),
        (("--format", "crowdsal"), "no ground truth"),
        (("--data", "clips"), "--predictions does not go with --data"),
        (("--root", "clips"), "--root does not go with --predictions"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    stavis_truth(tmp_path / "truth", np.random.default_rng(0), ("a",), frames=3)
    (tmp_path / "pred").mkdir()
    with pytest.raises(AvsalError, match=message):
        command(tmp_path, *words)
    with pytest.raises(AvsalError, match="no such folder"):
        command(tmp_path / "elsewhere")


# -- the open sets -----------------------------------------------------------------------------------


def crowdsal_case(tmp_path: Path, frames: int = 6, size: tuple[int, int] = (15, 25)) -> dict[str, tuple]:
    rng = np.random.default_rng(3)
    clips = {}
    for name in ("0001", "0002", "0003"):
        truth = np.round(blobs(rng, frames) * 1023).astype(np.uint16)
        pred = np.round(blobs(rng, frames, size) * 255).astype(np.uint8)
        points = [
            np.stack((rng.integers(0, SIZE[0], 12), rng.integers(0, SIZE[1], 12)), 1) for _ in range(frames)
        ]
        points = [np.concatenate((p, p[:3])) for p in points]
        write_video(tmp_path / "truth" / f"{name}.mkv", truth, "gray10le")
        write_video(tmp_path / "pred" / f"{name}.mkv", pred, "gray")
        (tmp_path / "truth" / name).mkdir()
        (tmp_path / "truth" / name / "fixations.json").write_text(json.dumps([p.tolist() for p in points]))
        # FFmpeg widens 10 bit to 16 by repeating the upper bits.
        clips[name] = (pred, (truth << 6) | (truth >> 4), points)
    return clips


def means(clips: dict[str, tuple], scorer) -> dict[str, float]:
    per_clip = []
    for pred, truth, points in clips.values():
        rows = [scorer(p, t, f) for p, t, f in zip(pred, truth, points, strict=True)]
        per_clip.append({m: np.mean([r[m] for r in rows]) for m in rows[0]})
    return {m: float(np.mean([c[m] for c in per_clip])) for m in per_clip[0]}


@pytest.mark.parametrize("size", [SIZE, (15, 25)])
def test_public_scorer_s_numbers_from_the_same_folders(tmp_path: Path, size: tuple[int, int]) -> None:
    clips = crowdsal_case(tmp_path, size=size)
    status, results = run(tmp_path, "--format", "crowdsal")
    assert status == 0
    assert list(results.metrics) == ["cc", "sim", "nss", "auc_judd"]
    assert results.conventions["name"] == "crowdsal"
    for metric, value in means(clips, public_scores).items():
        if metric == "auc_judd" and size != SIZE:
            continue  # between equal pixels interpolation is equal up to rounding only, and ties decide the AUC
        assert results.metrics[metric] == pytest.approx(value, abs=1e-6)


def test_later_scorer(tmp_path: Path) -> None:
    clips = crowdsal_case(tmp_path, size=SIZE)
    for folder in ("Fixations",):
        (tmp_path / folder).mkdir()
    for name in clips:  # the layout of the later release: one json per clip in a sister folder
        (tmp_path / "truth" / name / "fixations.json").rename(tmp_path / "Fixations" / f"{name}.json")
    status, results = run(tmp_path, "--format", "crowdsal", "--conventions", "crowdsal-stream")
    assert status == 0
    assert results.metrics == pytest.approx(means(clips, stream_scores), abs=1e-5)


def test_own_metrics_on_the_open_sets(tmp_path: Path) -> None:
    clips = crowdsal_case(tmp_path)
    status, results = run(tmp_path, "--format", "crowdsal", "--conventions", "default")
    assert status == 0
    metric = SaliencyMetrics()
    for number, (pred, truth, points) in enumerate(clips.values()):
        fix = torch.from_numpy(np.stack(points))
        metric.update(
            torch.from_numpy(pred.astype(np.float32)),
            torch.from_numpy(truth.astype(np.float32)),
            fix,
            video_negatives(fix),
            video_id=number,
        )
    assert results.metrics == pytest.approx(metric.compute(), abs=1e-5)


def test_colour_and_limited_range_are_read_as_extracted_pictures_are(tmp_path: Path) -> None:
    """H.264 of 4:2:0 goes through RGB: the numbers are those of PNG files extracted from the video."""
    clips = crowdsal_case(tmp_path)
    pred, truth, points = clips["0001"]
    luma = np.zeros((len(pred), *SIZE), np.uint8) + 16
    luma[:, :14, :24] = np.round(16 + pred[:, :14, :24] / 255 * 219)
    (tmp_path / "pred" / "0001.mkv").unlink()
    write_video(tmp_path / "pred" / "0001.mp4", luma, "yuv420p", "libx264")
    _, results = run(tmp_path, "--format", "crowdsal")
    pictures = []
    with av.open(str(tmp_path / "pred" / "0001.mp4")) as container:
        for frame in container.decode(video=0):
            frame.to_image().save(tmp_path / "picture.png")
            pictures.append(np.asarray(Image.open(tmp_path / "picture.png")).mean(-1))
    assert pictures[0].max() > 250
    rows = [public_scores(p, t, f) for p, t, f in zip(pictures, truth, points, strict=True)]
    for metric in ("cc", "sim", "nss", "auc_judd"):
        expected = np.mean([r[metric] for r in rows])
        assert results.videos["0001"][metric] == pytest.approx(expected, abs=1e-6), metric


def test_clips_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    clips = crowdsal_case(tmp_path)
    write_video(tmp_path / "pred" / "0001.mkv", clips["0001"][0][:4], "gray")
    fixations = [p[:, ::-1].tolist() for p in clips["0002"][2]]
    fixations[0].append([39, 2])  # fits as (column, row) only
    (tmp_path / "truth" / "0002" / "fixations.json").write_text(json.dumps(fixations))
    fixations[1].append([39, 39])
    (tmp_path / "truth" / "0003" / "fixations.json").write_text(json.dumps(fixations))
    status, results = run(tmp_path, "--format", "crowdsal")
    assert status == 1
    assert {f.item: "numbers of frames" in f.error or "either order" in f.error for f in results.failed} == {
        "0001": True,
        "0003": True,
    }
    assert any("(column, row)" in note for note in results.notes)
    assert not any(math.isnan(v) for v in results.metrics.values())


# -- folds -------------------------------------------------------------------------------------------


def test_a_fold_is_what_lightning_test_scores_there(tmp_path: Path) -> None:
    """The centre prior's maps, written by hand, against the same baseline in the test loop on the same files."""
    from avsal.data import AVADDataModule
    from avsal.evaluation.testing import evaluate as test
    from avsal.models.baselines import BaselineModule
    from avsal.report.records import Record, read

    rng = np.random.default_rng(4)
    stavis_truth(tmp_path / "annotations" / "AVAD", rng, ("a", "b", "other"))
    # Nobody looks at frame 2, and an empty map says no more: the frame is not labelled.
    empty = Image.fromarray(np.zeros(SIZE, np.uint8))
    empty.save(tmp_path / "annotations" / "AVAD" / "a" / "maps" / "eyeMap_00003.png")
    for name in ("a", "b", "other"):
        write_video(
            tmp_path / "video" / "AVAD" / f"{name}.mkv", (blobs(rng, 7) * 255).astype(np.uint8), "gray"
        )
    (tmp_path / "fold_lists").mkdir()
    # The list counts one frame less than there is ground truth of.
    (tmp_path / "fold_lists" / "AVAD_list_test_2_fps.txt").write_text("a 6 25\nb 7 25\n")
    module = BaselineModule("centre", size=(12, 20))
    data = AVADDataModule(tmp_path, fold=2, batch_size=4, num_workers=0)
    found = test(
        module,
        data,
        checkpoint="centre",
        work=tmp_path / "work",
        trainer={"accelerator": "cpu", "devices": 1},
    )
    assert found is not None
    found.write(tmp_path / "out" / "test.json")
    prior = module.network.density.numpy()
    for name in ("a", "b", "other"):
        (tmp_path / "pred").mkdir(exist_ok=True)
        np.save(tmp_path / "pred" / f"{name}.npy", np.tile(prior, (7, 1, 1)))

    def mine(out: str, *more: str) -> Record:
        words = [
            "--predictions",
            str(tmp_path / "pred"),
            "--ground-truth",
            str(tmp_path / "annotations" / "AVAD"),
        ]
        words += [
            "--out",
            str(tmp_path / out / "mine.json"),
            "--quiet",
            "--fold",
            "2",
            "--checkpoint",
            "centre",
            *more,
        ]
        assert _run(["evaluate", *words]) == 0
        return read([tmp_path / out / "mine.json"], [])[0]

    first, (second,) = mine("out"), read([tmp_path / "out" / "test.json"], [])
    assert first.results.data == second.results.data.model_copy(update={"name": "AVAD"})
    assert first.data == second.data == "AVAD"
    assert first.protocol == second.protocol
    assert first.contents == second.contents
    assert {n: row["frames"] for n, row in first.videos.items()} == {"AVAD/a": 5, "AVAD/b": 7}
    for name, row in second.videos.items():
        for metric in ("cc", "nss", "auc_judd", "sauc", "sim"):
            # The symmetric map has equal pixels, which interpolation makes equal up to rounding only.
            close = 5e-4 if "auc" in metric else 2e-5
            assert first.videos[name][metric] == pytest.approx(row[metric], abs=close), (name, metric)
    # MATLAB's code gives the empty map a SIM of 0, which counts; the other metrics have no value for it.
    counted = mine("mit", "--set", "empty=mit").videos["AVAD/a"]
    assert (counted["frames"], counted["frames_sim"], counted["frames_cc"]) == (6, 6, 5)
    assert counted["sim"] == pytest.approx(first.videos["AVAD/a"]["sim"] * 5 / 6, abs=1e-6)
    # A frame without a prediction makes it another protocol.
    np.savez(tmp_path / "pred" / "b.npz", maps=np.tile(prior, (6, 1, 1)), frame=np.arange(6))
    (tmp_path / "pred" / "b.npy").unlink()
    assert mine("part").protocol != second.protocol


def test_a_fold_without_a_list_or_in_another_layout_is_refused(tmp_path: Path) -> None:
    stavis_truth(tmp_path / "truth", np.random.default_rng(0), ("a",), frames=3)
    (tmp_path / "pred").mkdir()
    with pytest.raises(AvsalError, match=r"truth_list_test_2_fps\.txt"):
        command(tmp_path, "--fold", "2")
    crowdsal_case(tmp_path)
    with pytest.raises(AvsalError, match="only the layout stavis"):
        command(tmp_path, "--fold", "2", "--format", "crowdsal")


def test_an_npz_that_unpacks_to_gigabytes_is_read_map_by_map(tmp_path: Path) -> None:
    shape = (2000, 1024, 1024)  # 8 GB of zeros in 8 MB
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle,
        bundle.open("maps.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(8):
            file.write(bytes(4 * 1024 * 1024))
    with pytest.raises(DataError, match="less than it announces"):
        next(iter(Predictions(path)))
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, maps=np.zeros((64, 512, 1024), np.float32), frame=np.arange(64) * 2)
    tracemalloc.start()
    found = [index for index, _ in Predictions(whole)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == list(range(0, 128, 2))
    assert peak < 40e6  # all maps are 134 MB


@pytest.mark.parametrize("kind", ["objects", "huge maps", "huge numbers", "cut"])
def test_a_hostile_npz_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    maps = np.zeros((3, 4, 5), np.float32)
    if kind == "objects":
        np.savez(path, maps=np.array([{"a": 1}, None], dtype=object))
    elif kind == "huge maps":
        monkeypatch.setenv("AVSAL_MAX_PIXELS", "19")
        np.savez(path, maps=maps)
    elif kind == "huge numbers":
        monkeypatch.setenv("AVSAL_MAX_ARRAY", "100")
        np.savez(path, maps=maps, frame=np.arange(3000))
    else:
        np.savez(path, maps=maps)
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AvsalError, match=r"objects|AVSAL_MAX_PIXELS|AVSAL_MAX_ARRAY|cannot be read"):
        list(Predictions(path))


def test_the_table_of_videos_holds_no_formula(tmp_path: Path) -> None:
    results = Results.make(
        "evaluate", data=Data(name="x"), protocol={"average": "video"}, conventions={"name": "default"},
        metrics={"cc": 0.5}, frames={"frames_cc": 1, "frames": 1}, seconds=1,
        videos={"=cmd|' /C calc'!A0": {"cc": -0.5}},
    )  # fmt: skip
    write_csv(results, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("'=cmd|' /C calc'!A0,-0.5,")
