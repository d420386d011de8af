"""Data sets: videos with sound and gaze in, batches out. Everything is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "SaliencyDataModule": "module",
    "LayoutDataModule": "sets.audiovisual",
    "SynthAVDataModule": "sets.audiovisual",
    "DIEMDataModule": "sets.audiovisual",
    "Coutrot1DataModule": "sets.audiovisual",
    "Coutrot2DataModule": "sets.audiovisual",
    "AVADDataModule": "sets.audiovisual",
    "ETMDDataModule": "sets.audiovisual",
    "SumMeDataModule": "sets.audiovisual",
    "AVSaliencyDataModule": "sets.audiovisual",
    "FolderDataModule": "sets.folder",
    "HEVC33DataModule": "sets.video_database",
    "FindWhoDataModule": "sets.video_database",
    "MVVADataModule": "sets.video_database",
    "LEDOVDataModule": "sets.video_database",
    "DHF1KDataModule": "sets.dhf1k",
    "Hollywood2DataModule": "sets.dhf1k",
    "UCFSportsDataModule": "sets.dhf1k",
    "PhotosDataModule": "sets.photos",
    "SALICONDataModule": "sets.salicon",
    "MIT1003DataModule": "sets.salicon",
    "AViMoSDataModule": "sets.crowdsal",
    "NTIRE2026DataModule": "sets.crowdsal",
    "CrowdSALDataModule": "sets.crowdsal",
    "Ego4DGazeDataModule": "sets.egocentric",
    "AriaGazeDataModule": "sets.egocentric",
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
