"""Train stage 2, the motion model, on a folder of shards.

    ray job submit --working-dir . -- python jobs/train_stage2.py \\
        paper-7b --data.shards s3://bucket/shards --run.storage s3://bucket/runs

Presets: tiny (two CPU cores), small (a 0.5B backbone on one GPU), paper-7b. Without any arguments: tiny, on the demo
corpus, which is made first where there is none. The same command again goes on where the run stopped.
"""

import sys
from pathlib import Path

import _checkout

import tyro

from xactor_platform.corpus.demo import make_demo_corpus
from xactor_platform.training.config import PRESETS, Stage2Config
from xactor_platform.training.launch import saved_config, train_stage2
from xactor_platform.training.run_folder import RunFolder


def parse(arguments: list[str]) -> Stage2Config:
    """The config from the command line. A run that is resumed gives the defaults of what is not stated."""
    if not arguments:
        print(
            f"no arguments: preset tiny, on the demo corpus in {Path('demo/corpus').absolute()}", flush=True
        )
    if not arguments or (arguments[0] not in PRESETS and arguments[0] not in ("-h", "--help")):
        arguments = ["tiny", *arguments]
    presets = {name: (" ".join((make.__doc__ or "").split()), make()) for name, make in PRESETS.items()}
    config = tyro.extras.overridable_config_cli(presets, args=arguments)
    config = config.located()
    saved = saved_config(RunFolder(config.run.storage, config.run.name)) if config.run.resume else None
    if saved is None:
        return config
    before = Stage2Config.from_dict(saved["config"])
    return tyro.cli(Stage2Config, default=before, args=arguments[1:]).located()


def main() -> None:
    try:
        config = parse(sys.argv[1:])
        if len(sys.argv) == 1 and not Path(config.data.shards).exists():
            make_demo_corpus(Path(config.data.shards).parent, progress=print)
        outcome = train_stage2(config, py_modules=_checkout.PY_MODULES)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    held_out = outcome.last.get("held_out_loss")
    score = "no held-out shards" if held_out is None else f"held-out loss {held_out:.4f}"
    print(
        f"done: step {outcome.last['step']}, loss {outcome.last['loss']:.4f}, {score}\nmodel: {outcome.export}"
    )


if __name__ == "__main__":
    main()
