"""Find faces in pictures and videos: landmarks, blendshapes, head pose, and the square crop that models see."""

from xactor.faces.crop import FACE_REGION, MARGIN, MOUTH_REGION, CropBox, crop_box, region_pixels
from xactor.faces.follower import FaceFollower, search_faces
from xactor.faces.landmarker import Face, FaceLandmarker
from xactor.faces.track import control_track

__all__ = [
    "FACE_REGION",
    "MARGIN",
    "MOUTH_REGION",
    "CropBox",
    "Face",
    "FaceFollower",
    "FaceLandmarker",
    "control_track",
    "crop_box",
    "region_pixels",
    "search_faces",
]
