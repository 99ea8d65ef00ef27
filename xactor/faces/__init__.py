"""Faces in pictures and videos: landmarks, blendshapes, head pose, and the square that models see."""

from xactor.faces.crop import MARGIN, CropBox, crop_box
from xactor.faces.landmarker import Face, FaceLandmarker
from xactor.faces.track import control_track

__all__ = ["MARGIN", "CropBox", "Face", "FaceLandmarker", "control_track", "crop_box"]
