"""Train stage 2, the motion model, on a folder of shards.

    ray job submit --working-dir . -- python jobs/train_stage2.py \\
        paper-7b --data.shards s3://bucket/shards --run.storage s3://bucket/runs

Presets: tiny (two CPU cores), small (a 0.5B backbone on one GPU), paper-7b. Without any arguments: tiny, on the demo
corpus, which is made first where there is none. The same command again goes on where the run stopped.
"""

import _checkout

from xactor_platform.training.command import main
from xactor_platform.training.stage2_config import PRESETS

if __name__ == "__main__":
    main(PRESETS, _checkout.PY_MODULES)
