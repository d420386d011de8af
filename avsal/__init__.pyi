"""What `avsal` offers, with its types; `__init__.py` imports each name on first use."""

from . import (
    data as data,
    errors as errors,
    inference as inference,
    io as io,
    losses as losses,
    metrics as metrics,
    models as models,
    nn as nn,
    report as report,
    types as types,
    zoo as zoo,
)
from .data import (
    AriaGazeDataModule as AriaGazeDataModule,
    AVADDataModule as AVADDataModule,
    AViMoSDataModule as AViMoSDataModule,
    AVSaliencyDataModule as AVSaliencyDataModule,
    Coutrot1DataModule as Coutrot1DataModule,
    Coutrot2DataModule as Coutrot2DataModule,
    CrowdSALDataModule as CrowdSALDataModule,
    DHF1KDataModule as DHF1KDataModule,
    DIEMDataModule as DIEMDataModule,
    Ego4DGazeDataModule as Ego4DGazeDataModule,
    ETMDDataModule as ETMDDataModule,
    FindWhoDataModule as FindWhoDataModule,
    FolderDataModule as FolderDataModule,
    HEVC33DataModule as HEVC33DataModule,
    Hollywood2DataModule as Hollywood2DataModule,
    LayoutDataModule as LayoutDataModule,
    LEDOVDataModule as LEDOVDataModule,
    MIT1003DataModule as MIT1003DataModule,
    MVVADataModule as MVVADataModule,
    NTIRE2026DataModule as NTIRE2026DataModule,
    PhotosDataModule as PhotosDataModule,
    SALICONDataModule as SALICONDataModule,
    SaliencyDataModule as SaliencyDataModule,
    SumMeDataModule as SumMeDataModule,
    SynthAVDataModule as SynthAVDataModule,
    UCFSportsDataModule as UCFSportsDataModule,
)
from .errors import AvsalError as AvsalError
from .evaluation import evaluate as evaluate, evaluate_maps as evaluate_maps
from .inference import predict_video as predict_video
from .metrics import GazeMetrics as GazeMetrics, SaliencyMetrics as SaliencyMetrics
from .models import create_model as create_model, list_models as list_models
from .models.avrsp import AVRSPModule as AVRSPModule
from .models.base import SaliencyModule as SaliencyModule
from .models.baselines import BaselineModule as BaselineModule
from .models.caspnet import CASPNetModule as CASPNetModule
from .models.csts import CSTSModule as CSTSModule
from .models.isp import ISPModule as ISPModule
from .models.mspi import MSPIModule as MSPIModule
from .models.speaker import SpeakerModule as SpeakerModule
from .models.stavis import STAViSModule as STAViSModule
from .models.vinet import ViNetModule as ViNetModule
from .types import (
    AudioSpec as AudioSpec,
    Batch as Batch,
    ClipSpec as ClipSpec,
    SaliencyOutput as SaliencyOutput,
)
from .zoo import (
    from_pretrained as from_pretrained,
    list_checkpoints as list_checkpoints,
    register as register,
)

__version__: str
