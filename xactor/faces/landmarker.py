"""Wrap MediaPipe's face landmarker: find the faces of a picture, or follow the main face through a video."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from xactor.controls import BLENDSHAPES
from xactor.rates import FPS


@dataclass(frozen=True, kw_only=True)
class Face:
    """Hold one face that the landmark model found."""

    points: np.ndarray
    """Landmarks, float32 [478, 3]: x and y in pixels of the picture, and the depth z in the same unit. A smaller z is
    nearer to the camera."""
    blendshapes: np.ndarray
    """Blendshapes (strengths of facial movements such as jawOpen), float32 [51], 0..1, in the order of
    `xactor.controls.BLENDSHAPES`."""
    matrix: np.ndarray
    """Transform from MediaPipe's canonical face to the camera, float32 [4, 4], in cm. The camera looks along -z;
    x points right and y up."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the box around the landmarks, in pixels of the picture.

        The box may extend past the picture's border.
        """
        (left, top), (right, bottom) = self.points[:, :2].min(axis=0), self.points[:, :2].max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def scaled(self, factor: float) -> "Face":
        """Return the face in a picture that was resized by `factor`."""
        return replace(self, points=self.points * np.float32(factor))

    @property
    def area(self) -> float:
        """Return the area of `box` in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceLandmarker:
    """Find faces with MediaPipe's model, which this package contains.

    Args:
        model: Path of another MediaPipe model, a `.task` file that also gives blendshapes.
        max_faces: Maximum number of faces to find. A larger number takes more time.

    Raises:
        ValueError: mediapipe is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, *, max_faces: int = 2):
        if max_faces < 1:
            raise ValueError(f"max_faces must be >= 1, got {max_faces}")
        try:
            from mediapipe.tasks.python import vision
        except ImportError as error:
            raise ValueError("face landmarks need mediapipe: run pip install mediapipe") from error
        self._vision = vision
        self._max_faces = max_faces
        if model is None:
            # Read the bytes now: a file from a zipped package exists only inside this block.
            with as_file(files("xactor.faces").joinpath("face_landmarker.task")) as packaged:
                self._model = packaged.read_bytes()
        elif Path(model).is_file():
            self._model = Path(model).read_bytes()
        else:
            raise ValueError(f"{model}: no such landmark model (a MediaPipe .task file)")
        self._model_name = str(model or "face_landmarker.task")

    def detect(self, picture: np.ndarray) -> list[Face]:
        """Return the faces in a picture uint8 [H, W, 3] RGB, the largest first."""
        with self._task(self._vision.RunningMode.IMAGE) as task:
            return _faces(task.detect(_image(picture)), picture)

    def follow(self, frames: Iterable[np.ndarray], fps: float = FPS) -> Iterator[Face | None]:
        """Yield the largest face in each frame of a video, or None if the frame shows none.

        Positions are tracked from frame to frame, which is faster and steadier than detection in each frame.

        Args:
            frames: The video's frames, each uint8 [H, W, 3] RGB.
            fps: Frames per second of the video.
        """
        with self._task(self._vision.RunningMode.VIDEO) as task:
            for number, picture in enumerate(frames):
                found = _faces(task.detect_for_video(_image(picture), round(number * 1000 / fps)), picture)
                yield found[0] if found else None

    def _task(self, mode):
        """Return a new MediaPipe task for single pictures or for successive frames."""
        from mediapipe.tasks.python import BaseOptions

        options = self._vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._model),
            running_mode=mode,
            num_faces=self._max_faces,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        try:
            return self._vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self._model_name}: not a face landmark model that MediaPipe loads ({error})"
            ) from error


def _image(picture: np.ndarray):
    """Return a picture as MediaPipe's Image. Raises ValueError if it is not uint8 [H, W, 3]."""
    from mediapipe import Image, ImageFormat

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
    return Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(picture))


def _faces(result, picture: np.ndarray) -> list[Face]:
    """Convert MediaPipe's result for a picture to faces, the largest first."""
    height, width = picture.shape[:2]
    faces = []
    for points, shapes, matrix in zip(
        result.face_landmarks, result.face_blendshapes, result.facial_transformation_matrixes, strict=True
    ):
        scores = {shape.category_name: shape.score for shape in shapes}
        # MediaPipe gives x and z as fractions of the picture's width, and y as a fraction of its height.
        pixels = np.array([(p.x * width, p.y * height, p.z * width) for p in points], dtype=np.float32)
        blendshapes = np.array([scores[name] for name in BLENDSHAPES], dtype=np.float32)
        faces.append(Face(points=pixels, blendshapes=blendshapes, matrix=np.array(matrix, dtype=np.float32)))
    return sorted(faces, key=lambda face: -face.area)
