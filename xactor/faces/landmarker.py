"""MediaPipe's face landmarker behind two methods: faces in one picture, and the main face through a video."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from xactor.controls import BLENDSHAPES
from xactor.rates import FPS


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face as the landmark model sees it.

    Attributes:
        points: float32 [478, 3], x and y in pixels of the picture, z in the same unit, nearer is smaller.
        blendshapes: float32 [51], 0..1, in the order of `xactor.controls.BLENDSHAPES`.
        matrix: float32 [4, 4], from the canonical face to a camera that looks along -z, in cm, x right, y up.
    """

    points: np.ndarray
    blendshapes: np.ndarray
    matrix: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels; it may reach past the picture's border."""
        (left, top), (right, bottom) = self.points[:, :2].min(axis=0), self.points[:, :2].max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceLandmarker:
    """Finds faces with MediaPipe's model, which ships inside this package.

    Args:
        model: another `.task` bundle, with blendshapes.
        most_faces: how many faces are looked for; more cost more time.

    Raises:
        ValueError: mediapipe is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str | Path | None = None, *, most_faces: int = 2):
        if most_faces < 1:
            raise ValueError(f"most_faces must be >= 1, got {most_faces}")
        try:
            from mediapipe.tasks.python import vision
        except ImportError as error:
            raise ValueError("face landmarks need mediapipe: run pip install mediapipe") from error
        self._vision = vision
        self._most_faces = most_faces
        if model is None:
            # Read at once, so that it also works from inside a zipped package.
            with as_file(files("xactor.faces").joinpath("face_landmarker.task")) as packaged:
                self._model = packaged.read_bytes()
        elif Path(model).is_file():
            self._model = Path(model).read_bytes()
        else:
            raise ValueError(f"{model}: no such landmark model (a MediaPipe .task file)")
        self._model_name = str(model or "face_landmarker.task")

    def detect(self, picture: np.ndarray) -> list[Face]:
        """The faces in one picture uint8 [H, W, 3] RGB, the largest first."""
        with self._task(self._vision.RunningMode.IMAGE) as task:
            return _faces(task.detect(_image(picture)), picture)

    def follow(self, frames: Iterable[np.ndarray], fps: float = FPS) -> Iterator[Face | None]:
        """The largest face in each frame of a video, None where there is none.

        Positions are carried from frame to frame, which is quicker and steadier than finding them anew.
        """
        with self._task(self._vision.RunningMode.VIDEO) as task:
            for number, picture in enumerate(frames):
                found = _faces(task.detect_for_video(_image(picture), round(number * 1000 / fps)), picture)
                yield found[0] if found else None

    def _task(self, mode):
        from mediapipe.tasks.python import BaseOptions

        options = self._vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._model),
            running_mode=mode,
            num_faces=self._most_faces,
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
    from mediapipe import Image, ImageFormat

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
    return Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(picture))


def _faces(result, picture: np.ndarray) -> list[Face]:
    height, width = picture.shape[:2]
    faces = []
    for points, shapes, matrix in zip(
        result.face_landmarks, result.face_blendshapes, result.facial_transformation_matrixes, strict=True
    ):
        scores = {shape.category_name: shape.score for shape in shapes}
        pixels = np.array([(p.x * width, p.y * height, p.z * width) for p in points], dtype=np.float32)
        blendshapes = np.array([scores[name] for name in BLENDSHAPES], dtype=np.float32)
        faces.append(Face(points=pixels, blendshapes=blendshapes, matrix=np.array(matrix, dtype=np.float32)))
    return sorted(faces, key=lambda face: -face.area)
