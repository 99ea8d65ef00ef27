"""Report what stage 1 has learned: how near generated frames are to the truth, and what the latents hold.

Frames are compared on the held-out clips of a folder of video shards. A clip's first frame is the reference; the
latents are those of the true frames. The regions are those of `xactor.faces.crop`, which frames every face alike.

Latents are probed on drawn people that no training saw, who all act the same controls; only a generator of faces can
give that. The probe tells whether z names the person, how far the same expression of two people is apart compared with
two expressions of one person, and whether a linear map reads the controls off z.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xactor.controls import INDEX, lip_opening
from xactor.faces import FACE_REGION, MOUTH_REGION, region_pixels
from xactor.media.seek import pick_frames
from xactor.render import RenderConfig, Renderer
from xactor_platform.data.index import Index, load_index
from xactor_platform.demo_corpus.identity import Identity, find_crop, render_frame
from xactor_platform.demo_corpus.speech import Voice
from xactor_platform.evaluation.linear import fit_linear

HEAD = ("headPitch", "headYaw", "headRoll")
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_PX = 6, 7, 96
_EXPRESSIONS, _PEOPLE = 120, 8
# Seed of the first drawn person that no corpus holds.
_UNSEEN = 1000


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Hold the share of the still reference's squared error that generated frames remove; the truth itself has 1."""

    mouth: float
    """The share in the mouth's region."""
    face: float
    """The share in the face's region."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Hold what z tells, by linear maps fitted on half of the expressions and tested on the other half."""

    people: int
    """Drawn people."""
    identity_accuracy: float
    """Share of the latents whose person the probe names."""
    identity_of_change: float
    """The same by the change of z since the first expression, which is what moves a portrait. The deviation of that
    one frame is in all changes."""
    chance: float
    """The accuracy of guessing: 1 / people."""
    lips: float
    """R² of the lip opening."""
    head: float
    """R² of the head's rotation."""
    expression_ratio: float
    """Mean distance of one expression of two people over that of two expressions of one person."""


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    """Hold the gains of all held-out clips, and what the latents tell."""

    clips: dict[str, Gain]
    """Gains by held-out clip."""
    speakers: dict[str, Gain]
    """Gains by speaker."""
    steps: int
    """DDIM steps of a window."""
    cfg: float
    """Guidance of the rendering."""
    latents: Latents | None
    """None if the shards hold no control tracks."""

    def table(self) -> str:
        """Return a table for the terminal."""
        lines = [
            f"Error of the still reference removed, {self.steps} DDIM steps, CFG {self.cfg:g}:     mouth  face"
        ]
        lines += [
            f"  {name:<42} {gain.mouth:>6.0%} {gain.face:>6.0%}" for name, gain in self.speakers.items()
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
    windows: int = 2,
    max_clips: int = 8,
    seed: int = 0,
) -> RenderReport:
    """Render held-out clips from their own latents; write report.json and faces.png to `output`.

    Args:
        model: Folder of stage 1's export.
        videos: URI of video shards; the `test-` and `val-` ones are used.
        output: Folder for the report.
        config: How frames are rendered.
        windows: Windows of each clip that are rendered, spread over it.
        max_clips: Most held-out clips; the longest are used.
        seed: Seed of the rendering.

    Raises:
        ValueError: There are no held-out clips.
    """
    config = config or RenderConfig()
    renderer = Renderer.from_pretrained(model)
    index = load_index(videos).held_out()
    if not index.samples:
        raise ValueError(f"{videos}: no held-out shards (test-*, val-*) to report on")
    errors: dict[str, list[tuple[float, ...]]] = {}
    clips, rows = {}, []
    for row in np.argsort(-index.frames, kind="stable")[:max_clips]:
        found, shown = _render_clip(renderer, index, int(row), config, windows, seed)
        clips[str(index.key[row])] = _gain(found)
        errors.setdefault(str(index.speaker[row]), []).extend(found)
        rows += shown
    report = RenderReport(
        clips=clips,
        speakers={name: _gain(found) for name, found in sorted(errors.items())},
        steps=config.steps,
        cfg=config.cfg,
        latents=probe_latents(renderer, expressions)
        if (expressions := _expressions(index)) is not None
        else None,
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    sheet(rows[: 2 * _SHEET_ROWS]).save(output / "faces.png")
    return report


def _render_clip(
    renderer: Renderer, index: Index, row: int, config: RenderConfig, windows: int, seed: int
) -> tuple[list[tuple[float, ...]], list[list[np.ndarray]]]:
    """Render a clip's windows.

    Returns:
        The squared errors of each window (mouth generated, mouth still, face generated, face still), and two rows of
        pictures for the sheet.
    """
    count = min(config.window_frames, int(index.frames[row]) - 1)
    last = int(index.frames[row]) - count
    starts = sorted({round(1 + (last - 1) * (i + 1) / windows) for i in range(windows)})
    numbers = sorted({0, *(n for start in starts for n in range(start, start + count))})
    pictures = dict(zip(numbers, pick_frames(index.read(row, "mp4"), numbers), strict=True))
    size = renderer.image_size
    pictures = {
        n: np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BOX))
        for n, p in pictures.items()
    }
    reference = renderer.reference(pictures[0])
    errors, true_row, made_row = [], [pictures[0]], [pictures[0]]
    for start in starts:
        true = np.stack([pictures[n] for n in range(start, start + count)])
        z = renderer.components.motion_encoder.encode(true)
        made = renderer.window(reference, z, seed=seed, first_frame=start, config=config)
        still = np.broadcast_to(pictures[0], true.shape)
        errors.append(
            tuple(
                _error(picture, true, region)
                for region in (MOUTH_REGION, FACE_REGION)
                for picture in (made, still)
            )
        )
        at = np.linspace(0, count - 1, (_SHEET_COLUMNS - 1) // len(starts)).astype(int)
        true_row += list(true[at])
        made_row += list(made[at])
    return errors, [true_row, made_row]


def _error(made: np.ndarray, true: np.ndarray, region: tuple[float, ...]) -> float:
    """Return the mean squared error in a region, in squared grey levels."""
    rows, columns = region_pixels(region, true.shape[1])
    parts = (x[:, rows, columns].astype(np.float64) for x in (made, true))
    return float(np.mean(np.subtract(*parts) ** 2))


def _gain(errors: Sequence[tuple[float, ...]]) -> Gain:
    mouth, still_mouth, face, still_face = np.sum(errors, axis=0)
    return Gain(mouth=float(1 - mouth / still_mouth), face=float(1 - face / still_face))


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Draw rows of pictures, each of the same size, one below the other."""
    width = max(map(len, rows))
    picture = Image.new("RGB", (width * _SHEET_PX, len(rows) * _SHEET_PX))
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            tile = Image.fromarray(frame).resize((_SHEET_PX, _SHEET_PX), Image.Resampling.LANCZOS)
            picture.paste(tile, (x * _SHEET_PX, y * _SHEET_PX))
    return picture


def _expressions(index: Index) -> np.ndarray | None:
    """Return rows of control tracks spread over the held-out clips, [E, 57]; None if the shards hold none."""
    if "controls.npy" not in index.offset:
        return None
    tracks = [np.load(io.BytesIO(index.read(row, "controls.npy"))) for row in range(index.samples)]
    every = np.concatenate(tracks)
    return every[np.linspace(0, len(every) - 1, _EXPRESSIONS).astype(int)]


def probe_latents(renderer: Renderer, controls: np.ndarray) -> Latents:
    """Probe the latents of drawn people who all act the same expressions, rows of controls [E, 57]."""
    people = [Identity(name=f"drawn-{seed}", voice=Voice()) for seed in range(_UNSEEN, _UNSEEN + _PEOPLE)]
    # Every second expression is in the fitted half, so that both halves hold all moods.
    controls = np.concatenate([controls[::2], controls[1::2]])
    expressions, half = len(controls), (len(controls) + 1) // 2
    z = np.stack([_latents_of(renderer, person, controls) for person in people])  # [P, E, D]
    known, asked = _halves(z, half)

    wanted = np.column_stack([lip_opening(controls), controls[:, [INDEX[name] for name in HEAD]]])  # [E, 4]
    both = (np.tile(part, (len(people), 1)) for part in (wanted[:half], wanted[half:]))
    fitted, true = both
    guess = fit_linear(known, fitted)(asked)
    r2 = 1 - ((guess - true) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0)

    across = [np.linalg.norm(z[i] - z[j], axis=-1).mean() for i in range(len(people)) for j in range(i)]
    other = np.roll(z, expressions // 3, axis=1)
    within = np.linalg.norm(z - other, axis=-1).mean()
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
    """Split latents [P, E, D] of P people into those to fit on, [P x half, D], and those to test, the rest."""
    return z[:, :half].reshape(-1, z.shape[-1]), z[:, half:].reshape(-1, z.shape[-1])


def _named(z: np.ndarray, half: int) -> float:
    """Return how often a linear probe names the person of the latents [P, E, D] in the second half."""
    known, asked = _halves(z, half)
    people = np.arange(len(z))
    votes = fit_linear(known, np.repeat(np.eye(len(z)), half, axis=0))(asked)
    return float((votes.argmax(1) == np.repeat(people, z.shape[1] - half)).mean())


def _latents_of(renderer: Renderer, person: Identity, controls: np.ndarray) -> np.ndarray:
    """Return the latents [E, D] of a person's face crops."""
    size = 4 * renderer.image_size
    box = find_crop(person, size)
    frames = [render_frame(person, row, size) for row in controls]
    crops = [
        box.cut(frame, renderer.image_size)
        if box
        else np.asarray(
            Image.fromarray(frame).resize((renderer.image_size, renderer.image_size), Image.Resampling.BOX)
        )
        for frame in frames
    ]
    return renderer.components.motion_encoder.encode(np.stack(crops)).numpy()
