"""Detector, tracks, Light-ASD and the stream that joins them, against golden numbers and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avsal.errors import WeightsError
from avsal.nn.facedetector import FaceDetector
from avsal.nn.facetracks import EVERY, GAP, SMOOTH, FaceTracker
from avsal.nn.lightasd import REACH, ROWS, LightASD, mfcc
from avsal.nn.speakers import AHEAD, DELAY, HOP, Face, SpeakerStream, face_picture

GOLDEN = Path(__file__).parents[1] / "golden" / "speaker.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """MFCCs by python_speech_features 0.6; `rfb320_face.onnx` and the authors' Light-ASD with our rounded weights."""
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}


def chirp() -> Tensor:
    t = np.arange(4007) / 16000
    sound = 9000 * np.sin(2 * np.pi * (300 + 900 * t) * t) * (0.3 + np.sin(2 * np.pi * 5 * t) ** 2)
    return torch.from_numpy(np.round(sound) / 32768)


@pytest.mark.parametrize("name", ["mfcc", "mfcc_silent", "mfcc_short"])
def test_mfccs_are_those_of_python_speech_features(golden: dict[str, Tensor], name: str) -> None:
    sound = {"mfcc": chirp(), "mfcc_silent": torch.zeros(800), "mfcc_short": chirp()[:300]}[name]
    torch.testing.assert_close(mfcc(sound), golden[name], rtol=1e-4, atol=1e-4)


def test_sound_that_begins_a_tick_earlier_has_the_same_mfccs_after_it() -> None:
    sound = torch.randn(16000, generator=torch.Generator().manual_seed(1)) / 10
    torch.testing.assert_close(mfcc(sound[HOP:])[1:-1], mfcc(sound)[ROWS + 1 : -1], rtol=1e-4, atol=1e-3)


# -- Light-ASD -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asd() -> LightASD:
    torch.manual_seed(3)
    network = LightASD().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.01, 0.2)
    return network


def test_faces_in_pieces_are_encoded_as_in_one(asd: LightASD) -> None:
    faces = torch.rand(1, 31, 112, 112, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        whole, past, pieces = asd.faces(faces), None, []
        for first, stop in ((0, 1), (1, 3), (3, 11), (11, 12), (12, 31)):
            codes, past = asd.encode(faces[:, first:stop], past, final=stop == 31)
            pieces.append(codes)
    assert whole.shape == (1, 31, 128)
    # single precision: sums over other shapes are taken in another order
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=1e-3)


def test_a_face_is_encoded_from_six_pictures_on_either_side(asd: LightASD) -> None:
    faces = torch.full((1, 30, 112, 112), 120.0)
    other = faces.clone()
    other[0, 15] += torch.rand(112, 112, generator=torch.Generator().manual_seed(0)) * 100
    with torch.no_grad():
        changed = (asd.faces(faces) - asd.faces(other)).abs().amax(2)[0] > 0
    assert changed[15 - REACH : 16 + REACH].any()
    assert not changed[: 15 - REACH].any()
    assert not changed[16 + REACH :].any()


def test_weights_of_another_network_are_refused_by_name() -> None:
    state = LightASD().state_dict()
    with pytest.raises(WeightsError, match=r"missing.*lossAV\.FC\.weight"):
        LightASD().load_published({k: v for k, v in state.items() if not k.startswith("lossAV")})
    with pytest.raises(WeightsError, match="unexpected"):
        FaceDetector().load_published({**FaceDetector().state_dict(), "more": torch.zeros(1)})


# -- tracks --------------------------------------------------------------------------------------------


def face(x: float, y: float = 0.5, side: float = 0.1, score: float = 0.9) -> list[float]:
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2, score]


def tracked(*detections: list[list[float]]) -> FaceTracker:
    tracker = FaceTracker()
    for number, faces in enumerate(detections):
        tracker.update(number * EVERY, torch.tensor(faces).view(-1, 5))
    return tracker


def test_a_face_that_moves_is_one_track_with_the_boxes_between_the_detections() -> None:
    (track,) = tracked([face(0.3)], [face(0.34)], [face(0.38)]).tracks
    assert (track.start, track.stop, track.found) == (0, 2 * EVERY + 1, 3)
    middles = torch.stack(track.boxes)[:, [0, 2]].mean(1)
    torch.testing.assert_close(middles, 0.3 + 0.008 * torch.arange(11.0))


def test_two_faces_that_come_near_keep_their_numbers() -> None:
    tracker = tracked(*([face(0.3 + 0.03 * k), face(0.7 - 0.03 * k)] for k in range(6)))
    assert [t.number for t in tracker.tracks] == [0, 1]
    assert float(tracker.tracks[0].boxes[-1][0]) < float(tracker.tracks[1].boxes[-1][0])


def test_a_gap_is_bridged_and_a_longer_one_ends_the_track() -> None:
    seen, gone = [face(0.5)], []
    assert len(tracked(seen, *[gone] * GAP, seen).tracks) == 1
    tracker = tracked(seen, *[gone] * (GAP + 1), seen)
    assert [track.ended for track in tracker.tracks] == [True, False]


def test_a_cut_ends_all_tracks_though_the_new_shot_has_a_face_in_the_same_place() -> None:
    tracker = tracked([face(0.5)])
    tracker.cut(3)
    tracker.update(3, torch.tensor([face(0.5)]))
    assert [(t.start, t.stop, t.ended) for t in tracker.tracks] == [(0, 3, True), (3, 4, False)]


def test_an_unsure_detection_goes_on_with_a_track_but_begins_none() -> None:
    assert len(tracked([face(0.5, score=0.55)], [face(0.5, score=0.55)]).tracks) == 0
    (track,) = tracked([face(0.5)], [face(0.5, score=0.55)]).tracks
    assert track.found == 2


def test_one_wild_detection_does_not_move_the_smoothed_box() -> None:
    tracker = tracked(*([face(0.5)] for _ in range(3)))
    (track,) = tracker.tracks
    track.boxes[5] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(track.smooth(5), torch.tensor(face(0.5)[:4]))


# -- detector ------------------------------------------------------------------------------------------


def test_priors_cover_the_picture_of_any_size_and_boxes_are_shares_of_it() -> None:
    torch.manual_seed(0)
    detector = FaceDetector().eval()
    with torch.no_grad():
        scores, boxes = detector(torch.zeros(2, 3, 240, 320))
        assert scores.shape == (2, 4420, 2)
        assert boxes.shape == (2, 4420, 4)
        torch.testing.assert_close(scores.sum(-1), torch.ones(2, 4420))
        # maps of 13x42, 7x21, 4x11 and 2x6 with 3, 2, 2 and 3 priors a place
        assert (
            detector(torch.zeros(1, 3, 101, 333))[0].shape[1]
            == 3 * 13 * 42 + 2 * 7 * 21 + 2 * 4 * 11 + 3 * 2 * 6
        )
    assert detector.detect(torch.randint(0, 255, (3, 57, 91), dtype=torch.uint8)).shape[1] == 5


# -- stream --------------------------------------------------------------------------------------------

SQUARE = (40, 60)  # height, width of the test pictures


class Squares(nn.Module):
    """Detects what is pure red, in columns that touch: a detector whose answer is known."""

    def detect(self, image: Tensor) -> Tensor:
        red = (image[0] > 200) & (image[1] < 60)
        height, width = red.shape
        columns = [*red.any(0).tolist(), False]
        rows, start = [], None
        for x, inside in enumerate(columns):
            if inside and start is None:
                start = x
            elif not inside and start is not None:
                y = red[:, start:x].any(1).nonzero()
                rows.append([start / width, float(y[0]) / height, x / width, float(y[-1] + 1) / height, 0.95])
                start = None
        return torch.tensor(rows).view(-1, 5)


def shot(*places: int, shade: int = 90, seed: int = 0) -> np.ndarray:
    """A grey picture with red squares of 10 pixels whose left edges are at `places`."""
    image = np.full((*SQUARE, 3), shade, np.uint8)
    noise = np.random.default_rng(seed).integers(0, 50, (10, 10, 3), dtype=np.uint8)
    for x in places:
        image[12:22, x : x + 10] = noise + np.array([205, 0, 0], np.uint8)
    return image


class Wave:
    """A sound in memory."""

    has_audio = True

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples

    def read(self, begin: int, end: int) -> Tensor:
        index = torch.arange(begin, end)
        inside = (index >= 0) & (index < len(self.samples))
        return torch.where(inside, self.samples[index.clamp(0, len(self.samples) - 1)], 0.0)


def follow(
    asd: LightASD, frames: list[tuple[float, np.ndarray]], sound: Wave | None = None, faces: int = 6
) -> tuple[list[list[Face]], SpeakerStream]:
    """Push frames as `predict_video` does and ask for each one's faces as soon as they are due."""
    stream = SpeakerStream(Squares(), asd, sound, faces)  # type: ignore[arg-type]
    found: list[list[Face]] = []
    for time, image in frames:
        stream.push(image, time)
        while len(found) < len(frames) and frames[len(found)][0] + DELAY <= time:
            found.append(stream.at(frames[len(found)][0]))
    stream.finish()
    found += [stream.at(time) for time, _ in frames[len(found) :]]
    return found, stream


def film(ticks: int, fps: float, picture: Callable[[int], np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """Frames at a rate, each showing what its nearest tick shows."""
    return [(k / fps, picture(round(k / fps * 25))) for k in range(round(ticks / 25 * fps))]


def test_streaming_scores_are_those_of_the_whole_film(asd: LightASD) -> None:
    """The network run by hand: encoders and forward GRU over all, backward GRU from where the stream has looked to."""
    ticks = 64
    pictures = [shot(20, seed=k) for k in range(ticks)]
    sound = Wave(torch.randn(ticks * HOP, generator=torch.Generator().manual_seed(5)) / 20)
    found, _stream = follow(asd, [(k / 25, image) for k, image in enumerate(pictures)], sound)
    box = torch.tensor([20 / 60, 12 / 40, 30 / 60, 22 / 40])
    with torch.no_grad():
        faces = asd.faces(torch.stack([face_picture(image, box) for image in pictures])[None])
        around = 8
        wave = sound.read(-around * HOP, (ticks + around) * HOP + HOP)
        heard = asd.sound(mfcc(wave)[None, : ROWS * (ticks + 2 * around)])[:, around:-around]
        forward, _ = asd.model.GRU.gru_forward(faces + heard)
        for tick in (0, 7, 23, 24, 39, 40, 63):
            (one,) = found[tick]
            torch.testing.assert_close(one.box, box)
            seen = EVERY * math.ceil((tick + SMOOTH + REACH + AHEAD) / EVERY) + 1 - SMOOTH - REACH
            until = seen if seen + SMOOTH + REACH <= ticks else ticks
            expected = asd.speaks(asd.model.GRU.backwards(forward[:, :until]))[0, tick]
            torch.testing.assert_close(one.scores[1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fps", [12.5, 50.0, 60.0])
def test_the_frame_rate_does_not_matter(asd: LightASD, fps: float) -> None:
    """A picture that changes at 12.5 Hz is the same film at every rate that shows it."""

    def picture(tick: int) -> np.ndarray:
        return shot(20, seed=0 if fps == 60.0 else tick // 2)

    at_25, _ = follow(asd, [(k / 25, picture(k)) for k in range(50)])
    other = film(50, fps, lambda tick: picture(min(tick, 49)))
    found, _ = follow(asd, other)
    assert len(found) == len(other)
    assert all(len(faces) == 1 for faces in found)
    if fps != 12.5:  # a frame stands until the next one comes, or half a tick at the film's end
        for (time, _), faces in list(zip(other, found, strict=True))[: len(other) // 3]:
            torch.testing.assert_close(faces[0].scores, at_25[round(time * 25)][0].scores)


def test_what_is_seen_does_not_depend_on_the_sound_and_without_one_nothing_is_heard(asd: LightASD) -> None:
    frames = [(k / 25, shot(20, seed=k)) for k in range(60)]
    silent, _ = follow(asd, frames)
    sound = Wave(torch.randn(60 * HOP, generator=torch.Generator().manual_seed(1)) / 10)
    heard, _ = follow(asd, frames, sound)
    for tick in range(60):
        assert silent[tick][0].scores[1:].tolist() == [0.0, 0.0]
        torch.testing.assert_close(heard[tick][0].scores[0], silent[tick][0].scores[0])
        assert float(heard[tick][0].scores[1:].abs().min()) > 0 or tick == 0


def test_a_cut_gives_new_tracks_and_no_face_of_the_old_shot(asd: LightASD) -> None:
    frames = [(k / 25, shot(10 if k < 33 else 40, shade=30 if k < 33 else 220, seed=k)) for k in range(70)]
    found, stream = follow(asd, frames)
    assert stream.cuts == 1
    assert {one.track for faces in found[:33] for one in faces} == {0}
    assert {one.track for faces in found[33:] for one in faces} == {1}
    assert all(float(faces[0].box[0]) > 0.5 for faces in found[33:])


def test_a_film_without_faces_has_none_and_a_short_one_no_scores(asd: LightASD) -> None:
    assert follow(asd, [(k / 25, shot()) for k in range(40)])[0] == [[]] * 40
    (only,) = follow(asd, [(0.0, shot(20))])[0]
    assert len(only) == 1
    assert only[0].scores.isnan().all()
    assert SpeakerStream(Squares(), asd).at(0.0) == []  # type: ignore[arg-type]


def test_of_a_crowd_the_largest_faces_are_scored_and_all_are_reported(asd: LightASD) -> None:
    found, _ = follow(asd, [(k / 25, shot(2, 22, 42, seed=k)) for k in range(50)], faces=2)
    for faces in found:
        assert len(faces) == 3
        assert sum(bool(one.scores.isnan().any()) for one in faces) == 1


def test_memory_does_not_grow_with_the_film(asd: LightASD) -> None:
    """One face comes and goes, one stays; what the stream keeps after 8 s is what it kept after 4 s."""

    def kept(stream: SpeakerStream) -> tuple[int, ...]:
        scored = stream._scored.values()
        boxes = [len(track.boxes) for track in stream.tracker.tracks]
        return (
            len(stream._frames), len(stream._results), len(stream._codes), len(scored), sum(boxes),
            sum(len(one.scores) for one in scored),
        )  # fmt: skip

    stream = SpeakerStream(Squares(), asd, Wave(torch.zeros(9 * 16000)))  # type: ignore[arg-type]
    seen = []
    for k in range(200):
        stream.push(shot(20, *((45,) if k // 50 % 2 else ()), seed=k % 7), k / 25)
        stream.at(k / 25 - DELAY)
        if k in (99, 199):
            seen.append(kept(stream))
    assert seen[0] == seen[1]


def test_a_face_at_the_border_is_cut_out_with_grey_outside() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    picture = face_picture(image, torch.tensor([-0.2, -0.3, 0.2, 0.3]))
    assert picture.shape == (112, 112)
    assert float(picture[0, 0]) == 110.0
    assert abs(float(picture[-1, -1]) - 200) < 1e-3
    assert (face_picture(image, torch.tensor([1.5, 1.5, 1.6, 1.6])) == 110).all()
