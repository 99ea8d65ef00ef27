"""Curate raw talking videos: make training shards of face clips of 512 px at 25 fps, in sync with their sound.

    ray job submit --working-dir . -- python jobs/curate.py \\
        --videos s3://bucket/raw --output s3://bucket/videos --syncnet weights/syncnet_v2.model

The command also runs without `ray job submit`: it starts Ray, or joins the cluster of RAY_ADDRESS.

Copies of videos and clips are left out. People are told apart by folders and, with `pip install '.[identity]'`, by
faces; --held-out keeps whole people for the test.

report.parquet states for each clip whether it was kept and, if not, why; report.html shows counts and histograms. If
the same command runs again, it processes only what is missing. Exit status: 0 all videos examined, 2 the command is
invalid, 3 some videos could not be read.
"""

import _checkout

import sys

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.cluster.connect import connect
from xactor_platform.curation.curate import curate
from xactor_platform.curation.curation_config import CurationConfig
from xactor_platform.curation.lips import NO_SYNCNET
from xactor_platform.curation.recognise import NO_IDENTITY, PACKAGED_IDENTITY
from xactor_platform.storage.location import absolute


def main() -> int:
    config = tyro.cli(CurationConfig, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {config.videos} into {config.output}")
    places = {name: absolute(getattr(config, name)) for name in ("videos", "output")}
    if config.syncnet != NO_SYNCNET:
        places["syncnet"] = absolute(config.syncnet)
    if config.identity not in (NO_IDENTITY, PACKAGED_IDENTITY):
        places["identity"] = absolute(config.identity)
    result = curate(
        CurationConfig(**{**vars(config), **places}),
        connect=lambda: connect(_checkout.PY_MODULES),
        say=print_now,
    )
    print("\n".join(result.summary()))
    return 3 if result.failed else 0


if __name__ == "__main__":
    run_command(main)
