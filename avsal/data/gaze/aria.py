"""Recordings of Project Aria glasses: pictures, sound and gaze out of a VRS file and its MPS gaze table.

VRS is read with `projectaria_tools`, the optional extra `aria`. All times are seconds since the first picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsal.data.gaze.tables import FIXATION, OUTSIDE, UNTRACKED, GazeTable, read_gaze_table
from avsal.errors import DataError, MediaError

FloatArray = NDArray[np.float64]
#: Metres along the line of sight where the table has no depth (Project Aria's own default).
DEPTH = 1.0


class AriaRecording:
    """The upright pictures, the sound and the camera of one VRS file.

    Pictures are the RGB camera's. Those of the first generation of glasses lie on their side and are turned by 90
    degrees clockwise; later ones are upright already.

    Args:
        path: the VRS file.

    Raises:
        DataError: `projectaria_tools` is not installed.
        MediaError: the file is missing or no VRS, or has no RGB camera.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    @cached_property
    def provider(self) -> Any:
        """The data provider of projectaria_tools."""
        data_provider = self._tools("data_provider")
        if not self.path.is_file():
            raise MediaError(f"{self.path}: there is no such recording.")
        try:
            provider = data_provider.create_vrs_data_provider(str(self.path))
        except RuntimeError as error:
            raise MediaError(f"{self.path}: cannot be read as a VRS recording ({error}).") from error
        if provider is None:
            raise MediaError(f"{self.path}: cannot be read as a VRS recording.")
        return provider

    def _tools(self, part: str) -> Any:
        """Return a module of projectaria_tools.core; every use of the extra goes through here."""
        try:
            return import_module(f"projectaria_tools.core.{part}")
        except ImportError as error:
            raise DataError(
                f"{self.path}: reading VRS files needs projectaria_tools; install it with pip install 'avsal[aria]'."
            ) from error

    def _stream(self, label: str) -> Any:
        return self.provider.get_stream_id_from_label(label)

    @cached_property
    def _camera(self) -> Any:
        stream = self._stream("camera-rgb")
        if stream is None or self.provider.get_num_data(stream) == 0:
            raise MediaError(f"{self.path}: the recording has no pictures of the RGB camera.")
        return stream

    @cached_property
    def timestamps(self) -> NDArray[np.int64]:
        """(n,) nanoseconds of the device's clock at which the pictures were taken."""
        clock = self._tools("sensor_data").TimeDomain.DEVICE_TIME
        return np.array(self.provider.get_timestamps_ns(self._camera, clock), dtype=np.int64)

    @property
    def times(self) -> FloatArray:
        """(n,) seconds since the first picture."""
        return (self.timestamps - self.timestamps[0]) / 1e9

    @property
    def start(self) -> float:
        """Seconds of the device's clock at the first picture."""
        return float(self.timestamps[0]) / 1e9

    @property
    def fps(self) -> float:
        """Pictures per second: the camera's nominal rate."""
        return float(self.provider.get_nominal_rate_hz(self._camera))

    @cached_property
    def _turned(self) -> bool:
        """Whether the stored pictures lie on their side."""
        # projectaria_tools before 2.0 supports the first generation only and does not report it.
        version = getattr(self.provider, "get_device_version", None)
        return version is None or version().name == "Gen1"

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upright pictures."""
        configuration = self.provider.get_image_configuration(self._camera)
        size = int(configuration.image_height), int(configuration.image_width)
        return size[::-1] if self._turned else size

    def __len__(self) -> int:
        return len(self.timestamps)

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return (k, H, W, 3) uint8 RGB upright pictures.

        Raises:
            MediaError: a picture is damaged.
        """
        pictures: dict[int, NDArray[np.uint8]] = {}
        for k in indices:
            if k not in pictures:
                image = self.provider.get_image_data_by_index(self._camera, int(k))[0]
                if not image.is_valid():
                    raise MediaError(f"{self.path}: picture {k} of the recording cannot be read.")
                stored = image.to_numpy_array()
                pictures[k] = np.ascontiguousarray(np.rot90(stored, -1) if self._turned else stored)
        return np.stack([pictures[k] for k in indices])

    @property
    def has_audio(self) -> bool:
        """Whether microphones were recorded."""
        stream = self._stream("mic")
        return stream is not None and self.provider.get_num_data(stream) > 0

    def sound(self, rate: int | None = None) -> AriaSound:
        """Return the recording's sound, the mean of its microphones."""
        return AriaSound(self, rate)

    def project(self, table: GazeTable) -> tuple[FloatArray, FloatArray]:
        """Return where each gaze direction meets the upright picture, in shares of its width and height.

        The direction (tan yaw, tan pitch, 1) in the central-pupil frame, followed for `depth` (1 m where unknown),
        is moved to the camera and projected with its fisheye calibration; NaN where it does not meet the picture.
        """
        mps = self._tools("mps")
        calibration = self.provider.get_device_calibration()
        camera = calibration.get_camera_calib("camera-rgb")
        to_camera = calibration.get_transform_cpf_sensor("camera-rgb").inverse()
        # The calibration is for the full sensor; recordings may be stored smaller.
        width, height = (int(v) for v in camera.get_image_size())
        x, y = np.full(len(table), np.nan), np.full(len(table), np.nan)
        depths = table.depth if table.depth is not None else np.full(len(table), np.nan)
        for k in np.flatnonzero(table.tracked):
            depth = float(depths[k]) if np.isfinite(depths[k]) and depths[k] > 0 else DEPTH
            point = mps.get_eyegaze_point_at_depth(float(table.x[k]), float(table.y[k]), depth)
            pixel = camera.project(np.asarray(to_camera @ np.asarray(point).reshape(3, 1)).ravel())
            if pixel is not None and not self._turned:
                x[k], y[k] = pixel[0] / width, pixel[1] / height
            elif pixel is not None:
                # Turned clockwise: the sensor's column runs down, its row from right to left.
                x[k], y[k] = (height - 1 - pixel[1]) / height, pixel[0] / width
        return x, y

    def gaze(self, path: Path | str, *, max_gap: float = 0.2) -> FloatArray:
        """Return the gaze at every picture.

        Between two tracked samples the point moves on a straight line, which at the middle is the mean that the authors
        of CSTS took to bring 10 Hz gaze to 20 frames per second. Elsewhere the nearest sample counts.

        Args:
            path: the MPS gaze table (any generation), or one of angles on the device's clock.
            max_gap: seconds between samples beyond which nothing is interpolated, and to the nearest sample beyond
                which gaze is not known.

        Returns:
            (n, 4) time, x and y in 0..1 of the upright picture, gaze type (0, 2 outside the picture, 3 untracked).
        """
        table = read_gaze_table(path)
        if table.kind != "angles":
            raise DataError(
                f"{path}: expected gaze directions (yaw, pitch), found {table.units} coordinates."
            )
        table = table.shifted(self.start)
        times = self.times
        index = table.nearest(times, max_gap=max_gap)
        x, y = self.project(table)
        out = np.stack([times, x[index], y[index], np.full(len(times), float(FIXATION))], 1)
        seen = (index >= 0) & table.tracked[index]
        after = np.searchsorted(table.time, times)
        between = np.flatnonzero((after > 0) & (after < len(table)))
        low, high = after[between] - 1, after[between]
        # A lost sample, or one that does not meet the picture, has no coordinates.
        ends = (
            np.isfinite(x[low])
            & np.isfinite(x[high])
            & (table.time[high] - table.time[low] <= max_gap + 1e-9)
        )
        between, low, high = between[ends], low[ends], high[ends]
        share = (times[between] - table.time[low]) / np.maximum(table.time[high] - table.time[low], 1e-12)
        out[between, 1] = x[low] + share * (x[high] - x[low])
        out[between, 2] = y[low] + share * (y[high] - y[low])
        seen[between] = True
        projected = np.isfinite(out[:, 1])
        out[seen & ~projected, 3] = OUTSIDE
        out[~seen, 3] = UNTRACKED
        out[~(seen & projected), 1:3] = 0.5
        outside = (out[:, 1:3] < 0).any(1) | (out[:, 1:3] > 1).any(1)
        out[outside, 3] = OUTSIDE
        out[:, 1:3] = out[:, 1:3].clip(0, 1)
        return out

    def close(self) -> None:
        """Close the file."""
        self.__dict__.pop("provider", None)
        self.__dict__.pop("_camera", None)


class AriaSound:
    """The sound of a recording as one mono waveform on the pictures' clock, read like `avsal.io.AudioStream`.

    Args:
        recording: the recording.
        rate: samples per second to resample to, None for the microphones' own.
    """

    def __init__(self, recording: AriaRecording, rate: int | None = None) -> None:
        self._recording = recording
        self._stream = recording._stream("mic")
        self.has_audio = recording.has_audio
        provider = recording.provider
        self._own = (
            int(provider.get_audio_configuration(self._stream).sample_rate)
            if self.has_audio
            else rate or 48000
        )
        self.rate = rate or self._own

    @cached_property
    def _waveform(self) -> Tensor:
        """The whole sound from time 0 on at `rate`."""
        from torchaudio.functional import resample

        provider = self._recording.provider
        channels = int(provider.get_audio_configuration(self._stream).num_channels)
        pieces, first = [], None
        for k in range(provider.get_num_data(self._stream)):
            data, record = provider.get_audio_data_by_index(self._stream, k)
            first = record.capture_timestamps_ns[0] if first is None else first
            samples = np.asarray(data.data, dtype=np.float64).reshape(-1, channels)
            pieces.append((samples / (float(data.max_amplitude) or 2.0**31)).mean(1).astype(np.float32))
        wave = torch.from_numpy(np.concatenate(pieces))
        begin = round((int(first or 0) - int(self._recording.timestamps[0])) / 1e9 * self._own)
        wave = wave[-begin:] if begin < 0 else torch.nn.functional.pad(wave, (begin, 0))
        return resample(wave, self._own, self.rate) if self.rate != self._own else wave

    @property
    def length(self) -> int:
        """Samples from time 0 to the end."""
        return len(self._waveform) if self.has_audio else 0

    def read(self, begin: int, end: int) -> Tensor:
        """Return the samples [begin, end) at `rate`; zeros outside the recording."""
        out = torch.zeros(max(end - begin, 0))
        low, high = max(begin, 0), min(end, self.length)
        if high > low:
            out[low - begin : high - begin] = self._waveform[low:high]
        return out

    def close(self) -> None:
        """Free the waveform."""
        self.__dict__.pop("_waveform", None)
