"""Train stage 1, the motion encoder and the renderer, on a folder of video shards.

    python jobs/train_stage1.py
    ray job submit -- python jobs/train_stage1.py
    ray job submit --working-dir . -- python jobs/train_stage1.py \\
        paper --data.shards s3://bucket/videos --run.storage s3://bucket/runs

The first argument, which is optional, names a preset. `tiny`, the default, runs on two CPU cores; `small` trains SD1.5
at 256 px on one GPU; `paper` trains the paper's model at 512 px on 8 GPUs. `train_stage1.py small --help` shows the
values of the preset `small`. Without any arguments the job trains `tiny` on the demo corpus, and makes the corpus first
if it does not exist. If the same command runs again, it resumes a run that was stopped.
"""

import _checkout

from pathlib import Path

from xactor_platform.training.command import main
from xactor_platform.training.stage1_config import PRESETS


def make_corpus(folder: Path) -> None:
    """Make the demo corpus in a folder, and print its progress."""
    # Import the module only here, because the import takes seconds and --help does not need it.
    from xactor_platform.demo_corpus.corpus import make_demo_corpus

    make_demo_corpus(folder, progress=print)


if __name__ == "__main__":
    main(PRESETS, _checkout.PY_MODULES, __doc__, make_corpus)
