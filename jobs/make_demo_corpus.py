"""Make the demo corpus: talking clips whose motion is known exactly, and from them the shards for both trainings.

    ray job submit --working-dir . -- python jobs/make_demo_corpus.py --output /shared/demo/corpus

The command also runs without `ray job submit`. It needs no cluster: it works on all cores of its machine.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor.command_line import run_command
from xactor_platform.demo_corpus.corpus import make_demo_corpus


@dataclass(frozen=True, kw_only=True)
class MakeDemoCorpus:
    """Choose the size of the corpus. The defaults make ten minutes of speech in demo/corpus."""

    output: Path = Path("demo/corpus")
    """Folder to write: clips/, videos/, shards/ and audio_encoder/."""
    seed: int = 0
    """Seed; the same seed gives the same bytes."""
    minutes: float = 10.0
    """Minutes of speech to train on, more than 0."""
    held_out_minutes: float | None = None
    """Minutes of speech that are held out. By default about two minutes."""
    size_px: int = 192
    """Side of the clips' frames, in pixels."""
    crop_px: int = 64
    """Side of the face crops in the video shards, in pixels."""
    identities: int = 48
    """Number of people to train on, at least 1; two more people are held out."""
    stills: Path | None = None
    """Folder of still faces, photographs or paintings (.jpg, .png). Every second person is then an animation of
    one of these stills, and every sixth still is held out. By default only drawn people are trained on."""
    speech: Path | None = None
    """Folder of recordings that the people speak. By default they speak with a synthetic voice."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model that computes the audio features. By default the features are log-mel energies."""
    workers: int | None = None
    """Number of processes, at least 1. By default one per core."""


def main() -> int:
    args = tyro.cli(MakeDemoCorpus, description=__doc__)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults write {args.minutes:g} minutes of speech to {args.output}")
    corpus = make_demo_corpus(**vars(args), progress=lambda line: print(f"\r{line}", end="", flush=True))
    for split, count in corpus.clips.items():
        print(f"\n{split}: {count} clips, {corpus.minutes[split]:.1f} min", end="")
    print(f"\n{corpus.folder} in {corpus.seconds:.0f} s; shards in {corpus.shards} and {corpus.videos}")
    return 0


if __name__ == "__main__":
    run_command(main)
