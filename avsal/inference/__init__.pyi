"""What `avsal.inference` offers, with its types; `__init__.py` imports each name on first use."""

from .video import FrameMap as FrameMap, VideoPrediction as VideoPrediction, predict_video as predict_video
