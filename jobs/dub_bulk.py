"""Dubs what a manifest lists: portraits and voices to videos, on as many workers as there is work for.

    ray job submit --working-dir . -- python jobs/dub_bulk.py \\
        --model weights/xactor --manifest s3://bucket/items.jsonl --output s3://bucket/dubbed --device gpu

Also plain. A row of the manifest (.jsonl, .csv, .parquet) is {"id", "image" or "video", "audio"} and any of the options
below. It writes <id>.mp4 and results.jsonl; the same command again makes what is missing, and what has changed. Exit
status: 0 all done, 2 the command cannot be carried out, 3 some rows failed.
"""

import _checkout

import sys

import tyro

from xactor_platform.dubbing.config import DubConfig
from xactor_platform.dubbing.run import dub
from xactor_platform.storage.location import absolute
from xactor_platform.cluster.connect import connect


def main() -> int:
    try:
        config = tyro.cli(DubConfig)
        places = {name: absolute(getattr(config, name)) for name in ("manifest", "output", "model")}
        outcome = dub(
            DubConfig(**{**vars(config), **places}),
            connect=lambda: connect(_checkout.PY_MODULES),
            say=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError) as error:
        print(f"dub_bulk: {error}", file=sys.stderr)
        return 2
    print("\n".join(outcome.bill.lines()))
    return 3 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
