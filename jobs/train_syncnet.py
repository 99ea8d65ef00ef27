"""Train the small SyncNet on video shards, and report how well it measures lip sync on held-out shards.

    ray job submit --working-dir . -- python jobs/train_syncnet.py --videos /shared/demo/corpus/videos

SyncNet measures how well the lips in a video fit the sound. The command also runs without `ray job submit`. It needs no
cluster: it works on one machine and takes minutes. It writes config.json, model.safetensors, training.json,
metrics.jsonl, sync.json and sync.png.
"""

import _checkout  # noqa: F401

import sys

import tyro

from xactor.command_line import print_now, run_command
from xactor_platform.data.index_file import load_index
from xactor_platform.evaluation.sync_report import report_sync
from xactor_platform.evaluation.syncnet_training import SyncNetTraining, read_clips, train_syncnet


def main() -> int:
    config = tyro.cli(SyncNetTraining, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, from {config.videos} into {config.output}")
    index = load_index(config.videos)
    clips = read_clips(
        index.training(), config.crop_px, minutes=config.minutes, min_frames=config.clip_frames
    )
    print_now(f"Training on {len(clips)} clips")
    model = train_syncnet(config, clips, progress=print_now)
    print_now(f"model: {config.output}")
    if index.held_out().samples:
        held_out = read_clips(index.held_out(), config.model.image_size)
        print(report_sync(model, held_out, config.output).table())
    return 0


if __name__ == "__main__":
    run_command(main)
