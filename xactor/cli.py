"""The `xactor` command: `animate` makes portraits speak, `assemble` makes one model of two trainings' exports, and
`selfcheck` compares a measure with its published figures.

Exit status: 0 done, 1 a self-check's figures are not the published ones, 2 the command cannot be carried out as it is
given, 3 some of the videos could not be made, 130 interrupted. A video appears whole or not at all.
"""

import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from xactor.atomic_path import atomic_path
from xactor.options import AnimateOptions

if TYPE_CHECKING:
    from xactor.pipeline import XActorPipeline

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Animate:
    """Make a portrait speak: an mp4 (h264 and aac) as long as the audio, at 25 frames a second.

    Args:
        model: the model's folder.
        image: the portrait; any picture that Pillow reads.
        audio: the speech; any sound or video that PyAV reads.
        output: the mp4 to write. It replaces an older one.
        input: instead of these three, a file with one JSON object a line: image, audio, output, and any of the
            options below, by their names with underscores.
        device: where to compute; auto is a GPU where there is one.
    """

    model: Path
    image: Path | None = None
    audio: Path | None = None
    output: Path | None = None
    input: Path | None = None
    options: Annotated[AnimateOptions, tyro.conf.arg(name="")] = field(default_factory=AnimateOptions)
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Assemble:
    """Make one model's folder of the two trainings' exports.

    Args:
        stage1: the renderer's export: motion_encoder, unet, reference_unet, vae, scheduler.
        stage2: the motion model's export: motion, motion_scheduler, audio_encoder.
        output: the folder to make.
    """

    stage1: Path
    stage2: Path
    output: Path


@dataclass(frozen=True, kw_only=True)
class Selfcheck:
    """Score the reference's own example with its published weights, and compare with what it says of it.

    Args:
        measure: which one.
        weights: the published file: syncnet_v2.model.
        video: the reference's example: data/example.avi.
    """

    measure: tyro.conf.Positional[Literal["syncnet"]]
    weights: Path
    video: Path


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video to make."""

    image: Path
    audio: Path
    output: Path
    options: AnimateOptions

    def check(self) -> None:
        """ValueError: what can be known to fail before any work."""
        for source in (self.image, self.audio):
            if not source.is_file():
                raise ValueError(f"{source}: no such file")
            if self.output.exists() and self.output.samefile(source):
                raise ValueError(f"{self.output}: the output would replace what it is made from")
        if self.output.suffix.lower() != ".mp4":
            raise ValueError(f"{self.output}: the output must be an .mp4")
        if self.output.is_dir():
            raise ValueError(f"{self.output}: is a folder")
        if not self.output.parent.is_dir():
            raise ValueError(f"{self.output.parent}: no such folder to write to")
        self.options.sampling()
        self.options.rendering()


def main(arguments: Sequence[str] | None = None) -> None:
    command = tyro.extras.subcommand_cli_from_dict(
        {"animate": Animate, "assemble": Assemble, "selfcheck": Selfcheck},
        prog="xactor",
        description=__doc__,
        args=sys.argv[1:] if arguments is None else arguments,
    )
    # As by Ctrl-C, so that nothing half made stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(_carry_out(command))
    except (ValueError, OSError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _carry_out(command: Animate | Assemble | Selfcheck) -> int:
    match command:
        case Animate():
            return animate(command)
        case Assemble():
            return assemble(command)
        case Selfcheck():
            return selfcheck(command)


def animate(command: Animate) -> int:
    """Makes the command's videos with the model loaded once: the exit status."""
    image, audio, output = command.image, command.audio, command.output
    if command.input is not None:
        if image or audio or output:
            raise ValueError("--input stands for --image, --audio and --output: give one or the other")
        items = read_items(command.input, command.options)
    elif image and audio and output:
        item = Item(image=image, audio=audio, output=output, options=command.options)
        item.check()
        items = [("", item)]
    else:
        raise ValueError("--image, --audio and --output are needed, or --input")
    pipeline = load(command.model, command.device)
    failed = sum(not _made(pipeline, where, item) for where, item in items)
    if command.input is not None:
        print(f"{len(items) - failed} made, {failed} failed")
    return 3 if failed else 0


def read_items(path: Path, options: AnimateOptions) -> list[tuple[str, Item | ValueError]]:
    """The rows of a JSON-lines file, each with its place: an item, or what is wrong with it."""
    items: list[tuple[str, Item | ValueError]] = []
    seen: dict[Path, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = _item(line, options)
            before = seen.setdefault(item.output.resolve(), number)
            if before != number:
                raise ValueError(f"{item.output}: row {before} writes it already")
            items.append((f"{path}:{number}: ", item))
        except ValueError as error:
            items.append((f"{path}:{number}: ", error))
    if not items:
        raise ValueError(f"{path}: no rows")
    return items


def load(folder: Path, device: str) -> "XActorPipeline":
    """The model on its device, in bfloat16 on a GPU and in float32 elsewhere."""
    import torch

    from xactor.pipeline import XActorPipeline

    _hush()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is available")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return XActorPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)


def assemble(command: Assemble) -> int:
    from xactor.pipeline import XActorPipeline

    _hush()
    output = command.output.absolute()
    if output.exists():
        raise ValueError(f"{output}: exists already")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder to write to")
    pipeline = XActorPipeline.from_stages(command.stage1, command.stage2)
    with atomic_path(output) as partial:
        pipeline.save_pretrained(partial)
    print(f"model: {output}")
    return 0


def selfcheck(command: Selfcheck) -> int:
    """Prints measured beside published figures: 0 where all agree, 1 where one does not."""
    from xactor.metrics.syncnet import load_published
    from xactor.metrics.syncnet_selfcheck import syncnet_figures

    model = load_published(command.weights)
    figures = syncnet_figures(model, command.video)
    print(f"{command.measure} on {command.video}, weights: {model.weights}")
    print(f"{'':22}{'measured':>10}{'published':>11}{'tolerance':>11}")
    for figure in figures:
        verdict = "agrees" if figure.agrees else "DISAGREES"
        print(
            f"{figure.name:22}{figure.measured:10.3f}{figure.published:11.3f}{figure.tolerance:11.3f}  {verdict}"
        )
    return 0 if all(figure.agrees for figure in figures) else 1


def _made(pipeline: "XActorPipeline", where: str, item: Item | ValueError) -> bool:
    """Makes one video and says so, or says why not."""
    started = time.monotonic()
    try:
        if isinstance(item, ValueError):
            raise item
        options = item.options
        pipeline.set_progress_bar_config(desc=item.output.name, unit="frame", disable=None)
        animation = pipeline(
            item.image,
            item.audio,
            seed=options.seed,
            motion=options.sampling(),
            render=options.rendering(),
            paste_back=options.paste_back,
            max_seconds=options.max_seconds,
        )
        for note in animation.notes:
            print(f"{where}{item.image}: {note}", file=sys.stderr)
        frames = animation.save(item.output)
    except Exception as error:  # whatever it was, the other rows shall be made
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        print(f"error: {where}{kind}{_line(error)}", file=sys.stderr)
        _log.debug("%s", item, exc_info=True)
        return False
    print(f"{where}{item.output}: {frames} frames in {time.monotonic() - started:.1f} s", flush=True)
    return True


def _item(line: str, options: AnimateOptions) -> Item:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {line.strip()[:40]}")
    paths = {name: row.pop(name, None) for name in ("image", "audio", "output")}
    for name, path in paths.items():
        if not isinstance(path, str) or not path:
            raise ValueError(f"{name} must be a path, got {path!r}")
    item = Item(**{name: Path(path) for name, path in paths.items()}, options=options.with_row(row))
    item.check()
    return item


def _line(error: BaseException) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _hush() -> None:
    """Libraries' own news about loading stays out of the output; their errors are raised."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
