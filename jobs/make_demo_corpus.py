"""Makes the demo corpus: talking clips with known ground truth, and the shards of both stages from them.

    ray job submit --working-dir . -- python jobs/make_demo_corpus.py --output /shared/demo/corpus

Also plain: `python jobs/make_demo_corpus.py`. Needs no cluster: it works with all cores of the machine it is on.
"""

import _checkout  # noqa: F401

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from xactor_platform.demo_corpus.corpus import make_demo_corpus


@dataclass(frozen=True, kw_only=True)
class Args:
    """The demo corpus. No arguments: ten minutes of talk in demo/corpus."""

    output: Path = Path("demo/corpus")
    """Folder to write: clips/, videos/, shards/ and audio_encoder/."""
    seed: int = 0
    """The same seed gives the same bytes."""
    minutes: float = 10.0
    """Minutes of talk to train on; about two more are held out."""
    held_out_minutes: float | None = None
    """Minutes held out, if not about two."""
    size_px: int = 192
    """The clips' side."""
    crop_px: int = 64
    """The face crops' side in the video shards."""
    identities: int = 48
    """People to train on; two more are held out."""
    speech: Path | None = None
    """A folder of recordings to speak instead of the synthetic voice."""
    audio_encoder: Path | None = None
    """Folder of a Wav2Vec2 model; log-mel features without it."""
    workers: int | None = None
    """Processes; one a core if not given."""


def main() -> int:
    args = tyro.cli(Args)
    if len(sys.argv) == 1:
        print(f"no arguments: the demo's defaults, {args.minutes:g} minutes into {args.output}")
    try:
        corpus = make_demo_corpus(**vars(args), progress=lambda line: print(f"\r{line}", end="", flush=True))
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        print(f"make_demo_corpus: {error}", file=sys.stderr)
        return 2
    for split, count in corpus.clips.items():
        print(f"\n{split}: {count} clips, {corpus.minutes[split]:.1f} min", end="")
    print(f"\n{corpus.folder} in {corpus.seconds:.0f} s; shards in {corpus.shards} and {corpus.videos}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
