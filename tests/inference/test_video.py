"""Whole-video prediction against plain loops over windows that share none of its code."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.errors import ConfigError, MediaError, WeightsError
from avsal.inference.video import predict_video
from avsal.io.audio import load_audio
from avsal.io.video import VideoStream
from avsal.models.base import SaliencyModule, SaliencyNetwork, WindowRunner
from avsal.types import AudioSpec, ClipSpec, SaliencyOutput
from tests.media import cut, frame_number, tone, write_clip

HEIGHT, WIDTH = 48, 64


class Recorder(SaliencyNetwork):
    """Writes what it was given into its map: the frames' numbers, the sound's length and first samples."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.windows: list[list[int]] = []
        self.sounds: list[Tensor] = []
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def frontend(self, waveform, audio_length=None, has_audio=None, frame_times=None):  # type: ignore[no-untyped-def]
        for wave, length, has in zip(waveform, audio_length, has_audio, strict=True):
            self.sounds.append(wave[:length] if has else torch.empty(0))
        return waveform

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        numbers = [
            [
                frame_number((clip[:, t].permute(1, 2, 0) * 255).numpy().round().astype(np.uint8))
                for t in range(len(clip[0]))
            ]
            for clip in video
        ]
        self.windows += numbers
        target = torch.tensor([clip[self.spec.target_index] for clip in numbers], dtype=torch.float32)
        return self.output(target[:, None, None, None].expand(-1, 1, 2, 2).clone())


class RecorderModule(SaliencyModule):
    def __init__(self, **spec: object) -> None:
        super().__init__()
        base: Mapping[str, object] = {"frames": 16, "size": (HEIGHT, WIDTH), "target": 8}
        self.network = Recorder(ClipSpec(**{**base, **spec}))  # type: ignore[arg-type]
        self.eval()  # in training mode a twin of the network would predict, and record


def run(module: RecorderModule, path: Path, **options: object) -> tuple[list[int], list[list[int]]]:
    results = list(predict_video(module, path, **options))  # type: ignore[arg-type]
    return [r.index for r in results], module.network.windows


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=40, fps=25, sound=tone(1.6))


@pytest.mark.parametrize(("frames", "target"), [(16, 8), (16, "last"), (32, "last"), (7, 0), (1, 0)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_every_frame_gets_the_window_around_it_clamped_to_the_video(
    clip: Path, frames: int, target: int | str, batch_size: int
) -> None:
    module = RecorderModule(frames=frames, target=target)
    indices, windows = run(module, clip, batch_size=batch_size)
    place = frames - 1 if target == "last" else int(target)
    assert indices == list(range(40))
    assert windows == [[min(max(t - place + i, 0), 39) for i in range(frames)] for t in range(40)]


def test_a_clip_shorter_than_the_window_repeats_its_ends(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "short.mp4", frames=3, fps=25)
    indices, windows = run(RecorderModule(), path)
    assert indices == [0, 1, 2]
    assert windows[0] == [0] * 9 + [1] + [2] * 6
    assert windows[2] == [0] * 7 + [1] + [2] * 8


def test_steps_and_strides_skip_frames(clip: Path) -> None:
    indices, windows = run(RecorderModule(frames=4, target="last", step=3), clip, stride=5)
    assert indices == list(range(0, 40, 5))
    assert windows[2] == [1, 4, 7, 10]


@pytest.mark.parametrize("coverage", ["full", "authors"])
@pytest.mark.parametrize("rule", ["cyclic", "reversed"])
def test_a_prediction_that_begins_later_has_the_windows_of_the_whole_one(
    clip: Path, rule: str, coverage: str
) -> None:
    def predicted(**options: object) -> tuple[list[int], list[list[int]]]:
        module = RecorderModule(target=8 if rule == "cyclic" else "last", authors_coverage=rule)
        return run(module, clip, coverage=coverage, **options)

    indices, windows = predicted()
    later = [place for place, index in enumerate(indices) if index >= 25][::3]
    expected = [indices[place] for place in later], [windows[place] for place in later]
    assert predicted(begin=25, stride=3) == expected
    assert predicted(begin=40) == ([], [])


def test_frames_are_counted_from_0(clip: Path) -> None:
    with pytest.raises(ConfigError, match="counted from 0"):
        predict_video(RecorderModule(), clip, begin=-1)


def test_authors_coverage_of_stavis_leaves_frames_out_and_repeats_the_last_clips(clip: Path) -> None:
    indices, windows = run(RecorderModule(authors_coverage="cyclic"), clip, coverage="authors")
    # Counted from 1: clips start at frames 1 .. n-1 and are saved as frame j + 8; names above n do not count.
    expected = []
    for j in range(1, 40):
        if j + 8 > 40:
            break
        present = [f for f in range(j, j + 16) if f <= 40]
        expected.append([present[i % len(present)] - 1 for i in range(16)])
    assert indices == [j + 8 - 1 for j in range(1, len(expected) + 1)]
    assert len(indices) == 40 - 8
    assert windows == expected


def test_authors_coverage_of_mspi_reverses_the_first_windows(clip: Path) -> None:
    module = RecorderModule(target="last", authors_coverage="reversed")
    indices, windows = run(module, clip, coverage="authors")
    assert indices == list(range(40))
    for t in range(40):
        expected = list(range(t - 15, t + 1)) if t >= 15 else list(range(t + 15, t - 1, -1))
        assert windows[t] == expected


@pytest.mark.parametrize(("frames", "maps"), [(30, 0), (31, 31)])
def test_authors_coverage_of_mspi_skips_videos_of_fewer_than_31_frames(
    tmp_path: Path, frames: int, maps: int
) -> None:
    path = write_clip(tmp_path / "short.mp4", frames=frames, fps=25)
    module = RecorderModule(target="last", authors_coverage="reversed")
    indices, _ = run(module, path, coverage="authors")
    assert indices == list(range(maps))


def test_a_reversed_window_hears_its_sound_backwards(clip: Path) -> None:
    spec = AudioSpec(16000, before=0.0, after=1.0)
    module = RecorderModule(target="last", authors_coverage="reversed", audio=spec)
    run(module, clip, coverage="authors")
    wave, rate, _ = load_audio(clip, rate=16000)
    begin, end = round(3 / 25 * rate), round(19 / 25 * rate)
    torch.testing.assert_close(module.network.sounds[3], wave[begin:end].flip(0))


def test_the_sound_of_a_window_lies_around_its_frames_and_is_silent_outside_the_file(clip: Path) -> None:
    module = RecorderModule(audio=AudioSpec(None, before=0.5, after=0.5, window="hann"))
    run(module, clip)
    wave, rate, _ = load_audio(clip)
    samples_per_frame = rate / 25
    for t in (0, 4, 20, 39):
        begin = int(np.floor((t - 8) * samples_per_frame - samples_per_frame / 2))
        end = int(np.floor((t + 7) * samples_per_frame + samples_per_frame / 2)) + 1
        expected = torch.zeros(end - begin)
        inside = slice(max(begin, 0), min(end, len(wave)))
        expected[inside.start - begin : inside.stop - begin] = wave[inside]
        torch.testing.assert_close(module.network.sounds[t], expected)


def test_a_video_without_sound_is_told_apart_from_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "mute.mp4", frames=5, fps=25)
    module = RecorderModule(audio=AudioSpec(16000))
    prediction = predict_video(module, path)
    assert len(list(prediction)) == 5
    assert not prediction.has_audio
    assert all(len(sound) == 0 for sound in module.network.sounds)


def test_variable_frame_rate_is_resampled_by_time(tmp_path: Path) -> None:
    # 20 frames 40 ms apart, then a pause of 0.4 s, then 20 more: windows over the pause hold the last frame.
    times = [k * 0.04 for k in range(20)] + [1.2 + k * 0.04 for k in range(20)]
    path = write_clip(tmp_path / "vfr.mp4", frames=40, fps=25, times=times)
    module = RecorderModule(frames=5, target="middle")
    results = list(predict_video(module, path))
    assert [r.index for r in results] == list(range(40))
    assert np.allclose([r.time for r in results], times, atol=1e-3)
    with VideoStream(path) as stream:
        fps = predict_video(module, path).fps
        shown = [frame.time for frame in stream]
    for t, window in enumerate(module.network.windows[:40]):
        nominal = [shown[t] + (i - 2) / fps for i in range(5)]
        for slot, wanted in zip(window, nominal, strict=True):
            best = min(abs(s - wanted) for s in shown)
            assert abs(shown[slot] - wanted) <= best + 0.55 / fps
    # By index the window of the first frame after the pause would reach 0.5 s back; by time it does not.
    assert module.network.windows[20][:2] in ([20, 20], [19, 20])
    assert module.network.windows[19][3:] in ([19, 19], [19, 20])


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 24, 60])
def test_a_steady_clock_gives_neighbouring_frames_whatever_the_container_rounds(
    tmp_path: Path, fps: Fraction
) -> None:
    path = write_clip(tmp_path / "steady.mkv", frames=50, fps=fps)  # Matroska rounds times to milliseconds
    _, windows = run(RecorderModule(), path)
    assert windows == [[min(max(t - 8 + i, 0), 49) for i in range(16)] for t in range(50)]


def test_what_is_left_of_a_truncated_file_is_predicted_and_the_loss_is_reported(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", frames=60, fps=25)
    prediction = predict_video(RecorderModule(), cut(whole, tmp_path / "cut.mkv", 0.5))
    indices = [r.index for r in prediction]
    assert indices == list(range(prediction.report.decoded))
    assert 5 < len(indices) < 60
    assert prediction.report.truncated
    assert "cut.mkv" in (prediction.report.message or "")


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", frames=400, fps=25)
    prediction = predict_video(RecorderModule(), path, batch_size=4)
    largest = 0
    for _ in prediction:
        largest = max(largest, len(prediction._ring))
    assert largest <= 16 + 8


def test_the_ring_is_bounded_where_frames_are_denser_than_the_rate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 200 frames in a burst, then one after 300 s: 0.66 frames per second on average, so a window spans 24 s.
    times = [n * 0.002 for n in range(200)] + [300.0]
    path = write_clip(tmp_path / "burst.mkv", frames=201, times=times)
    monkeypatch.setattr("avsal.inference.video._RING_BYTES", 40 * 4 * 3 * HEIGHT * WIDTH)
    module = RecorderModule()
    prediction = predict_video(module, path)
    longest = 0
    indices = []
    for result in prediction:
        indices.append(result.index)
        longest = max(longest, len(prediction._ring))
    assert indices == list(range(201))
    assert longest <= 42
    assert "shortened" in " ".join(prediction.notes)
    for index, window in zip(indices, module.network.windows, strict=True):
        assert window[8] == index


def test_no_more_pictures_are_held_than_wait_for_their_maps(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avsal.inference.video._IMAGE_BYTES", 9 * 3 * HEIGHT * WIDTH)
    prediction = predict_video(RecorderModule(), clip, keep_images=True)
    held = []
    for result in prediction:
        assert result.image is not None
        assert frame_number(result.image) == result.index
        held.append(sum(kept.image is not None for kept in prediction._ring))
    assert len(held) == 40
    assert max(held) <= 9


class Late(WindowRunner):
    """Runs a window 0.4 s after its frame, and counts the pictures that are alive."""

    delay = 0.4

    def __init__(self, network: SaliencyNetwork) -> None:
        super().__init__(network)
        self.alive = self.most = 0

    def watch(self, index: int, time: float, image: np.ndarray) -> None:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self.gone)

    def gone(self) -> None:
        self.alive -= 1


def test_pictures_that_wait_for_a_late_runner_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "long.mp4", frames=90, fps=25)
    module = RecorderModule()
    runner = Late(module.network)
    monkeypatch.setattr(module.network, "window_runner", lambda: runner)
    monkeypatch.setattr("avsal.inference.video._IMAGE_BYTES", 30 * 3 * HEIGHT * WIDTH)
    prediction = predict_video(module, path, keep_images=True, batch_size=64)
    assert [result.index for result in prediction] == list(range(90))
    # 10 frames of the delay, among them the 7 after the target, 20 of a batch, and the newest
    assert prediction.batch_size == 20
    assert 28 <= runner.most <= 32


def test_windows_that_wait_for_a_late_runner_are_bounded_where_frames_are_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "burst.mkv", frames=121, times=[n * 0.002 for n in range(120)] + [60.0])
    monkeypatch.setattr("avsal.inference.video._RING_BYTES", 40 * 4 * 3 * HEIGHT * WIDTH)
    module = RecorderModule(frames=1, target=0)
    runner = Late(module.network)
    monkeypatch.setattr(module.network, "window_runner", lambda: runner)
    prediction = predict_video(module, path, keep_images=True)
    assert [result.index for result in prediction] == list(range(121))
    assert runner.most <= 40 + 8 + 2
    assert "shortened" in " ".join(prediction.notes)


def test_a_clip_that_spans_too_much_sound_is_refused_and_one_that_spans_much_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = write_clip(tmp_path / "slow.mkv", frames=6, fps=Fraction(1, 20), sound=tone(1, 8000), rate=8000)
    module = RecorderModule(audio=AudioSpec(sample_rate=8000))
    prediction = predict_video(module, slow)
    assert [result.index for result in prediction] == list(range(6))
    assert prediction.batch_size < 8
    monkeypatch.setenv("AVSAL_MAX_CLIP_SAMPLES", "100000")
    with pytest.raises(MediaError, match=r"slow\.mkv.*frames per second.*AVSAL_MAX_CLIP_SAMPLES"):
        predict_video(module, slow)


def test_the_module_keeps_its_mode_and_bad_options_are_named(clip: Path, tmp_path: Path) -> None:
    module = RecorderModule().train()
    list(predict_video(module, clip))
    assert module.training
    with pytest.raises(ConfigError, match="coverage='half'"):
        predict_video(module, clip, coverage="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size=0"):
        predict_video(module, clip, batch_size=0)
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        list(predict_video(module, tmp_path / "text.mp4"))


def test_the_same_picture_and_sound_give_the_same_map_on_either_side(real_data: Path) -> None:
    """The two clips differ in the side that the voice is panned to only: a mono model must not see that."""
    from avsal.models import create_model

    torch.manual_seed(0)
    module = create_model(
        "stavis", width=8, blocks=[1, 1, 1], size=(48, 64), dsam_maps=4, hidden=16, audio_width=4
    )
    maps = []
    for side in ("left", "right"):
        path = real_data / "media" / f"avatars_sound_{side}.mp4"
        maps.append(torch.stack([r.map for r in predict_video(module, path, stride=10)]))
    assert len(maps[0]) == 5
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-5)


# -- one module, several predictions -----------------------------------------------------------------------


class Normalised(SaliencyNetwork):
    """A network whose answer and whose state depend on its mode: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = ClipSpec(frames=4, size=(HEIGHT, WIDTH), target=2)
        self.conv = torch.nn.Conv3d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm3d(4)
        self.drop = torch.nn.Dropout(0.5)

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        return self.output(self.drop(self.norm(self.conv(video))).mean((1, 2))[:, None])


class NormalisedModule(SaliencyModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = Normalised()


def maps_of(module: SaliencyModule, path: Path) -> Tensor:
    return torch.stack([result.map for result in predict_video(module, path, batch_size=3)])


def test_overlapping_predictions_give_the_right_maps_and_leave_the_module_as_it_was(clip: Path) -> None:
    module = NormalisedModule()
    expected = maps_of(module.eval(), clip)
    module.train()
    module.network.norm.eval()  # modes may differ from part to part
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    # In one thread, one inside the other; a run that is given up in the middle.
    first, second = predict_video(module, clip, batch_size=3), predict_video(module, clip, batch_size=3)
    pairs = [(a.map, b.map) for a, b in zip(first, second, strict=True)]
    started = predict_video(module, clip)
    next(started)
    started.close()
    # In several threads, while another one calls the module in training mode.
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda _: maps_of(module, clip), range(8)))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for maps in [torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs]), *threads]:
        assert torch.equal(maps, expected)


def test_a_change_of_mode_in_the_middle_does_not_reach_a_prediction_in_training_mode(clip: Path) -> None:
    module = NormalisedModule()
    expected = maps_of(module.eval(), clip)
    module.train()
    found = []
    for result in predict_video(module, clip, batch_size=3):
        module.train(not module.training)
        found.append(result.map)
    assert torch.equal(torch.stack(found), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_are_an_error_that_names_the_frame(clip: Path, value: float) -> None:
    module = NormalisedModule()
    with torch.no_grad():
        module.network.conv.bias[0] = value
    with pytest.raises(WeightsError, match=r"clip\.mp4: the network's map of frame 0 \(0\.00 s\) holds NaN"):
        list(predict_video(module, clip))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "name", [f"{model}-tiny-synthav" for model in ("stavis", "caspnet", "mspi", "avrsp", "csts")]
)
def test_networks_of_any_floating_point_type_predict_in_float32(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    from avsal.zoo import from_pretrained

    path = write_clip(tmp_path / "x.mp4", frames=4, fps=25, sound=tone(0.16))
    expected = maps_of(from_pretrained(name), path)
    found = maps_of(from_pretrained(name, dtype=dtype), path)
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.995
