"""Faces in pictures and videos: landmarks, blendshapes, head pose."""

from xactor.faces.landmarker import Face, FaceLandmarker
from xactor.faces.track import control_track

__all__ = ["Face", "FaceLandmarker", "control_track"]
