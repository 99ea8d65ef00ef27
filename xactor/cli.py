"""Make portraits speak, dub footage, assemble models and check metrics: the `xactor` command.

    xactor animate --image face.png --audio speech.wav --output out.mp4
    xactor dub --video footage.mp4 --audio speech.wav --output out.mp4
    xactor assemble --stage1 runs/stage1/export --stage2 runs/stage2/export --output model
    xactor selfcheck syncnet --weights syncnet_v2.model --video data/example.avi
    xactor --version

Exit status: 0 done, 1 a self-check's figures differ from the published ones, 2 the command cannot run as given, 3 at
least one video could not be made, 130 interrupted, 143 ended by SIGTERM. A video file appears only when it is complete.
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

from xactor import __version__
from xactor.atomic_path import atomic_path
from xactor.command_line import check_video_paths
from xactor.dub_command import Dub, dub
from xactor.model_folder import BOX, located
from xactor.options import AnimateOptions, Recommended, read_recommended

if TYPE_CHECKING:
    from xactor.pipeline import XActorPipeline

_log = logging.getLogger(__name__)


PathOption = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True, kw_only=True)
class Animate:
    """Make a portrait speak: an mp4 (h264 and aac) as long as the audio, at 25 frames per second."""

    model: str = BOX
    """Model folder, with model_index.json. `box` is the model that comes with this package."""
    image: PathOption = None
    """The portrait: a picture with a face, such as a JPEG, PNG, WebP, AVIF or TIFF."""
    audio: PathOption = None
    """The speech: audio or video in any format that PyAV reads."""
    output: PathOption = None
    """The .mp4 to write. An existing file is replaced."""
    input: PathOption = None
    """JSON-lines file for many videos. A row has image, audio and output, and may have the options of a video,
    named with underscores, such as "paste_back"."""
    options: Annotated[AnimateOptions, tyro.conf.arg(name="")] = field(default_factory=AnimateOptions)
    """Options for every video. A row's own options override them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models compute. `auto` uses a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Assemble:
    """Make one model folder from the exports of the two trainings."""

    stage1: Path
    """Export of stage 1, the renderer: motion_encoder, unet, reference_unet, vae and scheduler."""
    stage2: Path
    """Export of stage 2, the motion model: motion, motion_scheduler and audio_encoder."""
    recommended: PathOption = None
    """JSON file with the options that the model recommends for each quality. By default it recommends none."""
    output: Path
    """The model folder to make. It must not exist."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored weights. float16 halves the folder's size."""


@dataclass(frozen=True, kw_only=True)
class Selfcheck:
    """Score SyncNet's published example with its published weights, and compare with the published figures."""

    measure: tyro.conf.Positional[Literal["syncnet"]]
    """The metric to check."""
    weights: Path
    """The published weights, syncnet_v2.model."""
    video: Path
    """The example of the SyncNet repository, data/example.avi."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Describe one video to make."""

    image: Path
    """The portrait."""
    audio: Path
    """The speech."""
    output: Path
    """The mp4."""
    options: AnimateOptions
    """Options of this video."""

    def check(self) -> None:
        """Check paths and options before any work. Raises ValueError if the video cannot be made."""
        check_video_paths((self.image, self.audio), self.output)
        # These raise ValueError if an option is out of range.
        self.options.sampling()
        self.options.rendering()


# For each command, the class of its options, and the examples that its help shows above the options.
_COMMANDS: dict[str, tuple[Any, str]] = {
    "animate": (
        Animate,
        """One video:
    xactor animate --image face.png --audio speech.wav --output out.mp4

Many videos, with the model loaded once:
    xactor animate --model model --quality best --input items.jsonl

A line of items.jsonl:
    {"image": "face.png", "audio": "speech.wav", "output": "out.mp4", "seed": 1}""",
    ),
    "dub": (
        Dub,
        """Example:
    xactor dub --video footage.mp4 --audio speech.wav --output out.mp4""",
    ),
    "assemble": (
        Assemble,
        """Example:
    xactor assemble --stage1 runs/stage1/export --stage2 runs/stage2/export --output model""",
    ),
    "selfcheck": (
        Selfcheck,
        """Example:
    xactor selfcheck syncnet --weights syncnet_v2.model --video data/example.avi""",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name and exit with its status.

    Args:
        arguments: The command and its options; None means the arguments of this process.
    """
    command = _parse(sys.argv[1:] if arguments is None else list(arguments))
    # SIGTERM ends the command as Ctrl-C does, so that no partial file stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(_run(command))
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: list[str]) -> Animate | Dub | Assemble | Selfcheck:
    """Parse the arguments to a command. The process exits after help, the version or a usage error."""
    if arguments == ["--version"]:
        print(f"xactor {__version__}")
        sys.exit(0)
    if arguments and arguments[0] in _COMMANDS:
        kind, example = _COMMANDS[arguments[0]]
        description = f"{kind.__doc__}\n\n{example}"
        return tyro.cli(kind, prog=f"xactor {arguments[0]}", description=description, args=arguments[1:])
    # Without a valid command the help lists all commands.
    kinds = {name: kind for name, (kind, _) in _COMMANDS.items()}
    return tyro.extras.subcommand_cli_from_dict(kinds, prog="xactor", description=__doc__, args=arguments)


def _run(command: Animate | Dub | Assemble | Selfcheck) -> int:
    match command:
        case Animate():
            return animate(command)
        case Dub():
            return dub(command, load)
        case Assemble():
            return assemble(command)
        case Selfcheck():
            return selfcheck(command)


def animate(command: Animate) -> int:
    """Load the model once and make all videos of the command. Return the exit status: 0, or 3 if a video failed."""
    image, audio, output = command.image, command.audio, command.output
    if command.input is not None:
        if image or audio or output:
            raise ValueError("--input replaces --image, --audio and --output: give one or the other")
        items = read_items(command.input, command.options)
    elif image and audio and output:
        item = Item(image=image, audio=audio, output=output, options=command.options)
        item.check()
        items = [("", item)]
    else:
        raise ValueError("--image, --audio and --output are needed, or --input")
    pipeline = load(Path(located(command.model)), command.device)
    failed = sum(not _make(pipeline, place, item) for place, item in items)
    if failed < len(items) and not pipeline.recommended.from_model:
        print(f"note: {command.model} recommends no options: the paper's were used", file=sys.stderr)
    if command.input is not None:
        print(f"{len(items) - failed} made, {failed} failed")
    return 3 if failed else 0


def read_items(path: Path, options: AnimateOptions) -> list[tuple[str, Item | ValueError]]:
    """Read the rows of a JSON-lines file.

    Args:
        path: The file.
        options: Options that apply where a row does not give its own.

    Returns:
        One pair per row: its place, such as "items.jsonl:3: ", and its item, or the error in the row.

    Raises:
        ValueError: The file is not UTF-8, or has no rows.
    """
    items: list[tuple[str, Item | ValueError]] = []
    row_of_output: dict[Path, int] = {}
    # `splitlines` would also split at U+2028 and other characters that a JSON string may contain.
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = _item(line, options)
            first_row = row_of_output.setdefault(item.output.resolve(), number)
            if first_row != number:
                raise ValueError(f"{item.output}: row {first_row} writes it already")
            items.append((f"{path}:{number}: ", item))
        except ValueError as error:
            items.append((f"{path}:{number}: ", error))
        # For example, a path is too long, or the user has no permission to read its folder.
        except OSError as error:
            items.append((f"{path}:{number}: ", ValueError(f"{error.filename}: {error.strerror}")))
    if not items:
        raise ValueError(f"{path}: the file must have at least one row, got none")
    return items


def load(folder: Path, device: str) -> "XActorPipeline":
    """Load the model and move it to the device. Weights are bfloat16 on a GPU and float32 on a CPU.

    The audio encoder is not cast to bfloat16.

    Args:
        folder: The model folder.
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: The folder does not hold a complete model, or `device` is "cuda" and there is no GPU.
    """
    import torch

    from xactor.pipeline import XActorPipeline

    _quiet_libraries()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is available")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return XActorPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)


def assemble(command: Assemble) -> int:
    """Make one model folder from the exports of the two trainings. Return the exit status, 0."""
    import torch

    from xactor.pipeline import XActorPipeline

    _quiet_libraries()
    output = command.output.absolute()
    if output.exists():
        raise ValueError(f"{output}: exists already, give a new folder")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder to write to")
    recommended = read_recommended(command.recommended) if command.recommended else Recommended()
    dtype = {"float32": torch.float32, "float16": torch.float16}[command.dtype]
    pipeline = XActorPipeline.from_stages(command.stage1, command.stage2, torch_dtype=dtype)
    pipeline.recommended = recommended
    with atomic_path(output) as partial:
        pipeline.save_pretrained(partial)
    print(f"model: {output}")
    return 0


def selfcheck(command: Selfcheck) -> int:
    """Print the measured figures next to the published ones. Return 0 if all agree, 1 otherwise."""
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


def _make(pipeline: "XActorPipeline", place: str, item: Item | ValueError) -> bool:
    """Make one video, and print that it is made or why not. Return whether it is made.

    Args:
        pipeline: The loaded model.
        place: Text at the start of each printed line, such as "items.jsonl:3: ", or "" for a video without a row.
        item: The video, or the error in its row.
    """
    started = time.monotonic()
    try:
        if isinstance(item, ValueError):
            raise item
        options = item.options.with_recommended(pipeline.recommended)
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
            print(f"{place}{item.image}: {note}", file=sys.stderr)
        frames = animation.save(item.output)
    except Exception as error:
        # An error in one row must not stop the other rows.
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        print(f"error: {place}{kind}{_one_line(error)}", file=sys.stderr)
        _log.debug("%s", item, exc_info=True)
        return False
    print(f"{place}{item.output}: {frames} frames in {time.monotonic() - started:.1f} s", flush=True)
    return True


def _item(line: str, options: AnimateOptions) -> Item:
    """Parse and check one row. Raises ValueError if no video can be made from it."""
    try:
        row: dict[str, Any] = json.loads(line)
    # Deeply nested JSON raises a RecursionError.
    except (ValueError, RecursionError) as error:
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


def _one_line(error: BaseException) -> str:
    """Return the error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _quiet_libraries() -> None:
    """Silence the messages that libraries print while they load models. Errors are still raised."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    main()
