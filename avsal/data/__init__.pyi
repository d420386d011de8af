"""What `avsal.data` offers, with its types; `__init__.py` imports each name on first use."""

from .check import open_data as open_data
from .clips import TrainingClips as TrainingClips, VideoBatches as VideoBatches
from .frames import FramePreprocessor as FramePreprocessor
from .items import VideoItem as VideoItem
from .loading import collate as collate
from .module import SaliencyDataModule as SaliencyDataModule
from .sets.audiovisual import (
    AVADDataModule as AVADDataModule,
    AVSaliencyDataModule as AVSaliencyDataModule,
    Coutrot1DataModule as Coutrot1DataModule,
    Coutrot2DataModule as Coutrot2DataModule,
    DIEMDataModule as DIEMDataModule,
    ETMDDataModule as ETMDDataModule,
    LayoutDataModule as LayoutDataModule,
    SumMeDataModule as SumMeDataModule,
)
from .sets.crowdsal import (
    AViMoSDataModule as AViMoSDataModule,
    CrowdSALDataModule as CrowdSALDataModule,
    NTIRE2026DataModule as NTIRE2026DataModule,
)
from .sets.dhf1k import (
    DHF1KDataModule as DHF1KDataModule,
    Hollywood2DataModule as Hollywood2DataModule,
    UCFSportsDataModule as UCFSportsDataModule,
)
from .sets.egocentric import (
    AriaGazeDataModule as AriaGazeDataModule,
    Ego4DGazeDataModule as Ego4DGazeDataModule,
)
from .sets.folder import FolderDataModule as FolderDataModule
from .sets.photos import PhotosDataModule as PhotosDataModule
from .sets.salicon import MIT1003DataModule as MIT1003DataModule, SALICONDataModule as SALICONDataModule
from .sets.synthav import SynthAVDataModule as SynthAVDataModule
from .sets.video_database import (
    FindWhoDataModule as FindWhoDataModule,
    HEVC33DataModule as HEVC33DataModule,
    LEDOVDataModule as LEDOVDataModule,
    MVVADataModule as MVVADataModule,
)
from .synthetic import generate as generate
