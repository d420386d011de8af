"""What `avsal.data` offers, with its types; `__init__.py` imports each name on first use."""

from .clips import TrainingClips as TrainingClips
from .clips import VideoBatches as VideoBatches
from .frames import FramePreprocessor as FramePreprocessor
from .items import VideoItem as VideoItem
from .loading import collate as collate
from .module import SaliencyDataModule as SaliencyDataModule
from .sets.audiovisual import (
    AVADDataModule as AVADDataModule,
)
from .sets.audiovisual import (
    AVSaliencyDataModule as AVSaliencyDataModule,
)
from .sets.audiovisual import (
    Coutrot1DataModule as Coutrot1DataModule,
)
from .sets.audiovisual import (
    Coutrot2DataModule as Coutrot2DataModule,
)
from .sets.audiovisual import (
    DIEMDataModule as DIEMDataModule,
)
from .sets.audiovisual import (
    ETMDDataModule as ETMDDataModule,
)
from .sets.audiovisual import (
    LayoutDataModule as LayoutDataModule,
)
from .sets.audiovisual import (
    SumMeDataModule as SumMeDataModule,
)
from .sets.crowdsal import (
    AViMoSDataModule as AViMoSDataModule,
)
from .sets.crowdsal import (
    CrowdSALDataModule as CrowdSALDataModule,
)
from .sets.crowdsal import (
    NTIRE2026DataModule as NTIRE2026DataModule,
)
from .sets.dhf1k import (
    DHF1KDataModule as DHF1KDataModule,
)
from .sets.dhf1k import (
    Hollywood2DataModule as Hollywood2DataModule,
)
from .sets.dhf1k import (
    UCFSportsDataModule as UCFSportsDataModule,
)
from .sets.egocentric import (
    AriaGazeDataModule as AriaGazeDataModule,
)
from .sets.egocentric import (
    Ego4DGazeDataModule as Ego4DGazeDataModule,
)
from .sets.folder import FolderDataModule as FolderDataModule
from .sets.photos import PhotosDataModule as PhotosDataModule
from .sets.salicon import MIT1003DataModule as MIT1003DataModule
from .sets.salicon import SALICONDataModule as SALICONDataModule
from .sets.synthav import SynthAVDataModule as SynthAVDataModule
from .sets.video_database import (
    FindWhoDataModule as FindWhoDataModule,
)
from .sets.video_database import (
    HEVC33DataModule as HEVC33DataModule,
)
from .sets.video_database import (
    LEDOVDataModule as LEDOVDataModule,
)
from .sets.video_database import (
    MVVADataModule as MVVADataModule,
)
from .synthetic import generate as generate
