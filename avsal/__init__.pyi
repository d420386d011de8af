"""What `avsal` offers, with its types; `__init__.py` imports each name on first use."""

from . import (
    data as data,
)
from . import (
    errors as errors,
)
from . import (
    inference as inference,
)
from . import (
    io as io,
)
from . import (
    losses as losses,
)
from . import (
    metrics as metrics,
)
from . import (
    models as models,
)
from . import (
    nn as nn,
)
from . import (
    report as report,
)
from . import (
    types as types,
)
from . import (
    zoo as zoo,
)
from .data import (
    AriaGazeDataModule as AriaGazeDataModule,
)
from .data import (
    AVADDataModule as AVADDataModule,
)
from .data import (
    AViMoSDataModule as AViMoSDataModule,
)
from .data import (
    AVSaliencyDataModule as AVSaliencyDataModule,
)
from .data import (
    Coutrot1DataModule as Coutrot1DataModule,
)
from .data import (
    Coutrot2DataModule as Coutrot2DataModule,
)
from .data import (
    CrowdSALDataModule as CrowdSALDataModule,
)
from .data import (
    DHF1KDataModule as DHF1KDataModule,
)
from .data import (
    DIEMDataModule as DIEMDataModule,
)
from .data import (
    Ego4DGazeDataModule as Ego4DGazeDataModule,
)
from .data import (
    ETMDDataModule as ETMDDataModule,
)
from .data import (
    FindWhoDataModule as FindWhoDataModule,
)
from .data import (
    FolderDataModule as FolderDataModule,
)
from .data import (
    HEVC33DataModule as HEVC33DataModule,
)
from .data import (
    Hollywood2DataModule as Hollywood2DataModule,
)
from .data import (
    LayoutDataModule as LayoutDataModule,
)
from .data import (
    LEDOVDataModule as LEDOVDataModule,
)
from .data import (
    MIT1003DataModule as MIT1003DataModule,
)
from .data import (
    MVVADataModule as MVVADataModule,
)
from .data import (
    NTIRE2026DataModule as NTIRE2026DataModule,
)
from .data import (
    PhotosDataModule as PhotosDataModule,
)
from .data import (
    SALICONDataModule as SALICONDataModule,
)
from .data import (
    SaliencyDataModule as SaliencyDataModule,
)
from .data import (
    SumMeDataModule as SumMeDataModule,
)
from .data import (
    SynthAVDataModule as SynthAVDataModule,
)
from .data import (
    UCFSportsDataModule as UCFSportsDataModule,
)
from .errors import AvsalError as AvsalError
from .inference import predict_video as predict_video
from .metrics import GazeMetrics as GazeMetrics
from .metrics import SaliencyMetrics as SaliencyMetrics
from .models import create_model as create_model
from .models import list_models as list_models
from .models.avrsp import AVRSPModule as AVRSPModule
from .models.base import SaliencyModule as SaliencyModule
from .models.baselines import BaselineModule as BaselineModule
from .models.caspnet import CASPNetModule as CASPNetModule
from .models.csts import CSTSModule as CSTSModule
from .models.isp import ISPModule as ISPModule
from .models.mspi import MSPIModule as MSPIModule
from .models.speaker import SpeakerModule as SpeakerModule
from .models.stavis import STAViSModule as STAViSModule
from .types import (
    AudioSpec as AudioSpec,
)
from .types import (
    Batch as Batch,
)
from .types import (
    ClipSpec as ClipSpec,
)
from .types import (
    SaliencyOutput as SaliencyOutput,
)
from .zoo import (
    from_pretrained as from_pretrained,
)
from .zoo import (
    list_checkpoints as list_checkpoints,
)
from .zoo import (
    register as register,
)

__version__: str
