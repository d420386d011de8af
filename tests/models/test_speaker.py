"""The speaker stream around a visual model: its gate, its film, its doors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.errors import ConfigError
from avsal.inference.files import predict_files
from avsal.inference.video import FrameMap, VideoPrediction
from avsal.io.render import VideoWriter
from avsal.models.speaker import GATE, SpeakerGate, SpeakerModule
from avsal.nn.speakers import DELAY
from tests.media import tone, write_clip
from tests.nn.test_speakers import GOLDEN, SQUARE, Squares, shot

SIZE = (24, 36)
BASE = {"kind": "centre", "size": SIZE}


def boxes(*middles: tuple[float, float]) -> Tensor:
    """Boxes of 0.1 x 0.2 around (x, y), as one frame's (1, N, 4)."""
    return torch.tensor([[[x - 0.05, y - 0.1, x + 0.05, y + 0.1] for x, y in middles]])


def scores(*seen: float, heard: float = 0.0, agrees: float = 0.0) -> Tensor:
    return torch.tensor([[[one, heard, agrees] for one in seen]])


# -- gate ----------------------------------------------------------------------------------------------


def test_the_gate_is_one_without_faces_and_brightest_at_the_face() -> None:
    gate = SpeakerGate()
    assert (gate(torch.zeros(2, 0, 3), torch.zeros(2, 0, 4), SIZE) == 1).all()
    height, width = 120, 180
    with torch.no_grad():
        factor = gate(scores(3.0), boxes((0.25, 0.4)), (height, width))[0]
    row, column = divmod(int(factor.argmax()), width)
    assert abs((column + 0.5) / width - 0.25) <= 0.5 / width + 1e-6
    assert abs((row + 0.5) / height - 0.42) <= 0.5 / height + 1e-6  # a tenth of the box below its middle
    assert 1 <= float(factor.min()) < 1.01
    assert float(factor.max()) == pytest.approx(1 + GATE["strength"][0], rel=0.01)


def test_the_face_that_speaks_more_is_brighter_and_only_the_difference_counts() -> None:
    gate = SpeakerGate()
    with torch.no_grad():
        shares = gate.shares(scores(2.0, -3.0))
        assert float(shares[0, 0]) == 1.0
        assert float(shares[0, 1]) < 0.3
        torch.testing.assert_close(gate.shares(scores(12.0, 7.0)), shares)
        torch.testing.assert_close(gate.shares(scores(-5.0, -5.0)), torch.ones(1, 2))
        assert float(gate.shares(scores(-9.0))) == 1.0


def test_a_mouth_in_step_with_the_sound_wins_over_an_equal_one() -> None:
    gate = SpeakerGate()
    both = torch.cat([scores(1.0, agrees=0.8), scores(1.0, agrees=-0.2)], 1)
    with torch.no_grad():
        assert float(gate.shares(both)[0, 1]) < 0.4
        assert float(gate.speaks(both)[0, 0]) > float(gate.speaks(both)[0, 1])


def test_faces_of_which_none_is_likely_to_speak_brighten_little() -> None:
    gate, places = SpeakerGate(), boxes((0.25, 0.4), (0.75, 0.4))
    even, strength = GATE["even"][0], GATE["strength"][0]
    with torch.no_grad():
        most = [
            float(gate(scores(best, best), places, (120, 180)).max()) for best in (even - 9, even, even + 9)
        ]
        one = gate(scores(even + 9, even - 9), places, (120, 180))[0]
        # Sound may tell that someone speaks, but a silent one does not take away what the picture says.
        silent = float(gate(scores(even, even, heard=-8.0), places, (120, 180)).max())
        voice = float(gate(scores(even, even, heard=18.0), places, (120, 180)).max())
    assert most == pytest.approx([1.0, 1 + strength / 2, 1 + strength], rel=0.01)
    assert (silent, voice) == pytest.approx((1 + strength / 2, 1 + strength), rel=0.01)
    # Who is likely to speak lends the other face its rest.
    rest = GATE["rest"][0] / (1 + GATE["rest"][0])
    assert float(one[:, 90:].max()) == pytest.approx(1 + strength * rest, rel=0.02)


def test_a_face_without_a_score_leaves_the_map_alone() -> None:
    gate, unknown = SpeakerGate(), torch.full((1, 1, 3), float("nan"))
    with torch.no_grad():
        assert (gate(unknown, boxes((0.5, 0.5)), SIZE) == 1).all()
        some = gate(torch.cat([scores(1.0), unknown], 1), boxes((0.2, 0.5), (0.8, 0.5)), SIZE)
        torch.testing.assert_close(some, gate(scores(1.0), boxes((0.2, 0.5)), SIZE))
    assert gate.speaks(unknown).isnan().all()


def test_the_gate_stays_within_its_limits_whatever_was_learnt() -> None:
    gate = SpeakerGate()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.fill_(1e6)
        factor = gate(scores(50.0, -50.0), boxes((0.2, 0.5), (0.7, 0.5)), SIZE)
        assert 1 <= float(factor.min()) <= float(factor.max()) <= 1 + 2 * GATE["strength"][2]
        for parameter in gate.parameters():
            parameter.fill_(-1e6)
        assert torch.isfinite(gate(scores(50.0, -50.0), boxes((0.2, 0.5), (0.7, 0.5)), SIZE)).all()


def test_every_trained_number_of_the_gate_has_a_gradient() -> None:
    gate = SpeakerGate()
    gate(
        scores(0.5, -0.5, heard=0.3, agrees=0.2), boxes((0.2, 0.5), (0.7, 0.4)), SIZE
    ).log().square().sum().backward()
    for name in ("strength", "rest", "slope", "down", "width", "height"):
        assert float(getattr(gate, name).grad.abs()) > 0, name


# -- film ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module() -> SpeakerModule:
    torch.manual_seed(0)
    module = SpeakerModule("baselines", BASE).eval()
    module.network.detector = Squares()  # type: ignore[assignment]
    return module


def clip(path: Path, *places: int, seconds: float = 2.0, fps: int = 25, sound: bool = True) -> Path:
    """A lossless film of red squares, whose detector is `Squares`, with a tone."""
    wave = None
    if sound:
        wave = write_clip(path.with_suffix(".wav"), frames=0, sound=tone(seconds), audio_codec="pcm_s16le")
    writer = VideoWriter(path, fps, SQUARE, lossless=True, audio_from=wave)
    for k in range(round(seconds * fps)):
        writer.write(shot(*places, seed=k), k / fps)
    writer.close()
    return path


def run(module: SpeakerModule, path: Path, **options: object) -> list[FrameMap]:
    return list(VideoPrediction(module, path, keep_aux=True, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("fps", [12, 25, 60])
def test_every_frame_has_its_map_brightest_on_the_face_at_any_rate(
    module: SpeakerModule, tmp_path: Path, fps: int
) -> None:
    results = run(module, clip(tmp_path / "a.mkv", 44, fps=fps))
    assert [r.index for r in results] == list(range(2 * fps))
    plain = module.network.base.core(torch.zeros(1, 3, 1, *SIZE)).density()[0, 0]
    for result in results:
        assert result.aux["tracks"].tolist() == [0]
        gain = result.map / plain
        row, column = divmod(int(gain.argmax()), SIZE[1])
        assert 44 / 60 < (column + 0.5) / SIZE[1] < 54 / 60
        assert 12 / 40 < (row + 0.5) / SIZE[0] < 24 / 40
        assert float(result.map.sum()) == pytest.approx(1, abs=1e-4)


def test_batches_and_strides_change_nothing(module: SpeakerModule, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", 20)
    one, many = run(module, path, batch_size=1), run(module, path, batch_size=7)
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a.map, b.map)
    strided = run(module, path, stride=6)
    assert [r.index for r in strided] == list(range(0, 50, 6))
    for result in strided:
        torch.testing.assert_close(result.map, one[result.index].map)
    # there is no plain sliding window that knows the film
    torch.testing.assert_close(run(module, path, reuse=False)[30].map, one[30].map)


def test_maps_come_with_a_bounded_delay(module: SpeakerModule, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", 20, seconds=4.0)
    prediction = VideoPrediction(module, path, batch_size=1)
    waits = []
    for result in prediction:
        waits.append(prediction.report.decoded - 1 - result.index)
    assert max(waits[:60]) <= round(DELAY * 25) + 1


def test_a_film_without_faces_has_the_maps_of_its_base(module: SpeakerModule, tmp_path: Path) -> None:
    base = module.network.base.core(torch.zeros(1, 3, 1, *SIZE)).density()[0, 0]
    for result in run(module, clip(tmp_path / "a.mkv", sound=False)):
        torch.testing.assert_close(result.map, base)
        assert result.aux["faces"].shape == (0, 4)


def test_a_film_without_sound_is_followed_by_the_pictures_alone(
    module: SpeakerModule, tmp_path: Path
) -> None:
    results = run(module, clip(tmp_path / "a.mkv", 20, sound=False))
    assert all(r.aux["scores"][0, 1:].tolist() == [0.0, 0.0] for r in results)
    heard = run(module, clip(tmp_path / "b.mkv", 20))
    assert any(float(r.aux["scores"][0, 1].abs()) > 0 for r in heard)


def test_speakers_are_drawn_and_listed(module: SpeakerModule, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", 10, 40)
    (done,) = predict_files(path, module=module, out=tmp_path / "out", show="speakers")
    assert done.status == "done", done.message
    lines = (tmp_path / "out" / "a" / "speakers.csv").read_text().splitlines()
    assert lines[0] == "frame,time,track,left,top,right,bottom,speaking"
    rows = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    assert rows.shape == (100, 8)
    assert set(rows[:, 2]) == {0.0, 1.0}
    assert ((rows[:, 7] >= 0) & (rows[:, 7] <= 1)).all()
    (other,) = predict_files(path, module=module, out=tmp_path / "plain")
    with_boxes, without = ((tmp_path / name / "a" / "overlay.mp4").read_bytes() for name in ("out", "plain"))
    assert other.status == "done"
    assert with_boxes != without


# -- doors ---------------------------------------------------------------------------------------------


def test_a_clip_alone_gives_the_base_map_and_cannot_be_tested(module: SpeakerModule) -> None:
    video = torch.zeros(2, 3, 1, *SIZE)
    torch.testing.assert_close(
        module.network(video).density(), module.network.base.core(video).density(), rtol=1e-4, atol=1e-7
    )
    batch = {"video": video, "density": torch.ones(2, 1, *SIZE)}
    with pytest.raises(ConfigError, match="speaker_gate"):
        module.training_step(batch, 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="avsal evaluate"):
        module.test_step(batch, 0)  # type: ignore[arg-type]


def test_bases_that_hear_or_look_ahead_are_refused() -> None:
    with pytest.raises(ConfigError, match="own ears"):
        SpeakerModule("stavis", {"size": (64, 64), "width": 4})
    with pytest.raises(ConfigError, match="itself"):
        SpeakerModule("speaker")


def test_a_checkpoint_rebuilds_itself(tmp_path: Path) -> None:
    import avsal

    torch.manual_seed(1)
    first = SpeakerModule("baselines", BASE, faces=3).eval()
    first.save_pretrained(tmp_path / "m")
    again = avsal.from_pretrained(tmp_path / "m")
    assert isinstance(again, SpeakerModule)
    assert again.network.faces == 3
    for name, value in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


# -- what is shipped -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> SpeakerModule:
    import avsal

    module = avsal.from_pretrained("speaker-lite-openfix")
    assert isinstance(module, SpeakerModule)
    return module.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    """`rfb320_face.onnx` in ONNX Runtime, and Light-ASD in the authors' code, both with the weights as shipped."""
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}


def test_the_detector_says_what_its_onnx_says(shipped: SpeakerModule, golden: dict[str, Tensor]) -> None:
    y, x = np.mgrid[0:240, 0:320].astype(np.float64)
    waves = [
        127 + 90 * np.sin(x / (11 + 3 * c) + y / (17 - 2 * c)) + 30 * np.cos(x * y / (900 + 100 * c))
        for c in range(3)
    ]
    image = torch.from_numpy((np.stack(waves).round().clip(0, 255) - 127) / 128).float()
    with torch.no_grad():
        seen, found = (value[0] for value in shipped.network.detector(image[None]))
    priors = golden["priors"].long()
    torch.testing.assert_close(seen[priors], golden["scores"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[priors], golden["boxes"], rtol=1e-3, atol=1e-5)


def test_light_asd_says_what_the_authors_code_says(shipped: SpeakerModule, golden: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(1, 20, 112, 112, generator=generator) * 255
    sound = torch.randn(1, 80, 13, generator=generator) * 5
    with torch.no_grad():
        logits = shipped.network.asd(faces, sound)
    torch.testing.assert_close(logits[0], golden["logits"], rtol=1e-4, atol=1e-4)


def test_without_faces_the_shipped_stream_is_mspi_lite(shipped: SpeakerModule, tmp_path: Path) -> None:
    import avsal

    path = write_clip(tmp_path / "a.mp4", frames=3, fps=25, height=96, width=128)
    plain = list(avsal.from_pretrained("mspi-lite-openfix").predict_video(path))
    for one, result in zip(plain, run(shipped, path), strict=True):
        torch.testing.assert_close(result.map, one.map / one.map.sum(), rtol=1e-3, atol=1e-7)
