"""Tests that stop and go on, several processes against one, swapped sound, and what `avsal reproduce` makes of it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import avsal
from avsal.cli import main
from avsal.data import SynthAVDataModule, open_data
from avsal.data.items import VideoItem
from avsal.errors import ConfigError, DataError
from avsal.evaluation.provenance import video_names, weights_hash
from avsal.evaluation.results import Checkpoint, Results, frames_path
from avsal.evaluation.testing import Shards, evaluate, results_of, use_protocol
from avsal.metrics import SaliencyMetrics
from avsal.models.baselines import BaselineModule
from avsal.report.testing import Options

CPU = {"accelerator": "cpu", "devices": 1}


def tiny(audiovisual: bool = True) -> avsal.STAViSModule:
    torch.manual_seed(0)
    return avsal.create_model(
        "stavis", audiovisual=audiovisual, size=(32, 32), via=None, width=4, blocks=(1, 1, 1), dsam_maps=2, hidden=8,
        audio_width=2, frames=8,
    ).eval()  # fmt: skip


def synthav(clips: int = 16, **options: Any) -> SynthAVDataModule:
    return SynthAVDataModule(
        clips=clips, seconds=1.0, observers=3, num_workers=0, batch_size=4, test_stride=6, **options
    )


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSAL_CACHE", str(tmp_path_factory.getbasetemp() / "avsal-cache"))
        yield


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The tiny network on SynthAV in one go, in one process."""
    found = evaluate(tiny(), synthav(), checkpoint="tiny", work=tmp_path_factory.mktemp("once"), trainer=CPU)
    assert found is not None
    return found


def test_results_equal_the_metrics_of_a_plain_loop(once: Results) -> None:
    module, data = tiny(), synthav()
    data.use_spec(module.spec)
    data.prepare_data()
    metric = SaliencyMetrics(module.test_metrics)
    with torch.no_grad():
        for batch in data.test_dataloader():
            maps = module(batch).saliency()
            metric.update(
                maps, batch["density"], batch["fixations"], batch["negatives"], batch["video_id"], batch["frame"],
                batch["labelled"],
            )  # fmt: skip
    results = once
    assert results.metrics == pytest.approx(metric.compute(), abs=1e-9)
    assert results.frames["videos"] == len(data.split_items("test")) == len(results.videos)
    assert results.checkpoint is not None
    assert results.checkpoint.name == "tiny"
    assert results.arguments["width"] == 4
    assert "audiovisual" not in results.arguments  # the default
    assert results.cost is not None
    assert results.cost.parameters == sum(p.numel() for p in module.network.parameters())
    assert results.cost.maps_per_second is not None
    assert results.cost.maps_per_second > 0


def test_scores_of_single_frames_average_to_the_videos(once: Results, tmp_path: Path) -> None:
    results = once
    assert results.write(tmp_path / "a.json") == results.path == tmp_path / "a.json"
    path = frames_path(tmp_path / "a.json")
    with np.load(path) as read:
        column = read["metrics"].tolist().index("nss")
        for row, name in enumerate(read["videos"].tolist()):
            mean = np.nanmean(read["scores"][read["video"] == row, column])
            assert mean == pytest.approx(results.videos[name]["nss"], abs=1e-5)


_TWO = """
import sys
import torch
from pathlib import Path
from avsal.evaluation.testing import evaluate
from tests.evaluation.test_testing import synthav, tiny

torch.set_num_threads(1)
out = Path(sys.argv[1])
for name, options in (("all", {}), ("silent", {"conditions": ("silent",)})):
    found = evaluate(
        tiny(), synthav(**options), checkpoint="tiny", work=out / "work" / name,
        trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    )
    if found is not None:
        found.write(out / f"{name}.json")
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(once: Results, tmp_path: Path) -> None:
    """Lightning starts the second process by running the script again; two tests run one after the other."""
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = Results.read(tmp_path / "all.json")
    assert results.metrics == once.metrics
    assert results.videos == once.videos
    assert results.frames == once.frames
    with np.load(tmp_path / "all.frames.npz") as frames:
        for name, values in once.frame_scores.items():
            np.testing.assert_array_equal(frames[name], values)
    (folder,) = (tmp_path / "work" / "all").iterdir()
    assert {path.name[0] for path in folder.glob("*.npz")} == {"0", "1"}  # both processes took part
    assert results.hardware.devices == 2
    assert results.cost is not None
    assert results.cost.maps_per_second is not None
    silent = Results.read(tmp_path / "silent.json")
    assert silent.videos == {k: v for k, v in once.videos.items() if "silent" in k}


def test_an_interrupted_test_goes_on_where_it_stopped(
    once: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = avsal.STAViSModule.test_step

    def stops(self: Any, batch: Any, batch_idx: int) -> Any:
        if len(calls) == 3:
            raise RuntimeError("the machine went away")
        calls.append(batch_idx)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(avsal.STAViSModule, "test_step", stops)
    with pytest.raises(RuntimeError, match="went away"):
        evaluate(tiny(), synthav(), checkpoint="tiny", work=tmp_path, trainer=CPU)
    (folder,) = tmp_path.iterdir()
    assert len(Shards(folder).units) == 3
    total = 0

    def counts(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal total
        total += 1
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(avsal.STAViSModule, "test_step", counts)
    found = evaluate(tiny(), synthav(), checkpoint="tiny", work=tmp_path, trainer=CPU)
    assert found is not None
    assert total == len(Shards(folder).units) - 3
    assert found.metrics == once.metrics
    assert found.videos == once.videos
    done = len(Shards(folder).units)
    out = tmp_path / "results" / "tiny.json"
    again = evaluate(tiny(), synthav(), checkpoint="tiny", out=out, work=tmp_path, trainer=CPU)
    assert again is not None
    assert again.metrics == once.metrics
    assert total == done - 3  # nothing was run again
    assert Results.read(out).metrics == once.metrics
    assert not folder.exists()  # the results are written


def test_other_weights_do_not_take_over_what_is_kept(tmp_path: Path) -> None:
    data = synthav(conditions=("silent",))
    evaluate(tiny(), data, checkpoint="tiny", work=tmp_path, trainer=CPU)
    other = tiny()
    with torch.no_grad():
        next(other.network.parameters()).add_(0.1)
    evaluate(other, data, checkpoint="tiny", work=tmp_path, trainer=CPU)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_papers_protocol_takes_the_authors_frames_and_conventions(once: Results, tmp_path: Path) -> None:
    found = evaluate(
        tiny(),
        synthav(conditions=("silent",)),
        checkpoint="tiny",
        work=tmp_path,
        protocol="paper",
        trainer=CPU,
    )
    assert found is not None
    results = found
    assert results.protocol["coverage"] == "authors"
    assert results.conventions["postprocess"] == "stavis"
    assert results.conventions["sauc_method"] == "sampled"
    assert once.protocol["coverage"] == "full"
    assert once.conventions["postprocess"] is None
    assert results.frames["frames"] <= sum(r["frames"] for n, r in once.videos.items() if "silent" in n)


# -- swapped sound -------------------------------------------------------------------------------------------------


def test_swapped_sound_changes_what_the_network_hears_and_nothing_else(tmp_path: Path) -> None:
    data, other = synthav(conditions=("congruent",)), synthav(conditions=("congruent",), swap_sound=True)
    data.use_spec(tiny().spec)
    other.use_spec(tiny().spec)
    data.prepare_data()
    for a, b in zip(data.eval_dataset("test"), other.eval_dataset("test"), strict=False):
        assert torch.equal(a["video"], b["video"])
        assert torch.equal(a["density"], b["density"])
        assert a["video_name"] == b["video_name"]
        assert not torch.equal(a["audio"], b["audio"])
        break
    with pytest.raises(ConfigError, match="has no audio input"):
        evaluate(tiny(audiovisual=False), data, checkpoint="v", work=tmp_path, sound="swapped", trainer=CPU)


# -- commands ------------------------------------------------------------------------------------------------------


def test_synthav_compares_models_twins_and_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from avsal.checkpoints.registry import entries
    from avsal.report import synthav as command

    like = entries()["stavis-visual-fold1"]
    shipped = [like.model_copy(update={"name": name}) for name in ("tiny-av", "tiny-v")]
    modules = {"tiny-av": tiny(), "tiny-v": tiny(audiovisual=False)}
    monkeypatch.setattr("avsal.zoo.from_pretrained", lambda name: modules[name])
    monkeypatch.setattr(command, "BASELINES", {"centre": "centred Gaussian"})
    monkeypatch.setattr(command, "_data", lambda options, clips, ego=False: synthav(clips))
    options = Options(batch_size=4, num_workers=0, out=tmp_path, accelerator="cpu", stride=6)
    files = command.measure(shipped, options, 32)
    assert len(files) == 4  # the centre, both models, and the audio-visual one with other sound
    before = {path: path.stat().st_mtime_ns for path in files}
    assert command.measure(shipped, options, 32) == files  # finished tests are not repeated
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert "done before" in capsys.readouterr().err
    from avsal.report.measured import board

    found = board(files)
    assert found.notes == []
    table, gaps = command.synthav_tables(found)
    assert [row[0].text for row in table.rows] == [
        "baseline: centred Gaussian", "tiny-av", "tiny-av, sound swapped", "tiny-v",
    ]  # fmt: skip
    assert [(row[0].text, row[1].text) for row in gaps.rows] == [
        ("tiny-av", "tiny-v (visual only)"), ("tiny-av", "itself, sound swapped"),
    ]  # fmt: skip
    silent = gaps.columns.index("NSS, silent")
    assert gaps.rows[1][silent].sort == 0.0  # without sound there is nothing to swap


def test_a_paper_without_data_or_weights_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "stavis", "--table", "2"]) == 2
    assert "--data ROOT is needed" in capsys.readouterr().err
    assert main(["reproduce", "stavis", "--table", "2", "--data", str(tmp_path)]) == 2
    assert "DIEM_list_test" in capsys.readouterr().err
    assert main(["reproduce", "stavis", "--table", "9"]) == 2
    assert "2 (STAViS on DIEM, Coutrot1, Coutrot2)" in capsys.readouterr().err
    assert main(["reproduce", "casp", "--table", "4", "--dry-run", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "train first" in printed
    assert "examples/casp-visual.yaml" in printed
    assert "--data.init_args.fold=3" in printed
    assert "36 tests of 12 checkpoints" in printed  # both strategies, two modalities, three folds


def layout(root: Path) -> None:
    """Two clips as the three folds of AVAD, in the layout of the real sets."""
    data = synthav(conditions=("congruent",))
    data.prepare_data()
    assert data.root is not None
    for part in ("video", "annotations"):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / "AVAD").symlink_to(data.root / part / "SynthAV_congruent")
    (root / "synthav.json").symlink_to(data.root / "synthav.json")
    (root / "fold_lists").mkdir()
    names = sorted(path.stem for path in (root / "video" / "AVAD").iterdir())
    for fold in (1, 2, 3):
        text = f"{names[fold]} 25 25.0\n"
        (root / "fold_lists" / f"AVAD_list_test_{fold}_fps.txt").write_text(text)


def test_a_papers_table_is_run_over_all_folds_and_printed_beside_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from avsal.checkpoints import registry

    layout(tmp_path / "data")
    asked: list[str] = []

    def fake(name: str) -> Any:
        asked.append(name)
        assert name in registry.entries()
        made = tiny(audiovisual="audiovisual" in name)
        with torch.no_grad():  # each fold has weights of its own
            next(made.network.parameters()).add_(0.01 * int(name[-1]))
        return made

    monkeypatch.setattr("avsal.zoo.from_pretrained", fake)
    words = ["reproduce", "stavis", "--table", "3", "--data", str(tmp_path / "data"), "--sets", "AVAD"]
    words += ["--out", str(tmp_path / "out"), "--accelerator", "cpu", "--num-workers", "0", "--stride", "6"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert asked == [f"stavis-{kind}-fold{k}" for kind in ("audiovisual", "visual") for k in (1, 2, 3)]
    assert len(list((tmp_path / "out").glob("*.json"))) == 6
    assert not list((tmp_path / "out" / ".partial").rglob("*.npz"))
    assert "0.6086" in printed  # STAViS, table 3
    assert "difference" in printed
    assert "published only" not in printed
    results = Results.read(tmp_path / "out" / "stavis-audiovisual-fold2-avad-fold2-paper.json")
    assert results.data.fold == 2
    assert results.protocol["protocol"] == "paper"
    monkeypatch.setattr(BaselineModule, "test_step", None)
    assert main(words) == 0  # everything is there
    assert capsys.readouterr().err.count("done before") == 6
    whole = [w for w in words if w not in ("--table", "3")]
    assert main([*whole, "--format", "html"]) == 0  # of both tables, in one page
    assert capsys.readouterr().out.count("<!doctype html>") == 1
    assert results.checkpoint is not None
    stated = {
        s.sha256 for s in registry.entries()["stavis-audiovisual-fold2"].sources if getattr(s, "sha256", None)
    }
    assert results.checkpoint.sha256 == (stated.pop() if len(stated) == 1 else None)


def test_trainings_run_in_order_and_finished_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avsal.report import recipes
    from avsal.report.papers import SYSTEMS

    ran: list[list[str]] = []

    def fake(words: list[str], check: bool) -> argparse.Namespace:
        ran.append(words[3:])
        folder = next(Path(w.split("=", 1)[1]) for w in words if w.startswith("--trainer.default_root_dir="))
        (folder / "version_0").mkdir(parents=True)
        (folder / "version_0" / "best-epoch=001.ckpt").touch()
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(recipes.subprocess, "run", fake)
    args = Options(out=tmp_path, data=Path("six"), dhf1k=Path("dhf1k"), devices="4", strategy="ddp")
    for fold in (1, 2):
        for training in recipes.chain(SYSTEMS["casp-audiovisual"], fold, args):
            training.run()
    assert [words[2].rsplit("/", 1)[-1] for words in ran] == ["casp-visual.yaml", "casp.yaml", "casp.yaml"]
    assert (
        f"--model.init_args.init_from={tmp_path}/training/casp-visual-dhf1k/version_0/best-epoch=001.ckpt"
        in ran[1]
    )
    assert "--data.init_args.root=dhf1k" in ran[0]
    assert "--data.init_args.root=six" in ran[1]
    assert "--trainer.devices=4" in ran[1]
    assert recipes.chain(SYSTEMS["casp-audiovisual"], 2, args) == []
    # An interrupted training goes on from its last checkpoint.
    (left,) = recipes.chain(SYSTEMS["casp-audiovisual"], 3, args)
    (left.folder / "version_0").mkdir(parents=True)
    (left.folder / "version_0" / "last.ckpt").touch()
    with pytest.raises(FileExistsError):  # the fake makes the folder anew
        left.run()
    assert ran[-1][-1] == "--ckpt_path=last"


# -- `lightning test` ----------------------------------------------------------------------------------------------


def lightning_test(tmp_path: Path, data: SynthAVDataModule, **options: Any) -> Path:
    """Test the tiny network as `lightning test` does, and return the results file."""
    import lightning as L

    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **CPU, **options,
    )  # fmt: skip
    results = evaluate(tiny(), data, out=tmp_path / "results", protocol=None, trainer=trainer)
    assert results is not None
    assert results.path is not None
    assert not (tmp_path / "results" / ".partial").exists()
    return results.path


def test_lightning_test_records_what_reproduce_records(once: Results, tmp_path: Path) -> None:
    path = lightning_test(tmp_path, synthav())
    results = Results.read(path)
    assert results.metrics == pytest.approx(once.metrics)
    assert results.protocol == once.protocol
    assert results.protocol["protocol"] == "full"
    assert results.data == once.data
    assert results.data.annotations is not None
    assert results.data.videos == len(results.videos)
    assert results.complete
    assert results.checkpoint is not None
    assert results.checkpoint.name is None  # random weights are known by their entries alone
    assert results.checkpoint.weights == weights_hash(tiny())
    assert results.cost is not None
    assert once.cost is not None
    assert results.cost.parameters == once.cost.parameters
    assert results.cost.maps_per_second is not None
    assert results.cost.maps_per_second > 0
    with np.load(frames_path(path)) as frames:
        assert set(frames["fps"].tolist()) == {25.0}
        np.testing.assert_allclose(frames["scores"], once.frame_scores["scores"], rtol=1e-5)
        assert frames["videos"].tolist() == once.frame_scores["videos"].tolist()


def test_lightning_test_says_that_the_sound_was_swapped(tmp_path: Path) -> None:
    results = Results.read(lightning_test(tmp_path, synthav(conditions=("congruent",), swap_sound=True)))
    assert results.protocol["sound"] == "swapped"
    again = evaluate(
        tiny(),
        synthav(conditions=("congruent",), swap_sound=True),
        checkpoint="t",
        work=tmp_path / "w",
        trainer=CPU,
    )
    assert again is not None
    assert again.protocol["sound"] == "swapped"  # the data set's doing counts as well as the argument


def test_a_test_of_a_few_batches_is_known_to_be_a_part(tmp_path: Path) -> None:
    data = synthav()
    path = lightning_test(tmp_path, data, limit_test_batches=1)
    results = Results.read(path)
    assert len(results.videos) == 1
    assert results.data.videos == len(data.split_items("test")) > 1
    assert not results.complete
    from avsal.report.measured import board

    found = board([path])
    assert found.entries == []
    assert f"1 of {results.data.videos} videos" in found.notes[0]


def test_videos_that_break_during_a_test_are_named_in_its_results(tmp_path: Path) -> None:
    data = synthav()
    data.prepare_data()
    items = data.split_items("test")
    broken = items[1].name

    def cannot() -> Any:
        raise DataError("cannot be opened")

    items[1] = replace(items[1], open_frames=cannot)
    data._try = lambda items: None  # type: ignore[method-assign]
    results = Results.read(lightning_test(tmp_path, data))
    assert [f.item for f in results.failed] == [broken]
    assert "cannot be opened" in results.failed[0].error
    assert broken not in results.videos
    assert results.complete


def test_videos_of_gaze_are_recordings_wherever_results_are_made(tmp_path: Path) -> None:
    from avsal.metrics import GazeMetrics

    class Recordings:
        """Four clips of two recordings, as the gaze sets list them."""

        name, left_out, test_stride = "gaze", {}, 1

        def split_items(self, split: str) -> list[VideoItem]:
            return [VideoItem(f"Set/clip{k}", 10, 25.0, lambda: None) for k in range(4)]  # type: ignore[arg-type, return-value]

        def video_names(self, split: str) -> dict[int, str]:
            return {0: "Set/first", 1: "Set/second"}

    metric = GazeMetrics()
    maps = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    metric.update(maps, maps / maps.sum((-2, -1), keepdim=True), video_id=torch.tensor([0, 0, 1, 1]),
                  frame=torch.arange(8).reshape(4, 2))  # fmt: skip
    module = tiny()
    module._metrics["test"] = metric  # type: ignore[assignment]
    results = results_of(module, Recordings(), Checkpoint())  # type: ignore[arg-type]
    assert list(results.videos) == ["Set/first", "Set/second"]
    assert results.data.videos == 2
    assert results.complete
    assert {name: row["frames"] for name, row in results.videos.items()} == {"Set/first": 4, "Set/second": 4}


def test_a_checkpoint_is_known_by_its_file_and_by_its_entries(tmp_path: Path) -> None:
    import hashlib

    import lightning as L

    holder = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, **CPU)
    holder.strategy.connect(tiny())
    saved = tmp_path / "best.ckpt"
    holder.save_checkpoint(saved)
    filled = avsal.from_pretrained(saved)
    results = evaluate(filled, synthav(conditions=("silent",)), work=tmp_path / "a", trainer=CPU)
    assert results is not None
    assert results.checkpoint is not None
    assert results.checkpoint.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert results.checkpoint.weights == weights_hash(tiny())
    found = evaluate(
        tiny(), synthav(conditions=("silent",)), checkpoint="tiny", work=tmp_path / "w", trainer=CPU
    )
    assert found is not None
    assert found.checkpoint is not None
    assert found.checkpoint.sha256 is None
    assert found.checkpoint.same(results.checkpoint)


def test_a_changed_annotation_is_other_data_and_is_tested_again(tmp_path: Path) -> None:
    import shutil

    from avsal.evaluation.provenance import data_of

    made = synthav(conditions=("silent",))
    made.prepare_data()
    assert made.root is not None
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)

    def copy() -> SynthAVDataModule:
        return SynthAVDataModule(root, conditions=("silent",), num_workers=0, batch_size=4, test_stride=6)

    before = data_of(copy())
    assert before.annotations == data_of(made).annotations  # equal files elsewhere
    evaluate(tiny(), copy(), checkpoint="tiny", work=tmp_path / "w", trainer=CPU)
    name = copy().split_items("test")[0].name
    table = root / "annotations" / name / "fixations.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    after = data_of(copy())
    assert after.fingerprint == before.fingerprint
    assert after.annotations != before.annotations
    evaluate(tiny(), copy(), checkpoint="tiny", work=tmp_path / "w", trainer=CPU)
    assert len(list((tmp_path / "w").iterdir())) == 2


# -- one number from every door ------------------------------------------------------------------------------------

_MODEL = """
model:
  class_path: avsal.STAViSModule
  init_args: {size: [32, 32], via: null, width: 4, blocks: [1, 1, 1], dsam_maps: 2, hidden: 8, audio_width: 2,
              frames: 8}
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}
"""
_DATA = """
data:
  class_path: avsal.SynthAVDataModule
  init_args: {clips: 16, seconds: 1.0, observers: 3, num_workers: 0, batch_size: 4, test_stride: 6}
"""


@pytest.mark.parametrize("protocol", ["full", "paper"])
def test_every_door_gives_the_same_numbers_of_every_video(
    protocol: Any, once: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avsal.report.testing import Options, run_test

    monkeypatch.chdir(tmp_path)
    weights = str(tiny().save_pretrained(tmp_path / "weights"))
    data = synthav()
    data.prepare_data()
    (tmp_path / "model.yaml").write_text(_MODEL)
    (tmp_path / "data.yaml").write_text(_DATA)
    words = ["-c", "model.yaml", "-c", "data.yaml", "--ckpt_path", weights, "--protocol", protocol]
    assert main(["test", *words]) == 0
    words = ["--checkpoint", weights, "--data", str(data.root), "--protocol", protocol, "--stride", "6"]
    assert (
        main(["evaluate", *words, "--batch-size", "4", "--num-workers", "0", "--out", "mine", "--quiet"]) == 0
    )
    options = Options(out=tmp_path / "table", accelerator="cpu", protocol=protocol)
    reproduced = run_test(avsal.from_pretrained(weights), synthav(), weights, "synthav", options)
    paths = [*(tmp_path / "results").glob("*.json"), *(tmp_path / "mine").glob("*.json"), reproduced]
    lightning, mine, table = [Results.read(path) for path in paths if path is not None]
    for other in (lightning, mine):
        assert other.videos == table.videos
        assert other.metrics == table.metrics
        assert other.protocol == table.protocol
        assert other.conventions == table.conventions
        assert other.data == table.data
        assert other.checkpoint is not None
        assert other.checkpoint.same(table.checkpoint)  # type: ignore[arg-type]
    assert table.protocol["protocol"] == protocol
    if protocol == "full":
        assert table.videos == once.videos
    assert not list(tmp_path.rglob(".partial"))


def test_validation_scores_as_the_test_does(tmp_path: Path) -> None:
    """At the annotation's size the two differ in nothing but the metrics that they compute."""
    import lightning as L

    torch.manual_seed(0)
    module = avsal.create_model(
        "stavis", audiovisual=False, size=(120, 160), via=None, width=4, blocks=(1, 1, 1), dsam_maps=2, hidden=8,
        frames=8,
    ).eval()  # fmt: skip
    for protocol in ("full", "paper"):
        data = synthav(val_stride=6, test_split="val")
        use_protocol(module, data, protocol)  # type: ignore[arg-type]
        trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, **CPU)
        trainer.validate(module, datamodule=data, verbose=False)
        validated = module.metrics("val").per_video(video_names(data))
        tested = evaluate(module, data, protocol=protocol, trainer=CPU)  # type: ignore[arg-type]
        assert tested is not None
        assert tested.data.split == "val"
        assert validated.keys() == tested.videos.keys()
        for name, row in validated.items():
            assert row == pytest.approx({k: tested.videos[str(name)][k] for k in row}, abs=1e-6)


def test_a_checkpoint_is_scored_on_a_folder_of_own_videos_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.media import write_clip

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for k, name in enumerate("abc"):
        write_clip(tmp_path / "mine" / f"{name}.mp4", frames=10)
        rows = [f"{frame},{0.2 + 0.1 * (frame % 5)},{0.3 + 0.1 * k}" for frame in range(10)]
        (tmp_path / "mine" / f"{name}.csv").write_text("frame,x_norm,y_norm\n" + "\n".join(rows) + "\n")
    tiny(audiovisual=False).save_pretrained(tmp_path / "weights")
    words = ["evaluate", "--checkpoint", "weights", "--num-workers", "0", "--quiet"]
    assert main([*words, "--data", "mine"]) == 0
    (path,) = (tmp_path / "results").glob("*.json")
    results = Results.read(path)
    assert results.videos.keys() == {"mine/a", "mine/b", "mine/c"}  # all of them, none is kept for training
    assert (results.kind, results.data.split, results.model) == ("test", "all", "STAViS")
    assert path.with_suffix(".csv").read_text().count("\n") == 5
    assert frames_path(path).is_file()
    assert avsal.evaluate("weights", "mine").videos == results.videos  # type: ignore[union-attr]
    assert main([*words, "--data", "mine", "--limit", "1", "--out", "one"]) == 0
    (path,) = (tmp_path / "one").glob("*.json")
    assert Results.read(path).videos.keys() == {"mine/a"}
    for more, message in (
        (["--data", "yours"], "there is no such folder, and no data set of that name"),
        (["--data", "hevc33"], "--root"),
        (["--data", "hevc3"], "hevc33"),
        (["--data", "mine", "--fold", "2"], "has no folds"),
        (["--data", "mine", "--split", "dev"], "test, val, train or all"),
        (["--data", "mine", "--metrics", "cc"], "--metrics does not go with --data"),
        (["--data", "mine", "--sound", "swapped"], "no audio input"),
        ([], "--data is missing"),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--data", "mine"]) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err


def test_a_killed_evaluation_goes_on_with_the_next_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever door is taken next: the scores that are kept belong to weights, data and protocol."""
    monkeypatch.chdir(tmp_path)
    weights = str(tiny().save_pretrained(tmp_path / "weights"))
    data = synthav()
    data.prepare_data()
    seen: list[str] = []
    plain = avsal.STAViSModule.test_step

    def dies(self: Any, batch: Any, batch_idx: int) -> Any:
        if len(seen) == 2 and batch["video_name"][0] not in seen:
            raise KeyboardInterrupt
        seen.append(batch["video_name"][0])
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(avsal.STAViSModule, "test_step", dies)
    words = [
        "evaluate",
        "--checkpoint",
        weights,
        "--data",
        str(data.root),
        "--stride",
        "6",
        "--batch-size",
        "8",
    ]
    words += ["--num-workers", "0", "--quiet"]
    assert main(words) == 130
    assert not list((tmp_path / "results").glob("*.json"))
    before = list(dict.fromkeys(seen))
    seen.clear()
    monkeypatch.setattr(
        avsal.STAViSModule,
        "test_step",
        lambda self, batch, k: seen.append(batch["video_name"][0]) or plain(self, batch, k),
    )
    assert main(words) == 0
    assert not set(before) & set(seen)
    (path,) = (tmp_path / "results").glob("*.json")
    assert Results.read(path).videos.keys() == {*before, *seen}


def test_a_network_that_follows_the_film_is_scored_on_the_maps_of_predict_video(tmp_path: Path) -> None:
    from tests.media import write_clip

    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", frames=12)
        rows = [f"{frame},{0.2 + 0.05 * (frame % 7)},0.4" for frame in range(12)]
        (tmp_path / f"{name}.csv").write_text("frame,x_norm,y_norm\n" + "\n".join(rows) + "\n")
    torch.manual_seed(0)
    module = avsal.create_model("speaker", base="isp", base_arguments={"size": (64, 64)}).eval()
    data = open_data(tmp_path, stride=2, batch_size=4, num_workers=0)
    results = evaluate(module, data, trainer=CPU)
    assert results is not None
    assert len(results.videos) == 2
    metric = SaliencyMetrics()
    for number, item in enumerate(data.split_items("test")):
        opened = item.open(sound=False)
        truth = opened.annotation
        assert truth is not None
        every = torch.from_numpy(truth.union())
        for frame in module.predict_video(tmp_path / f"{item.name[-1]}.mp4"):
            if frame.index % 2 == 0:
                own = torch.from_numpy(truth.fixations(frame.index)[0])  # type: ignore[index]
                others = every[~(every[:, None] == own[None]).all(-1).any(1)]
                density = torch.from_numpy(truth.density(frame.index))
                metric.update(
                    frame.map[None], density[None], own[None], others[None], video_id=number,
                    frame=torch.tensor([frame.index]),
                )  # fmt: skip
    assert results.metrics == pytest.approx(metric.compute(), abs=1e-6)
    with pytest.raises(ConfigError, match="not swapped"):
        evaluate(module, data, sound="swapped", trainer=CPU)
