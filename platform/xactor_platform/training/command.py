"""The command line of both trainers: a preset, then any option of the config by its name."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro

from xactor_platform.demo_corpus.corpus import make_demo_corpus
from xactor_platform.training.config import StageConfig
from xactor_platform.training.launch import saved_config, train
from xactor_platform.training.run.folder import RunFolder

Config = TypeVar("Config", bound=StageConfig)


def main(presets: Mapping[str, Callable[[], StageConfig]], py_modules: list[str]) -> None:
    """Trains as the command line says, and exits: 0 done or stopped as asked, 1 failed, 2 cannot work, 143 SIGTERM.

    Args:
        presets: the first, `tiny`, is taken where none is named. Without any arguments at all it trains on the demo
            corpus, which is made where there is none.
        py_modules: folders of code for the cluster's workers.
    """
    arguments = sys.argv[1:]
    try:
        config = parse(arguments, presets)
        if not arguments and not Path(config.data.shards).exists():
            make_demo_corpus(Path(config.data.shards).parent, progress=print)
        outcome = train(config, py_modules=py_modules)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if outcome.stopped:
        print(
            f"stopped ({outcome.stopped}): step {outcome.last['step']} of {config.train.steps} is in a checkpoint; "
            f"the same command goes on"
        )
        sys.exit(143 if outcome.stopped == "SIGTERM" else 0)
    held_out = outcome.last.get("held_out_loss")
    score = "no held-out shards" if held_out is None else f"held-out loss {held_out:.4f}"
    print(
        f"done: step {outcome.last['step']}, loss {outcome.last['loss']:.4f}, {score}\nmodel: {outcome.export}"
    )


def parse(arguments: list[str], presets: Mapping[str, Callable[[], Config]]) -> Config:
    """The config from the command line. A run that is resumed gives the defaults of what is not stated."""
    makers = {name: (" ".join((make.__doc__ or "").split()), make()) for name, make in presets.items()}
    if not arguments:
        corpus = Path(makers["tiny"][1].data.shards).absolute().parent
        print(f"no arguments: preset tiny, on the demo corpus in {corpus}", flush=True)
    if not arguments or (arguments[0] not in presets and arguments[0] not in ("-h", "--help")):
        arguments = ["tiny", *arguments]
    config = tyro.extras.overridable_config_cli(makers, args=arguments).located()
    saved = saved_config(RunFolder(config.run.storage, config.run.name)) if config.run.resume else None
    if saved is None:
        return config
    before = type(config).from_dict(saved["config"])
    return tyro.cli(type(config), default=before, args=arguments[1:]).located()
