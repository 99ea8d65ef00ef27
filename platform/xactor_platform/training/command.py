"""Run a training from the command line, which names a preset and then options that change the preset's config."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro

from xactor_platform.training.run.folder import RunFolder, saved_config
from xactor_platform.training.train_config import StageConfig

Config = TypeVar("Config", bound=StageConfig)


def main(
    presets: Mapping[str, Callable[[], StageConfig]],
    py_modules: list[str],
    description: str | None,
    make_corpus: Callable[[Path], object],
) -> None:
    """Train the run that the command line describes, and set the exit status of the process.

    The exit status is 0 for a run that is done or was stopped on request, 1 for a failed run, 2 if the training cannot
    start (for example because of an invalid option), and 143 after SIGTERM. Without arguments, the preset `tiny` trains
    on the demo corpus, which is made first if it does not exist.

    Args:
        presets: functions that make the presets' configs, by name. `tiny` must be among them: it is the default.
        py_modules: folders of Python code that Ray copies to the cluster's workers.
        description: text at the top of --help.
        make_corpus: function that makes the demo corpus in the given folder.
    """
    arguments = sys.argv[1:]
    try:
        config = parse(arguments, presets, description)
        if not arguments and not Path(config.data.shards).exists():
            make_corpus(Path(config.data.shards).parent)
        # Imported here because Ray takes seconds to import. --help and invalid options need not wait for it.
        from xactor_platform.training.launch import train

        result = train(config, py_modules=py_modules)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if result.stopped:
        step = result.last["step"]
        kept = (
            f"step {step} of {config.train.steps} is in a checkpoint"
            if step
            else "there is no checkpoint yet"
        )
        print(f"stopped ({result.stopped}): {kept}; the same command resumes the run")
        sys.exit(143 if result.stopped == "SIGTERM" else 0)
    held_out = result.last.get("held_out_loss")
    score = "no held-out shards" if held_out is None else f"held-out loss {held_out:.4f}"
    print(
        f"done: step {result.last['step']}, loss {result.last['loss']:.4f}, {score}\nmodel: {result.export}"
    )


def parse(
    arguments: list[str], presets: Mapping[str, Callable[[], Config]], description: str | None = None
) -> Config:
    """Return the config that the command line describes, with absolute paths.

    The preset is `tiny` if the first argument names none. With --run.resume, options that are not given keep the values
    of the run's saved config.

    Args:
        arguments: the command line without the script's name.
        presets: functions that make the presets' configs, by name. --help shows the docstring of the chosen function.
        description: text at the top of --help.
    """
    if not arguments:
        corpus = Path(presets["tiny"]().data.shards).absolute().parent
        print(f"no arguments: preset tiny, on the demo corpus in {corpus}", flush=True)
    preset, options = "tiny", arguments
    if arguments and arguments[0] in presets:
        preset, *options = arguments

    def with_options(default: Config) -> Config:
        """Return a config with the options of the command line, and the values of `default` for all others."""
        return tyro.cli(
            type(default),
            default=default,
            args=options,
            prog=f"{Path(sys.argv[0]).name} [{'|'.join(presets)}]",
            description=f"{description or ''}\n\nDefaults below: preset {preset}. {presets[preset].__doc__ or ''}",
        ).located()

    config = with_options(presets[preset]())
    saved = saved_config(RunFolder.of(config.run)) if config.run.resume else None
    if saved is None:
        return config
    # The run exists: parse again, with the saved config instead of the preset as the defaults.
    return with_options(type(config).from_dict(saved["config"]))
