"""What `avsal.metrics` offers, with its types; `__init__.py` imports each name on first use."""

from .conventions import CARD as CARD
from .conventions import METRICS as METRICS
from .conventions import Conventions as Conventions
from .egocentric import (
    GazeCounts as GazeCounts,
)
from .egocentric import (
    GazeScore as GazeScore,
)
from .egocentric import (
    adaptive_f1 as adaptive_f1,
)
from .egocentric import (
    best_f1 as best_f1,
)
from .egocentric import (
    gaze_auc as gaze_auc,
)
from .egocentric import (
    gaze_counts as gaze_counts,
)
from .egocentric import (
    gaze_thresholds as gaze_thresholds,
)
from .egocentric import (
    rescale_gaze as rescale_gaze,
)
from .functional import (
    auc_borji as auc_borji,
)
from .functional import (
    auc_judd as auc_judd,
)
from .functional import (
    cc as cc,
)
from .functional import (
    information_gain as information_gain,
)
from .functional import (
    kl_div as kl_div,
)
from .functional import (
    nss as nss,
)
from .functional import (
    sauc as sauc,
)
from .functional import (
    sim as sim,
)
from .gaze import GazeMetrics as GazeMetrics
from .inputs import MetricInputError as MetricInputError
from .inputs import fixation_points as fixation_points
from .negatives import random_frames_negatives as random_frames_negatives
from .negatives import video_negatives as video_negatives
from .resize import postprocess as postprocess
from .resize import resize_maps as resize_maps
from .saliency import (
    CC as CC,
)
from .saliency import (
    NSS as NSS,
)
from .saliency import (
    SIM as SIM,
)
from .saliency import (
    AUCBorji as AUCBorji,
)
from .saliency import (
    AUCJudd as AUCJudd,
)
from .saliency import (
    InformationGain as InformationGain,
)
from .saliency import (
    KLDiv as KLDiv,
)
from .saliency import (
    SaliencyMetrics as SaliencyMetrics,
)
from .saliency import (
    ShuffledAUC as ShuffledAUC,
)
from .saliency import (
    fold_mean as fold_mean,
)
