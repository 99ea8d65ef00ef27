"""Train stage 1, the motion encoder and the renderer, on a folder of video shards.

    ray job submit --working-dir . -- python jobs/train_stage1.py \\
        paper --data.shards s3://bucket/videos --run.storage s3://bucket/runs

Presets: tiny (two CPU cores), small (SD1.5 at 256 px on one GPU), paper (512 px, 8 GPUs). Without any arguments: tiny,
on the demo corpus, which is made first where there is none. The same command again goes on where the run stopped.
"""

import _checkout

from xactor_platform.training.command import main
from xactor_platform.training.stage1_config import PRESETS

if __name__ == "__main__":
    main(PRESETS, _checkout.PY_MODULES)
