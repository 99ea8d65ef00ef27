"""Find faces in pictures and videos: landmarks, blendshapes, head pose, and the square crop that models see."""

from xactor.faces.crop import FACE_REGION, MARGIN, MOUTH_REGION, CropBox, crop_box, region_pixels
from xactor.faces.landmarker import Face, FaceLandmarker
from xactor.faces.track import control_track

__all__ = [
    "FACE_REGION",
    "MARGIN",
    "MOUTH_REGION",
    "CropBox",
    "Face",
    "FaceLandmarker",
    "control_track",
    "crop_box",
    "region_pixels",
]
