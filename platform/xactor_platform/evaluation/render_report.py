"""Report what stage 1, the training of renderer and motion encoder, has learned.

Two things are measured: how close generated frames are to the true ones, and what the motion latents z contain.

Frames are compared on the held-out clips of a folder of video shards. The reference, the picture that is animated, is a
clip's first frame, and the latents come from the true frames or from the clip's control track. The regions of mouth and
face are fixed parts of a picture (see `xactor.faces.crop`), because all faces are cropped in the same way.

Latents are probed on drawn people that no training saw, who all act the same controls. This is possible only with drawn
faces. The probe measures three things: whether a linear map can tell the person from z; how far apart the latents of
one expression of two people are, compared with two expressions of one person; and whether a linear map can read the
controls from z.
"""

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xactor.controls import INDEX, embed_controls, lip_opening
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.faces import FACE_REGION, MOUTH_REGION, region_pixels
from xactor.media.seek import pick_frames
from xactor.origin import LATENTS, Origin, check_fit
from xactor.render import RenderConfig, Renderer
from xactor_platform.data.index import CONTROLS, Index, LatentSource
from xactor_platform.data.index_file import load_index
from xactor_platform.demo_corpus.identity import Identity, find_crop, render_frame
from xactor_platform.demo_corpus.speech import Voice
from xactor_platform.evaluation.linear import fit_linear

# Controls of the head's rotation.
HEAD = ("headPitch", "headYaw", "headRoll")
# Number of clips and of columns in faces.png, and the side of its pictures in pixels. Each clip has two rows.
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_PX = 6, 7, 96
# Number of expressions and of drawn people in the probe.
_EXPRESSIONS, _PEOPLE = 120, 8
# Seed of the first drawn person of the probe. No corpus holds people with seeds from this one on.
_UNSEEN = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Hold the share of the reference's error that the generated frames remove.

    The error is the squared difference from the true frames. The reference is one still frame, shown all the time. A
    share of 1 is perfect.
    """

    mouth: float
    """The share of the error removed in the mouth's region."""
    face: float
    """The share of the error removed in the face's region."""
    mouth_colours: float
    """The share of the generated pixels in the mouth's region that have true colours: each channel lies between the
    darkest and the brightest value that this channel has in the same region of the true frames."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Hold how well linear maps read z. They are fitted on half of the expressions and tested on the other half."""

    people: int
    """Number of drawn people."""
    identity_accuracy: float
    """Share of the latents for which the probe names the right person."""
    identity_of_change: float
    """The same share for a probe of differences: z minus z of the person's first expression. Such differences move a
    portrait. All differences of a person share the deviation of that first expression from the person's mean."""
    chance: float
    """The accuracy of guessing: 1 / people."""
    lips: float
    """R² (coefficient of determination) of the lip opening that a linear map reads from z."""
    head: float
    """R² of the head's rotation that a linear map reads from z."""
    expression_ratio: float
    """Mean distance of z between two people with the same expression, divided by the mean distance between two
    expressions of one person."""


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    """Hold the gains of all held-out clips, and the results of the probe of latents."""

    clips: dict[str, Gain]
    """Gains by key of the held-out clip."""
    speakers: dict[str, Gain]
    """Gains by speaker."""
    steps: int
    """DDIM steps of a window, the frames that are denoised together."""
    cfg: float
    """Scale of the classifier-free guidance in the rendering."""
    latents: Latents | None
    """Results of the probe. None if the shards hold no control tracks."""

    def table(self) -> str:
        """Return a table for the terminal."""
        lines = [
            f"Error of the still reference removed, {self.steps} DDIM steps, CFG {self.cfg:g}:     "
            "mouth  face  true colours"
        ]
        lines += [
            f"  {name:<42} {gain.mouth:>6.0%} {gain.face:>6.0%} {gain.mouth_colours:>6.1%}"
            for name, gain in self.speakers.items()
        ]
        if latents := self.latents:
            lines += [
                f"Latents of {latents.people} people never seen, acting alike:",
                f"  identity named by a linear probe           {latents.identity_accuracy:.2f}, "
                f"of z's changes {latents.identity_of_change:.2f}, by chance {latents.chance:.2f}",
                f"  R² of lip opening, head rotation           {latents.lips:.2f}, {latents.head:.2f}",
                f"  one expression on two people over two expressions on one: {latents.expression_ratio:.2f}",
            ]
        return "\n".join(lines)


def report_render(
    model: str,
    videos: str,
    output: Path,
    *,
    config: RenderConfig | None = None,
    latents: LatentSource = "encoder",
    windows: int = 2,
    max_clips: int = 8,
    seed: int = 0,
) -> RenderReport:
    """Render held-out clips from their own latents, and probe latents of drawn people. Return the report.

    Write report.json and faces.png to `output`.

    Args:
        model: Folder of stage 1's export.
        videos: URI of video shards. Those named `test-*` and `val-*` are used.
        output: Folder for the report.
        config: Options of the rendering. None means the defaults.
        latents: Source of the latents: the motion encoder, applied to the true frames, or the clips' control tracks.
        windows: Number of windows that are rendered of each clip. They are spread over the clip.
        max_clips: Maximum number of held-out clips. The longest are used.
        seed: Seed of the rendering.

    Raises:
        ValueError: There are no held-out clips, no control tracks to make latents from, or the renderer takes other
            latents than those of control tracks.
    """
    config = config or RenderConfig()
    renderer = Renderer.from_pretrained(model)
    index = load_index(videos).held_out()
    if not index.samples:
        raise ValueError(f"{videos}: no held-out shards (test-*, val-*) to report on")
    if latents == "controls" and CONTROLS not in index.offset:
        raise ValueError(f"{videos}: no control tracks (controls.npy) to make latents from")
    if latents == "controls":
        taken = Origin(f"{model}/unet", renderer.components.unet.config["latent_origin"])
        for note in check_fit(LATENTS, taken, Origin(videos, CONTROLS_ORIGIN)):
            logger.warning("%s", note)
    errors: dict[str, list[tuple[float, ...]]] = {}
    clips, rows = {}, []
    for row in np.argsort(-index.frames, kind="stable")[:max_clips]:
        found, shown = _render_clip(renderer, index, int(row), config, latents, windows, seed)
        clips[str(index.key[row])] = _gain(found)
        errors.setdefault(str(index.speaker[row]), []).extend(found)
        rows += shown
    expressions = _expressions(index)
    report = RenderReport(
        clips=clips,
        speakers={name: _gain(found) for name, found in sorted(errors.items())},
        steps=config.steps,
        cfg=config.cfg,
        latents=None if expressions is None else probe_latents(renderer, expressions),
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    sheet(rows[: 2 * _SHEET_ROWS]).save(output / "faces.png")
    return report


def _render_clip(
    renderer: Renderer,
    index: Index,
    row: int,
    config: RenderConfig,
    latents: LatentSource,
    windows: int,
    seed: int,
) -> tuple[list[tuple[float, ...]], list[list[np.ndarray]]]:
    """Render a clip's windows.

    Returns:
        The figures of each window, and two rows of pictures for faces.png, the true and the generated frames. The
        figures are four mean squared errors (in the mouth's region of the generated frames and of the still reference,
        then the same in the face's region) and the share of the mouth's pixels with true colours.
    """
    # Frame 0 is the reference, so windows start at frame 1 at the earliest.
    count = min(config.window_frames, int(index.frames[row]) - 1)
    last = int(index.frames[row]) - count
    starts = sorted({round(1 + (last - 1) * (i + 1) / windows) for i in range(windows)})
    numbers = sorted({0, *(n for start in starts for n in range(start, start + count))})
    pictures = dict(zip(numbers, pick_frames(index.read(row, "mp4"), numbers), strict=True))
    size = renderer.model_size
    pictures = {
        n: np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BOX))
        for n, p in pictures.items()
    }
    reference = renderer.reference(pictures[0])
    track = None
    if latents == "controls":
        track = embed_controls(np.load(io.BytesIO(index.read(row, CONTROLS))))  # [T, 512]
        track = track[:, : reference.z.shape[-1]]
    errors, true_row, generated_row = [], [pictures[0]], [pictures[0]]
    for start in starts:
        true = np.stack([pictures[n] for n in range(start, start + count)])
        if track is None:
            z = renderer.components.motion_encoder.encode(true)
        else:
            z = reference.z + torch.from_numpy(track[start : start + count] - track[0])
        generated = renderer.window(reference, z, seed=seed, first_frame=start, config=config)
        still = np.broadcast_to(pictures[0], true.shape)
        errors.append(
            (
                _error(generated, true, MOUTH_REGION),
                _error(still, true, MOUTH_REGION),
                _error(generated, true, FACE_REGION),
                _error(still, true, FACE_REGION),
                _true_colours(generated, true, MOUTH_REGION),
            )
        )
        shown = np.linspace(0, count - 1, (_SHEET_COLUMNS - 1) // len(starts)).astype(int)
        true_row += list(true[shown])
        generated_row += list(generated[shown])
    return errors, [true_row, generated_row]


def _error(shown: np.ndarray, true: np.ndarray, region: tuple[float, ...]) -> float:
    """Return the mean squared error of frames [T, S, S, 3] in a region, in squared grey levels."""
    rows, columns = region_pixels(region, true.shape[1])
    difference = shown[:, rows, columns].astype(np.float64) - true[:, rows, columns].astype(np.float64)
    return float(np.mean(difference**2))


def _true_colours(shown: np.ndarray, true: np.ndarray, region: tuple[float, ...]) -> float:
    """Return the share of the pixels of frames [T, S, S, 3] in a region that have true colours.

    A pixel has a true colour if each channel lies between the darkest and the brightest value that this channel has in
    the same region of the true frames.
    """
    rows, columns = region_pixels(region, true.shape[1])
    shown, true = shown[:, rows, columns], true[:, rows, columns]
    within = (shown >= true.min((0, 1, 2))) & (shown <= true.max((0, 1, 2)))  # [T, h, w, 3]
    return float(within.all(-1).mean())


def _gain(figures: Sequence[tuple[float, ...]]) -> Gain:
    """Return the mean gain of windows, given their figures as `_render_clip` returns them."""
    mouth, still_mouth, face, still_face, colours = np.mean(figures, axis=0)
    return Gain(
        mouth=float(1 - mouth / still_mouth),
        face=float(1 - face / still_face),
        mouth_colours=float(colours),
    )


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Draw rows of pictures below each other, all pictures in one size."""
    width = max(map(len, rows))
    picture = Image.new("RGB", (width * _SHEET_PX, len(rows) * _SHEET_PX))
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            tile = Image.fromarray(frame).resize((_SHEET_PX, _SHEET_PX), Image.Resampling.LANCZOS)
            picture.paste(tile, (x * _SHEET_PX, y * _SHEET_PX))
    return picture


def _expressions(index: Index) -> np.ndarray | None:
    """Return the controls [E, 57] of frames spread over the held-out clips, None if the shards hold no controls."""
    if CONTROLS not in index.offset:
        return None
    tracks = [np.load(io.BytesIO(index.read(row, CONTROLS))) for row in range(index.samples)]
    all_frames = np.concatenate(tracks)
    return all_frames[np.linspace(0, len(all_frames) - 1, _EXPRESSIONS).astype(int)]


def probe_latents(renderer: Renderer, controls: np.ndarray) -> Latents:
    """Probe the latents of drawn people who all act the same expressions, rows of controls [E, 57]."""
    people = [Identity(name=f"drawn-{seed}", voice=Voice()) for seed in range(_UNSEEN, _UNSEEN + _PEOPLE)]
    # Expressions are sorted by clip. The maps are fitted on every second expression and tested on the others, so that
    # both halves hold all moods.
    controls = np.concatenate([controls[::2], controls[1::2]])
    expressions, half = len(controls), (len(controls) + 1) // 2
    z = np.stack([_latents_of(renderer, person, controls) for person in people])  # [P, E, D]
    fitted_z, tested_z = _halves(z, half)

    values = np.column_stack([lip_opening(controls), controls[:, [INDEX[name] for name in HEAD]]])  # [E, 4]
    # All people have the same values, so they are repeated for each person, in the order of the latents.
    fitted_values, true_values = (np.tile(part, (len(people), 1)) for part in (values[:half], values[half:]))
    predicted = fit_linear(fitted_z, fitted_values)(tested_z)
    r2 = 1 - ((predicted - true_values) ** 2).sum(0) / ((true_values - true_values.mean(0)) ** 2).sum(0)

    across = [np.linalg.norm(z[i] - z[j], axis=-1).mean() for i in range(len(people)) for j in range(i)]
    # Pair each expression with another one of the same person.
    other_expression = np.roll(z, expressions // 3, axis=1)
    within = np.linalg.norm(z - other_expression, axis=-1).mean()
    return Latents(
        people=len(people),
        identity_accuracy=_named(z, half),
        identity_of_change=_named(z - z[:, :1], half),
        chance=1 / len(people),
        lips=float(r2[0]),
        head=float(r2[1:].mean()),
        expression_ratio=float(np.mean(across) / within),
    )


def _halves(z: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Split latents [P, E, D] of P people into those to fit, [P x half, D], and those to test, [P x (E - half), D]."""
    return z[:, :half].reshape(-1, z.shape[-1]), z[:, half:].reshape(-1, z.shape[-1])


def _named(z: np.ndarray, half: int) -> float:
    """Return how often a linear probe names the right person for latents [P, E, D].

    The probe is fitted on the first `half` of each person's latents and tested on the others.
    """
    fitted_z, tested_z = _halves(z, half)
    people = np.arange(len(z))
    votes = fit_linear(fitted_z, np.repeat(np.eye(len(z)), half, axis=0))(tested_z)
    return float((votes.argmax(1) == np.repeat(people, z.shape[1] - half)).mean())


def _latents_of(renderer: Renderer, person: Identity, controls: np.ndarray) -> np.ndarray:
    """Return the latents [E, D] of a person's face crops, one for each row of controls [E, 57]."""
    crop_px = renderer.model_size
    frame_px = 4 * crop_px
    box = find_crop(person, frame_px)

    def crop(frame: np.ndarray) -> np.ndarray:
        """Cut out the face. If none was found, reduce the whole frame."""
        if box:
            return box.cut(frame, crop_px)
        return np.asarray(Image.fromarray(frame).resize((crop_px, crop_px), Image.Resampling.BOX))

    crops = [crop(render_frame(person, row, frame_px)) for row in controls]
    return renderer.components.motion_encoder.encode(np.stack(crops)).numpy()
