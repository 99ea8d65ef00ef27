"""Dub in bulk: turn the portraits and voices that a manifest lists into videos.

    ray job submit --working-dir . -- python jobs/dub_bulk.py \\
        --model weights/xactor --manifest s3://bucket/items.jsonl --output s3://bucket/dubbed --device gpu

The command also runs without `ray job submit`: it starts Ray, or joins the cluster of RAY_ADDRESS.

A row of the manifest (.jsonl, .csv, .parquet) describes one video. It has the fields "id", "image" or "video", and
"audio". It may also set options of `xactor animate` for this row alone. The job writes <id>.mp4 for each row,
results.jsonl with the result of each row, and bill.json with the time and work of the job. If the same command runs
again, it makes only the videos that are missing or whose row has changed. Exit status: 0 all rows done, 2 the command
is invalid, 3 some rows failed.
"""

import _checkout

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.cluster.connect import connect
from xactor_platform.dubbing.dub import dub
from xactor_platform.dubbing.dub_config import DubConfig
from xactor_platform.storage.location import absolute


def main() -> int:
    config = tyro.cli(DubConfig, description=__doc__)
    places = {name: absolute(getattr(config, name)) for name in ("manifest", "output", "model")}
    result = dub(
        DubConfig(**{**vars(config), **places}),
        connect=lambda: connect(_checkout.PY_MODULES),
        say=print_now,
    )
    print("\n".join(result.summary()))
    return 3 if result.failed else 0


if __name__ == "__main__":
    run_command(main)
