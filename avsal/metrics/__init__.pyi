"""What `avsal.metrics` offers, with its types; `__init__.py` imports each name on first use."""

from .conventions import CARD as CARD, METRICS as METRICS, Conventions as Conventions
from .egocentric import (
    GazeCounts as GazeCounts,
    GazeScore as GazeScore,
    adaptive_f1 as adaptive_f1,
    best_f1 as best_f1,
    gaze_auc as gaze_auc,
    gaze_counts as gaze_counts,
    gaze_thresholds as gaze_thresholds,
    rescale_gaze as rescale_gaze,
)
from .functional import (
    auc_borji as auc_borji,
    auc_judd as auc_judd,
    cc as cc,
    information_gain as information_gain,
    kl_div as kl_div,
    nss as nss,
    sauc as sauc,
    sim as sim,
)
from .gaze import GazeMetrics as GazeMetrics
from .inputs import MetricInputError as MetricInputError, fixation_points as fixation_points
from .negatives import random_frames_negatives as random_frames_negatives, video_negatives as video_negatives
from .resize import postprocess as postprocess, resize_maps as resize_maps
from .saliency import (
    CC as CC,
    NSS as NSS,
    SIM as SIM,
    AUCBorji as AUCBorji,
    AUCJudd as AUCJudd,
    InformationGain as InformationGain,
    KLDiv as KLDiv,
    SaliencyMetrics as SaliencyMetrics,
    ShuffledAUC as ShuffledAUC,
    fold_mean as fold_mean,
)
