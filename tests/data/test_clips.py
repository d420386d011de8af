"""Clips: the right frames, the right sound, the right maps, the same numbers whoever computes them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avsal.data.clips import TrainingClips, VideoBatches
from avsal.data.fixations import FixationTable
from avsal.data.frames import resize_frames
from avsal.data.items import VideoItem
from avsal.data.loading import ClipLoader, EpochSampler, ShareSampler, collate
from avsal.data.module import SaliencyDataModule
from avsal.data.pack import packed_items
from avsal.data.readers import OpenVideo, PointAnnotation
from avsal.errors import DataError
from avsal.inference.video import predict_video
from avsal.models.base import SaliencyModule, SaliencyNetwork
from avsal.types import AudioSpec, ClipSpec
from avsal.zoo import from_pretrained
from tests.media import frame_number, tone, write_clip

SPEC = ClipSpec(
    frames=16, size=(48, 64), target=8, std=(1.0, 1.0, 1.0), audio=AudioSpec(None, 0.5, 0.5, window="hann")
)


class Points:
    """One fixation in each frame, at column = frame number; the annotation of `item`."""

    def __init__(self, count: int, size: tuple[int, int] = (96, 128)) -> None:
        self.count, self.size = count, size

    def __call__(self) -> PointAnnotation:
        frames = np.repeat(np.arange(self.count), 2)
        x = np.minimum(frames, self.size[1] - 1)
        y = np.tile([10.0, 20.0], self.count)
        return PointAnnotation(FixationTable.build(frames, x, y, np.tile([0, 1], self.count), self.size), 4.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """100 numbered frames at 25 fps with 4 s of sound, whose frequency rises."""
    t = np.arange(4 * 8000) / 8000
    sweep = (np.sin(2 * np.pi * (200 + 100 * t) * t) / 2).astype(np.float32)[None]
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames=100, fps=25, sound=sweep, rate=8000)


def item(path: Path, frames: int | None = 100, name: str = "set/a") -> VideoItem:
    return VideoItem(name, frames, 25.0, OpenVideo(path), Points(frames or 100), path)


def numbers(video: torch.Tensor) -> list[int]:
    """The frame numbers written in a (3, T, H, W) clip."""
    return [frame_number(image) for image in video.permute(1, 2, 3, 0).numpy()]


# -- clips -------------------------------------------------------------------------------------------------


def test_a_training_clip_is_its_frames_its_sound_and_its_map(clip):
    data = TrainingClips([item(clip)], SPEC, flip=0.0, segment=None)
    for epoch in range(4):
        sample = data[epoch, 0]
        shown = numbers(sample["video"])
        assert shown == list(range(shown[0], shown[0] + 16))
        target = int(sample["frame"][0])
        assert target == shown[8]
        points = sample["fixations"][0]
        # 128 columns of the annotation on 64 of the clip, 96 rows on 48
        assert points.tolist() == [[5, target // 2], [10, target // 2]]
        peak = np.unravel_index(int(sample["density"][0].argmax()), (48, 64))
        assert abs(peak[1] - target / 2) <= 1
        assert sample["observer"][0].tolist() == [0, 1]
        # 16 frames of 320 samples each, and the half frames around: (k - 1/2) * 320 .. (k + 15 + 1/2) * 320
        assert len(sample["audio"]) == 16 * 320 + 1
        begin = shown[0] * 320 - 160
        t = (begin + np.arange(16 * 320 + 1)) / 8000
        truth = np.where(t >= 0, np.sin(2 * np.pi * (200 + 100 * t) * t) / 2, 0)
        assert np.corrcoef(sample["audio"].numpy()[500:-500], truth[500:-500])[0, 1] > 0.95
        np.testing.assert_allclose(sample["frame_times"], (160 + 320 * np.arange(16)) / 8000)


def test_stavis_draws_no_last_position_and_repeats_a_segment_that_is_too_short(clip):
    """A segment of n frames begins its clips at 0 to max(0, n - 17); values worked out by hand."""
    stavis = replace(SPEC, training_targets="stavis", authors_coverage="cyclic")
    data = TrainingClips(
        [item(clip)], stavis, flip=0.0, segment=24
    )  # (0, 24), (8, 32), ..., (88, 100), (96, 100)
    assert len(data) == 13

    def starts(data: TrainingClips, index: int) -> set[int]:
        shown = [numbers(data[epoch, index]["video"]) for epoch in range(80)]
        assert all(frames == list(range(frames[0], frames[0] + 16)) for frames in shown)
        return {frames[0] for frames in shown}

    assert starts(data, 0) == set(range(8))
    assert starts(data, 10) == {80, 81, 82, 83}
    plain = TrainingClips([item(clip)], SPEC, flip=0.0, segment=24)
    assert starts(plain, 0) == set(range(9))
    for epoch in range(3):
        twelve, four = data[epoch, 11], data[epoch, 12]
        assert numbers(twelve["video"]) == [*range(88, 100), 88, 89, 90, 91]
        assert numbers(four["video"]) == [96, 97, 98, 99] * 4
        # Numbers from 1, sorted: the 8th and 9th of 89 89 90 90 91 91 92 92 93 ... are 92 and 93; of 97 (4 times),
        # 98, 99, 100 they are 98 and 99. The median goes to the even neighbour.
        assert (twelve["frame"].tolist(), four["frame"].tolist()) == ([91], [97])
        assert len(twelve["audio"]) == 12 * 320 + 1
        assert len(four["audio"]) == 4 * 320 + 1


def test_a_video_shorter_than_its_list_says_still_gives_stavis_clips(clip):
    stavis = replace(SPEC, training_targets="stavis", authors_coverage="cyclic")
    data = TrainingClips([item(clip, frames=140)], stavis, flip=0.0, segment=24, strict=True)
    for index in range(len(data)):
        shown = numbers(data[0, index]["video"])
        assert len(shown) == 16
        assert max(shown) <= 99


def test_frames_maps_and_fixations_are_flipped_together(clip):
    plain = TrainingClips([item(clip)], SPEC, flip=0.0)
    mirrored = TrainingClips([item(clip)], SPEC, flip=1.0)
    a, b = plain[0, 0], mirrored[0, 0]
    assert torch.equal(a["video"].flip(-1), b["video"])
    assert torch.equal(a["density"].flip(-1), b["density"])
    assert torch.equal(a["fixations"][0][:, 1], 63 - b["fixations"][0][:, 1])
    assert torch.equal(a["audio"], b["audio"])


def test_clips_follow_from_seed_epoch_and_index_alone(clip):
    def epoch(workers: int, seed: int, number: int) -> list[torch.Tensor]:
        data = TrainingClips([item(clip), item(clip, name="set/b")], SPEC, seed=seed, segment=32)
        sampler = EpochSampler(len(data), seed=seed)
        sampler.set_epoch(number)
        loader = ClipLoader(data, batch_size=2, sampler=sampler, collate_fn=collate, num_workers=workers)
        return [batch["video"] for batch in loader]

    once = epoch(0, 1, 0)
    assert len(once) == 6
    for again in (epoch(0, 1, 0), epoch(2, 1, 0)):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for other in (epoch(0, 1, 1), epoch(0, 2, 0)):
        assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


def test_ranks_share_the_epoch_without_overlap():
    keys = [list(EpochSampler(11, seed=3, rank=r, world_size=2)) for r in (0, 1)]
    assert [len(k) for k in keys] == [6, 6]
    assert {index for k in keys for _, index in k} == set(range(11))
    parts = [list(ShareSampler(5, rank=r, world_size=2)) for r in (0, 1)]
    assert parts == [[0, 1, 2], [3, 4, 4]]


def test_an_interrupted_epoch_goes_on_where_it_stopped(clip):
    def loader() -> ClipLoader:
        data = TrainingClips([item(clip)], SPEC, segment=20)
        return ClipLoader(data, batch_size=2, sampler=EpochSampler(len(data), seed=5), collate_fn=collate)

    whole = [b["frame"] for b in loader()]
    first = loader()
    run = iter(first)
    head = [next(run)["frame"] for _ in range(3)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    tail = [b["frame"] for b in second]
    assert len(whole) > 5
    assert all(torch.equal(a, b) for a, b in zip(whole, head + tail, strict=True))
    assert second.state_dict()["batches"] == len(whole)
    # The state of a finished epoch leaves nothing out of the next one.
    third = loader()
    third.load_state_dict(second.state_dict())
    third.sampler.set_epoch(1)
    assert len(list(third)) == len(whole)


class Record(SaliencyNetwork):
    """Keeps what it is given."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def frontend(self, waveform, audio_length=None, has_audio=None, frame_times=None):
        return torch.stack(
            [w.double().cumsum(0)[n - 1] for w, n in zip(waveform, audio_length, strict=True)]
        ), frame_times

    def core(self, video, audio_input=None):
        sums, times = audio_input if audio_input is not None else (torch.zeros(len(video)), None)
        for k in range(len(video)):
            self.seen.append((video[k], sums[k], times[k] if times is not None else torch.zeros(0)))
        return self.output(video[:, :1, 0])


class RecordModule(SaliencyModule):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.network = Record(spec)


CLOCKS = {
    "steady": None,
    "hole": [k * 0.04 + (0.6 if k >= 20 else 0) for k in range(40)],
    "variable": [round(0.03 * k + 0.0006 * k * k, 3) for k in range(40)],
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("rule", ["clamp", "cyclic", "reversed"])
def test_test_batches_are_what_whole_video_prediction_sees(tmp_path, rule, clock):
    times = CLOCKS[clock]
    path = write_clip(tmp_path / "b.mp4", frames=40, fps=25, sound=tone(1.6, 8000), rate=8000, times=times)
    spec = replace(SPEC, authors_coverage=rule, target="last" if rule == "reversed" else 8)
    coverage = "full" if rule == "clamp" else "authors"
    module = RecordModule(spec).eval()
    frames = [result.index for result in predict_video(module, path, coverage=coverage, batch_size=7)]
    predicted, module.network.seen = module.network.seen, []
    batches = VideoBatches([item(path, 40)], spec, batch_size=6, coverage=coverage)
    listed = []
    for k in range(len(batches)):
        batch = batches[k]
        listed += batch["frame"][:, 0].tolist()
        module(batch)
    assert listed == frames
    assert len(predicted) == len(module.network.seen) == len(frames)
    for (video_a, sound_a, times_a), (video_b, sound_b, times_b) in zip(
        predicted, module.network.seen, strict=True
    ):
        assert torch.equal(video_a, video_b)
        torch.testing.assert_close(sound_a, sound_b, rtol=0, atol=1e-9)
        torch.testing.assert_close(times_a, times_b)


@pytest.mark.parametrize("packed", [False, True])
def test_a_real_clip_gets_the_same_maps_from_prediction_test_batches_and_packs(real_data, tmp_path, packed):
    module = from_pretrained("stavis-tiny-synthav").eval()
    path = real_data / "media" / "no_duration.webm"
    predicted = torch.stack([result.map for result in predict_video(module, path, batch_size=8)])
    videos = [VideoItem("set/a", None, None, OpenVideo(path), None, path).counted()]
    if packed:
        data = Listed(videos)
        data.pack(tmp_path / "pack.h5", module.spec)
        videos = packed_items(tmp_path / "pack.h5", "test", module.spec)
    batches = VideoBatches(videos, module.spec, batch_size=8)
    with torch.inference_mode():
        tested = torch.cat([module(batches[k]).saliency()[:, 0] for k in range(len(batches))])
    assert len(tested) > 20
    torch.testing.assert_close(tested, predicted, rtol=1e-3, atol=1e-5)


class Listed(SaliencyDataModule):
    def __init__(self, videos: list[VideoItem]) -> None:
        super().__init__()
        self.videos = videos

    def items(self, split):
        return self.videos if split == "test" else []


def test_maps_have_the_models_size_in_validation_and_their_own_in_test(clip):
    test = VideoBatches([item(clip)], SPEC, batch_size=8)[2]
    val = VideoBatches([item(clip)], SPEC, batch_size=8, native=False, negatives=False)[2]
    assert test["density"].shape == (8, 1, 96, 128)
    assert val["density"].shape == (8, 1, 48, 64)
    assert "negatives" not in val
    assert test["video_name"] == ["set/a"] * 8
    assert test["frame"][:, 0].tolist() == list(range(16, 24))


def test_negatives_are_the_videos_other_pixels(clip):
    batch = VideoBatches([item(clip)], SPEC, batch_size=4)[3]
    everything = {(r, c) for c in range(100) for r in (10, 20)}
    for k, frame in enumerate(range(12, 16)):
        found = {tuple(p) for p in batch["negatives"][k, 0].tolist() if p[0] >= 0}
        assert found == everything - {(10, frame), (20, frame)}


def test_a_video_shorter_than_a_clip_and_than_its_list_is_clamped(tmp_path):
    path = write_clip(tmp_path / "short.mp4", frames=6, fps=25)
    data = TrainingClips([item(path, 9)], SPEC, flip=0.0)
    shown = numbers(data[0, 0]["video"])
    assert min(shown) >= 0
    assert max(shown) == 5
    assert data[0, 0]["has_audio"] is False
    batch = VideoBatches([item(path, 9)], SPEC, batch_size=16)[0]
    assert batch["labelled"][:, 0].tolist() == [True] * 6 + [False] * 3


def test_a_training_target_with_ground_truth_is_preferred(clip):
    class Sparse(Points):
        def __call__(self) -> PointAnnotation:
            frames = np.arange(0, 100, 3)
            return PointAnnotation(FixationTable.build(frames, frames, frames * 0 + 9, None, self.size), 4.0)

    data = TrainingClips([replace(item(clip), open_annotation=Sparse(100))], SPEC, segment=None)
    samples = [data[e, 0] for e in range(10)]
    assert all(bool(s["labelled"]) == (int(s["frame"]) % 3 == 0) for s in samples)
    assert sum(bool(s["labelled"]) for s in samples) >= 9


def test_anticipation_gives_the_frames_ahead(clip):
    spec = ClipSpec(
        frames=4, size=(48, 64), step=0.2, step_unit="seconds", target=(0.4, 0.8), std=(1.0, 1.0, 1.0)
    )
    sample = TrainingClips([item(clip)], spec, flip=0.0, segment=None)[0, 0]
    shown = numbers(sample["video"])
    assert np.diff(shown).tolist() == [5, 5, 5]
    assert (sample["frame"] - shown[-1]).tolist() == [10, 20]
    assert sample["density"].shape == (2, 48, 64)
    # At the end of the video there is nothing ahead: not labelled.
    last = VideoBatches([item(clip)], spec, batch_size=50)[1]
    assert last["labelled"][-1].tolist() == [False, False]


def test_the_crop_of_the_frames_is_the_crop_of_their_maps(tmp_path):
    path = write_clip(tmp_path / "wide.mp4", frames=20, fps=25, height=96, width=160)
    spec = ClipSpec(frames=2, size=(48, 48), resize="short_side_crop", std=(1.0, 1.0, 1.0))

    def annotation() -> PointAnnotation:
        frames = np.arange(20).repeat(2)
        x = np.tile([80.0, 8.0], 20)  # one in the middle, one in the part that is cut off
        return PointAnnotation(FixationTable.build(frames, x, x * 0 + 48, None, (96, 160)), 3.0)

    data = TrainingClips([VideoItem("set/w", 20, 25.0, OpenVideo(path), annotation)], spec, flip=0.0)
    sample = data[0, 0]
    assert sample["density"].shape == (1, 48, 48)
    assert sample["fixations"][0].tolist() == [[24, 24]]
    assert int(sample["density"].argmax()) in {24 * 48 + 24, 24 * 48 + 23, 23 * 48 + 24, 23 * 48 + 23}


def test_sound_is_silence_outside_the_file_and_resampled_where_asked(tmp_path):
    path = write_clip(tmp_path / "c.mp4", frames=50, fps=Fraction(25), sound=tone(1.0, 8000), rate=8000)
    spec = replace(SPEC, audio=AudioSpec(16000, seconds=1.0))
    batch = VideoBatches([item(path, 50)], spec, batch_size=50)[0]
    assert batch["audio"].shape == (50, 16000)
    assert batch["audio_rate"].tolist() == [16000] * 50
    loud = batch["audio"].abs().amax(1)
    assert loud[20] > 0.2
    assert batch["audio"][0, :4000].abs().max() == 0  # before the file
    assert batch["audio"][-1].abs().max() < 0.02  # after its sound


class Broken:
    def __call__(self):
        raise DataError("cannot be read")


def test_a_broken_video_is_skipped_counted_and_named_or_stops(clip):
    good, bad = item(clip), replace(item(clip, name="set/bad"), open_annotation=Broken())
    data = TrainingClips([good, bad], SPEC, segment=32)
    loader = ClipLoader(
        data, batch_size=4, sampler=EpochSampler(len(data)), collate_fn=collate, num_workers=1
    )
    batches = list(loader)
    assert sum(len(b["video"]) for b in batches) == len(data)
    assert {name for b in batches for name in b["video_name"]} == {"set/a"}
    assert list(loader.skipped) == ["set/bad"]
    assert all("skipped" not in b for b in batches)
    with pytest.raises(DataError, match="set/bad"):
        _ = TrainingClips([bad], SPEC, strict=True)[0, 0]
    evaluation = VideoBatches([good, bad], SPEC, batch_size=50)
    assert evaluation[2]["video_name"][0] == "set/a"
    with pytest.raises(DataError, match=r"set/bad"):
        _ = VideoBatches([bad], SPEC, strict=True)[0]


def test_an_index_of_thousands_of_videos_costs_nothing(clip):
    items = [replace(item(clip), name=f"set/{k}") for k in range(5000)]
    data = TrainingClips(items, SPEC)
    assert len(data) == 5000 * 2
    assert len(data._open._open) == 0
    for k in range(0, 10000, 500):
        _ = data[0, k]
    assert len(data._open._open) <= 16


def test_ragged_samples_are_padded():
    def sample(points: int, samples: int, rate: int) -> dict:
        return {
            "video": torch.zeros(3, 2, 4, 4),
            "audio": torch.ones(samples),
            "audio_rate": rate,
            "has_audio": samples > 0,
            "fixations": [torch.full((points, 2), 3)],
            "observer": [torch.arange(points)],
            "video_id": points,
            "video_name": f"s/{points}",
        }

    batch = collate([sample(0, 5, 8000), sample(3, 9, 16000)])
    assert batch["fixations"].shape == (2, 1, 3, 2)
    assert batch["fixations"][0].eq(-1).all()
    assert batch["observer"][1, 0].tolist() == [0, 1, 2]
    assert batch["audio"].sum(1).tolist() == [5, 9]
    assert batch["audio_length"].tolist() == [5, 9]


@pytest.mark.parametrize("source", [(480, 640), (1080, 1920), (118, 160), (576, 720), (97, 131), (12, 9)])
@pytest.mark.parametrize("size", [(240, 320), (112, 112), (56, 77)])
def test_the_nearest_resize_is_pillows(source, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *source, 3), dtype=np.uint8)
    image = torch.from_numpy(frames).permute(0, 3, 1, 2)
    picked = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.NEAREST) for frame in frames]
    expected = torch.from_numpy(np.stack([np.asarray(frame) for frame in picked])).permute(0, 3, 1, 2)
    assert torch.equal(resize_frames(image, size, mode="nearest"), expected)
    assert torch.equal(resize_frames(image.float(), size, mode="nearest"), expected.float())


def test_the_nearest_resize_is_pillows_for_every_height_of_a_film():
    for height in range(1, 1100):
        ramp = np.arange(height, dtype=np.float32)[:, None]
        for wanted in (112, 240):
            expected = np.asarray(Image.fromarray(ramp).resize((1, wanted), Image.Resampling.NEAREST))
            found = resize_frames(torch.from_numpy(ramp)[None, None], (wanted, 1), mode="nearest")
            assert np.array_equal(found[0, 0].numpy(), expected), (height, wanted)
