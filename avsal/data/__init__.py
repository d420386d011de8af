"""Data sets: videos with sound and gaze in, batches out. Everything is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "SaliencyDataModule": "module",
    "LayoutDataModule": "audiovisual",
    "SynthAVDataModule": "audiovisual",
    "DIEMDataModule": "audiovisual",
    "Coutrot1DataModule": "audiovisual",
    "Coutrot2DataModule": "audiovisual",
    "AVADDataModule": "audiovisual",
    "ETMDDataModule": "audiovisual",
    "SumMeDataModule": "audiovisual",
    "AVSaliencyDataModule": "audiovisual",
    "FolderDataModule": "folder",
    "HEVC33DataModule": "fixdata",
    "FindWhoDataModule": "fixdata",
    "MVVADataModule": "fixdata",
    "LEDOVDataModule": "fixdata",
    "DHF1KDataModule": "silent",
    "Hollywood2DataModule": "silent",
    "UCFSportsDataModule": "silent",
    "SALICONDataModule": "images",
    "MIT1003DataModule": "images",
    "AViMoSDataModule": "crowd",
    "NTIRE2026DataModule": "crowd",
    "CrowdSALDataModule": "crowd",
    "Ego4DGazeDataModule": "egocentric",
    "AriaGazeDataModule": "egocentric",
    "FramePreprocessor": "frames",
    "generate": "synthetic",
    "VideoItem": "items",
    "TrainingClips": "windows",
    "VideoBatches": "windows",
    "collate": "loading",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"avsal.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'avsal.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
