"""Trains the small SyncNet on video shards, and reports what it can tell on those that are held out.

    ray job submit --working-dir . -- python jobs/train_syncnet.py --videos /shared/demo/corpus/videos

Also plain: `python jobs/train_syncnet.py`. Needs no cluster: it works on the machine it is on, for minutes. Writes
config.json, model.safetensors, training.json, metrics.jsonl, sync.json and sync.png.
"""

import _checkout  # noqa: F401

import sys
import time

import tyro

from xactor_platform.data.index import load_index
from xactor_platform.evaluation.sync_report import report_sync
from xactor_platform.evaluation.syncnet_training import (
    SyncNetTraining,
    read_clips,
    train_syncnet,
)


def main() -> int:
    config = tyro.cli(SyncNetTraining, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {config.videos} into {config.output}")
    began = time.monotonic()
    try:
        index = load_index(config.videos)
        clips = read_clips(
            index.training(), config.crop_px, minutes=config.minutes, least_frames=config.clip_frames
        )
        print(f"{len(clips)} clips read in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        model = train_syncnet(config, clips, progress=lambda line: print(line, flush=True))
        print(f"trained in {time.monotonic() - began:.0f} s; model: {config.output}", flush=True)
        if index.held_out().samples:
            print(
                report_sync(
                    model, read_clips(index.held_out(), config.model.image_size), config.output
                ).table()
            )
    except (ValueError, OSError) as error:
        print(f"train_syncnet: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
