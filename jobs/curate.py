"""Makes training shards from raw talking videos: face clips of 512 px at 25 fps, in sync with their sound.

    ray job submit --working-dir . -- python jobs/curate.py \\
        --videos s3://bucket/raw --output s3://bucket/videos --syncnet weights/syncnet_v2.model

Also plain: it starts Ray by itself, or joins the cluster of RAY_ADDRESS. Each clip's fate is in report.parquet,
counted and drawn in report.html; the same command again does what is missing. Exit status: 0 all videos looked at,
2 the command cannot be carried out, 3 some videos could not be read.
"""

import _checkout

import sys

import tyro

from xactor_platform.curation.config import CurateConfig
from xactor_platform.curation.lips import NO_SYNCNET
from xactor_platform.curation.run import BudgetSpent, curate
from xactor_platform.storage.location import absolute
from xactor_platform.cluster.connect import connect


def main() -> int:
    try:
        config = tyro.cli(CurateConfig, description=__doc__)
        if len(sys.argv) == 1:
            print(f"no arguments: the demo's defaults, from {config.videos} into {config.output}")
        places = {name: absolute(getattr(config, name)) for name in ("videos", "output")}
        if config.syncnet != NO_SYNCNET:
            places["syncnet"] = absolute(config.syncnet)
        outcome = curate(
            CurateConfig(**{**vars(config), **places}),
            connect=lambda: connect(_checkout.PY_MODULES),
            say=lambda line: print(line, flush=True),
        )
    except (ValueError, OSError, BudgetSpent) as error:
        print(f"curate: {error}", file=sys.stderr)
        return 2
    print("\n".join(outcome.bill.lines()))
    return 3 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
