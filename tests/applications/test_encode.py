"""Weighted encodes of noise: where the bits go, against the plain encode and another decoder."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from avsal.applications.encode import Held, compare, encode, measure
from avsal.errors import ConfigError, DataError
from avsal.io.regions import regions_of
from avsal.io.render import VideoWriter
from tests.media import tone, write_clip

HEIGHT, WIDTH, FPS, COUNT = 128, 192, 24, 24
LEFT = np.zeros((8, 12))
LEFT[:, :3] = 1 / 24


def looked_at(map_: np.ndarray = LEFT) -> list[tuple[float, np.ndarray]]:
    return [(number / FPS, map_) for number in range(COUNT)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    sound = write_clip(folder / "sound.mp4", frames=COUNT, fps=FPS, sound=tone(COUNT / FPS))
    texture = np.random.default_rng(0).integers(40, 216, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)
    path = folder / "noise.mkv"
    with VideoWriter(path, FPS, (HEIGHT, WIDTH), audio_from=sound, lossless=True) as writer:
        for number in range(COUNT):
            writer.write(np.roll(texture, 3 * number, axis=0), number / FPS)
    return path


@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(-2, 2)))
def test_regions_cover_each_block_once_with_its_offset(offsets: np.ndarray) -> None:
    rows, columns = offsets.shape
    size = (16 * rows - 3, 16 * columns - 5)
    painted = np.zeros(size, int)
    count = np.zeros(size, int)
    for x, y, width, height, offset in regions_of(offsets, size):
        painted[y : y + height, x : x + width] = offset
        count[y : y + height, x : x + width] += 1
    y = np.linspace(0, size[0], rows + 1).round().astype(int)
    x = np.linspace(0, size[1], columns + 1).round().astype(int)
    for row in range(rows):
        for column in range(columns):
            block = np.s_[y[row] : y[row + 1], x[column] : x[column + 1]]
            assert (painted[block] == offsets[row, column]).all()
            assert (count[block] == (offsets[row, column] != 0)).all()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_at_one_size_the_looked_at_part_is_nearer_to_the_source(
    film: Path, tmp_path: Path, codec: str
) -> None:
    out = tmp_path / "out.mp4"
    found = compare(film, out, looked_at(), codec=codec, crf=30, equal="size", preset="veryfast")  # type: ignore[arg-type]
    assert abs(found.saving) < 0.03
    assert found.weighted.eye_psnr > found.plain.eye_psnr + 1
    assert found.weighted.eye_ssim > found.plain.eye_ssim
    # Another reader, without avsal: error in the left quarter and in the rest.
    with av.open(str(film)) as source, av.open(str(out)) as result:
        pairs = zip(source.decode(video=0), result.decode(video=0), strict=True)
        errors = np.stack([
            (one.to_ndarray(format="gray").astype(float) - two.to_ndarray(format="gray")[:HEIGHT, :WIDTH]) ** 2
            for one, two in pairs
        ])  # fmt: skip
        assert result.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert len(result.streams.audio) == 1
    assert len(errors) == COUNT
    assert errors[..., : WIDTH // 4].mean() < 0.5 * errors[..., WIDTH // 4 :].mean()


def test_at_one_quality_where_people_look_the_file_is_smaller(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "maps.npy", np.repeat(LEFT[None], COUNT, 0).astype(np.float32))
    peaks = [{"frame": n, "time": n / FPS} for n in range(COUNT)]
    (folder / "summary.json").write_text(
        json.dumps({"source": {"path": str(film)}, "model": "x", "peaks": peaks})
    )
    found = encode(folder, tmp_path / "out.mp4", crf=30, preset="veryfast")
    assert found.weighted.eye_psnr == pytest.approx(found.plain.eye_psnr, abs=0.15)
    assert found.saving > 0.05
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["weighted"]["bytes"] < numbers["plain"]["bytes"]


def test_attention_that_is_even_changes_nothing(film: Path) -> None:
    held = Held(looked_at(np.full((8, 12), 1 / 96)), (HEIGHT, WIDTH))
    assert not held.offsets(0.3, 6).any()
    assert held.weights(0.3).sum() == pytest.approx(1)


def test_a_known_error_has_its_known_psnr(tmp_path: Path) -> None:
    for name, level in (("one", 100), ("two", 110)):
        with VideoWriter(tmp_path / f"{name}.mkv", FPS, (48, 64), lossless=True) as writer:
            for number in range(3):
                picture = np.full((48, 64, 3), 100, np.uint8)
                picture[:, :32] = level
                writer.write(picture, number / FPS)
    where = np.zeros((6, 8))
    where[:, 0] = 1 / 6
    eyes = Held([(0.0, where)], (48, 64))
    found = measure(tmp_path / "one.mkv", tmp_path / "two.mkv", eyes)
    assert found.psnr == pytest.approx(20 * np.log10(255 / 10) + 10 * np.log10(2), abs=1e-3)
    # The weight is bilinear between blocks, and all of it lies in the changed half.
    assert found.eye_psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


def test_bad_input_is_refused_and_leaves_nothing(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "film.mp4"
    with pytest.raises(ConfigError, match="libnope"):
        compare(film, out, looked_at(), codec="libnope")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quantiser"):
        compare(film, out, looked_at(), strength=40)
    with pytest.raises(DataError, match="no map"):
        compare(film, out, [])
    assert not out.exists()
