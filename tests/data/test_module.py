"""The DataModules in a Trainer: made from the model's clip, resumed, shared, and clear about what is wrong."""

from __future__ import annotations

from pathlib import Path

import jsonargparse
import lightning as L
import pytest
import torch
import yaml

import avsal.data
from avsal.data.items import VideoItem
from avsal.data.layout import fold_list
from avsal.data.module import swapped_sound
from avsal.data.sets.folder import FolderDataModule
from avsal.data.sets.synthav import SynthAVDataModule
from avsal.errors import ConfigError, DataError
from avsal.models.base import SaliencyModule, SaliencyNetwork
from avsal.types import AudioSpec, ClipSpec
from tests.media import write_clip

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "data").glob("*.yaml"))


class Tiny(SaliencyNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.spec = ClipSpec(frames=4, size=(24, 32), target=2, audio=AudioSpec(8000, 0.5, 0.5))
        self.conv = torch.nn.Conv2d(3, 1, 5, padding=2)

    def frontend(self, waveform, audio_length=None, has_audio=None, frame_times=None):
        return waveform.square().mean(1)

    def core(self, video, audio_input=None):
        return self.output(self.conv(video[:, :, 2]) + audio_input[:, None, None, None])


class TinyModule(SaliencyModule):
    val_metrics = ("cc",)
    test_metrics = ("cc", "nss", "sauc")

    def __init__(self) -> None:
        super().__init__()
        self.network = Tiny()
        self.names: list[str] = []

    def loss_terms(self, output, batch):
        error = (output.saliency() - batch["density"]).square().mean((-2, -1))
        return {"loss": (error * batch["labelled"]).sum() / batch["labelled"].sum().clamp_min(1)}

    def training_step(self, batch, batch_idx):
        self.names += batch["video_name"]
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **options) -> L.Trainer:
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}  # fmt: skip
    return L.Trainer(**(defaults | options))


SMALL = {"clips": 16, "seconds": 1.0, "observers": 3, "batch_size": 2, "eval_batch_size": 5}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_trains_and_tests_on_synthav_made_on_first_use(tmp_path, workers, monkeypatch):
    monkeypatch.setenv("AVSAL_CACHE", str(tmp_path))
    data = SynthAVDataModule(**SMALL, num_workers=workers)
    assert not (tmp_path / "synthav").exists()
    torch.manual_seed(0)
    module, runner = TinyModule(), trainer(tmp_path)
    runner.fit(module, datamodule=data)
    assert len(list((tmp_path / "synthav").glob("16-*"))) == 1
    assert {name.split("/")[0] for name in module.names} == {
        "SynthAV_congruent",
        "SynthAV_offscreen",
        "SynthAV_silent",
    }
    assert runner.global_step == 2 * (9 // 2)  # 60 % of 8, 4 and 4 clips; the last half batch is dropped
    result = runner.test(module, datamodule=data, verbose=False)[0]
    assert set(result) == {"test/cc", "test/nss", "test/sauc"}
    only = SynthAVDataModule(**SMALL, num_workers=workers, test_conditions=["offscreen"])
    only.use_spec(module.spec)
    assert {name.split("/")[0] for b in only.test_dataloader() for name in b["video_name"]} == {
        "SynthAV_offscreen"
    }


class SaveAt(L.Callback):
    """Write a checkpoint in the middle of an epoch, as a run that is killed afterwards leaves it."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, runner, *_):
        if runner.global_step == self.step:
            runner.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_like_an_uninterrupted_one(tmp_path, workers):
    def run(**options) -> TinyModule:
        torch.manual_seed(0)
        module = TinyModule()
        path = options.pop("ckpt_path", None)
        runner = trainer(tmp_path, limit_val_batches=0, max_epochs=3, **options)
        runner.fit(module, datamodule=SynthAVDataModule(**SMALL, num_workers=workers), ckpt_path=path)
        return module

    # Four steps of two clips an epoch: the checkpoint lies in the second epoch.
    whole = run(callbacks=[SaveAt(6, tmp_path / "half.ckpt")])
    resumed = run(ckpt_path=tmp_path / "half.ckpt")
    assert len(whole.names) == 24
    assert resumed.names == whole.names[12:]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_egocentric_set_yields_gaze(tmp_path):
    data = SynthAVDataModule(clips=4, seconds=4.0, ego=True, num_workers=0, batch_size=2)
    data.use_spec(
        ClipSpec(
            frames=4,
            size=(24, 24),
            step=0.3,
            step_unit="seconds",
            resize="short_side_crop",
            target=(0.5, 1.0),
        )
    )
    batch = next(iter(data.train_dataloader()))
    assert batch["gaze"].shape == (2, 2, 2)
    assert batch["gaze"].min() >= 0
    assert batch["gaze"].max() <= 1
    assert set(batch["gaze_type"].unique().tolist()) <= {0, 1, 2, 3}
    rows = data.split_items("train")[0].open().gaze
    assert rows.shape == (100, 4)
    assert fold_list(data.root, "SynthAV_ego", "train", None) is not None


def test_the_sound_of_the_test_videos_can_be_swapped():
    spec = Tiny().spec
    options = SMALL | {"clips": 24, "num_workers": 0, "spec": spec, "conditions": ["congruent"]}
    plain = list(SynthAVDataModule(**options).test_dataloader())
    swapped = list(SynthAVDataModule(**options, swap_sound=True).test_dataloader())
    names = [b["video_name"][0] for b in plain]
    assert len(set(names)) >= 3
    for a, b in zip(plain, swapped, strict=True):
        assert torch.equal(a["video"], b["video"])
        assert torch.equal(a["density"], b["density"])
    first = {b["video_name"][0]: b["audio"] for b in reversed(plain)}
    other = {b["video_name"][0]: b["audio"] for b in reversed(swapped)}
    order = sorted(first)
    half = len(order) // 2
    for name, heard in zip(order, order[half:] + order[:half], strict=True):
        assert torch.equal(other[name], first[heard])


def item(name, sound=True):
    return VideoItem(name, 10, 25.0, lambda: None, audio=Path(f"{name}.wav") if sound else None)


def test_every_video_hears_another_one_of_its_set():
    items = [item(f"{group}/{k}", sound=k != 3) for group in "AB" for k in (4, 0, 1, 3, 2)]
    changed = swapped_sound(items)
    assert [i.name for i in changed] == [i.name for i in items]
    heard = {i.name: i.audio for i in changed}
    # The pairing of the committed tables of SynthAV: by names, half of the set further.
    assert heard["A/0"] == Path("A/2.wav")
    assert heard["B/4"] == Path("B/1.wav")
    assert heard["A/1"] is None  # another video falls silent for the one without sound
    assert all(audio is None or str(audio)[0] == name[0] for name, audio in heard.items())
    assert len(set(heard.values())) == 9
    with pytest.raises(DataError, match="one test video only"):
        swapped_sound([item("A/0"), item("B/0"), item("B/1")])


def test_what_is_missing_is_said_before_training(tmp_path):
    data = SynthAVDataModule(**SMALL)
    data.prepare_data()
    with pytest.raises(ConfigError, match="use_spec"):
        data.train_dataloader()
    (tmp_path / "half" / "video").mkdir(parents=True)
    with pytest.raises(DataError, match=r"synthav.json is missing"):
        SynthAVDataModule(tmp_path / "half").setup("fit")
    with pytest.raises(ConfigError, match="'congruant'"):
        SynthAVDataModule(conditions=["congruant"])
    with pytest.raises(ConfigError, match="batch_size=0"):
        SynthAVDataModule(batch_size=0)


def test_skipped_videos_are_said_once_at_the_end(tmp_path):
    for name in "abcdefgh":
        write_clip(tmp_path / f"{name}.mp4", frames=12, fps=25)
        text = "".join(f"{t / 25 + 0.01:.3f},0.5,0.5\n" for t in range(12))
        (tmp_path / f"{name}.csv").write_text("time_s,x_norm,y_norm\n" + text)
    data = FolderDataModule(tmp_path, num_workers=0, batch_size=1, flip=0.0)
    torch.manual_seed(0)
    module = TinyModule()
    names = [item.name for item in data.split_items("train")]
    (tmp_path / f"{names[1].partition('/')[2]}.csv").write_text("time_s,x_norm\n1,2\n")
    with pytest.warns(UserWarning, match=r"1 videos were skipped.*\n.*" + names[1]):
        trainer(tmp_path).fit(module, datamodule=data)
    assert names[1] not in module.names
    strict = FolderDataModule(tmp_path, num_workers=0, strict=True)
    with pytest.raises(DataError, match=names[1]):
        trainer(tmp_path).fit(TinyModule(), datamodule=strict)


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_configures_its_data_module(path):
    config = yaml.safe_load(path.read_text())["data"]
    name = config["class_path"].removeprefix("avsal.")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(avsal.data, name, None) or _elsewhere(name), "data")
    parsed = parser.parse_object({"data": config.get("init_args", {})})
    assert parsed.data.batch_size >= 1


def _elsewhere(name: str) -> type:
    import avsal

    return getattr(avsal, name)
