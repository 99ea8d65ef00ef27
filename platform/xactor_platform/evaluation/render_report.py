"""What stage 1 has learned: how near generated frames come to the truth, and what its latents hold and do not hold.

On the held-out clips of a folder of video shards: a clip's first frame is the reference, the latents are the true
frames' own. Regions are those of `xactor.faces.crop`, which frames every face alike.

On drawn people that no training saw, all acting the same controls, which only a generator of faces can give: whether z
tells them apart, how near the same expression of two is beside two expressions of one, and whether the controls can be
read off z by a linear map.
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
_UNSEEN = 1000  # the first of the drawn people whom no corpus holds


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One part of the squared error of the still reference that generated frames take away: 1 is the truth itself."""

    mouth: float
    face: float


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What z holds, by linear maps fitted on half of the expressions and tried on the other half.

    identity_accuracy, chance: of naming one of the drawn people. lips, head: R² of lip opening and of head rotation.
    identity_of_change: of naming one by what z has changed since the first expression, which is what moves a
        portrait. That one frame's own deviation is in all of them.
    expression_ratio: mean distance of one expression on two people over that of two expressions on one.
    """

    people: int
    identity_accuracy: float
    identity_of_change: float
    chance: float
    lips: float
    head: float
    expression_ratio: float


@dataclass(frozen=True, kw_only=True)
class RenderReport:
    clips: dict[str, Gain]  # by held-out clip
    speakers: dict[str, Gain]
    steps: int
    cfg: float
    latents: Latents | None

    def table(self) -> str:
        lines = [
            f"Error of the still reference taken away, {self.steps} DDIM steps, CFG {self.cfg:g}:  mouth  face"
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
    """Renders held-out clips from their own latents; writes report.json and faces.png to `output`.

    Args:
        model: folder of stage 1's export.
        videos: URI of video shards; their `test-` and `val-` ones are used.
        windows: of each clip that are rendered, spread over it.

    Raises:
        ValueError: no held-out clips.
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
    """Squared errors (generated and still, mouth and face) of each window, and two rows of pictures for the sheet."""
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
    """Mean squared error in a region, in squared grey levels."""
    rows, columns = region_pixels(region, true.shape[1])
    parts = (x[:, rows, columns].astype(np.float64) for x in (made, true))
    return float(np.mean(np.subtract(*parts) ** 2))


def _gain(errors: Sequence[tuple[float, ...]]) -> Gain:
    mouth, still_mouth, face, still_face = np.sum(errors, axis=0)
    return Gain(mouth=float(1 - mouth / still_mouth), face=float(1 - face / still_face))


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Rows of pictures by turns true and generated, the reference first in each."""
    width = max(map(len, rows))
    picture = Image.new("RGB", (width * _SHEET_PX, len(rows) * _SHEET_PX))
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            tile = Image.fromarray(frame).resize((_SHEET_PX, _SHEET_PX), Image.Resampling.LANCZOS)
            picture.paste(tile, (x * _SHEET_PX, y * _SHEET_PX))
    return picture


def _expressions(index: Index) -> np.ndarray | None:
    """Rows of control tracks spread over the held-out clips, [E, 57]; None where the shards hold none."""
    if "controls.npy" not in index.offset:
        return None
    tracks = [np.load(io.BytesIO(index.read(row, "controls.npy"))) for row in range(index.samples)]
    every = np.concatenate(tracks)
    return every[np.linspace(0, len(every) - 1, _EXPRESSIONS).astype(int)]


def probe_latents(renderer: Renderer, controls: np.ndarray) -> Latents:
    """Latents of drawn people who all act the same expressions, rows of controls [E, 57]."""
    people = [Identity(name=f"drawn-{seed}", voice=Voice()) for seed in range(_UNSEEN, _UNSEEN + _PEOPLE)]
    # Every second one is fitted on, so that both halves hold all moods.
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
    """Latents [P, E, D] of P people as those to fit on and those to try, [P x half, D] and the rest."""
    return z[:, :half].reshape(-1, z.shape[-1]), z[:, half:].reshape(-1, z.shape[-1])


def _named(z: np.ndarray, half: int) -> float:
    """How often a linear probe names whose latents [P, E, D] those of the second half are."""
    known, asked = _halves(z, half)
    people = np.arange(len(z))
    votes = fit_linear(known, np.repeat(np.eye(len(z)), half, axis=0))(asked)
    return float((votes.argmax(1) == np.repeat(people, z.shape[1] - half)).mean())


def _latents_of(renderer: Renderer, person: Identity, controls: np.ndarray) -> np.ndarray:
    """[E, D] of a person's face crops."""
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
