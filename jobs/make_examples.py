"""Make the portraits and recordings that the service's web page offers as examples: drawn people and a synthetic voice.

    python jobs/make_examples.py

No preset trains on these people, and no corpus has these sentences.
"""

import _checkout  # noqa: F401

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import tyro
from PIL import Image

from xactor.controls import CONTROL_COUNT
from xactor.rates import SAMPLE_RATE_HZ
from xactor_platform.demo_corpus.identity import render_frame, training_identities
from xactor_platform.demo_corpus.speech import Synthesiser, Voice

# Index of each drawn person. The presets train only on people with smaller indices.
PORTRAITS = {"man-with-glasses": 83, "woman-with-black-hair": 84, "man-with-grey-hair": 85}
# Text, factor of the pitch, and arousal, which is 0 for a weary and 1 for a very excited voice. No corpus contains the
# sentences.
RECORDINGS = {
    "a-quiet-story": ("Maybe the river will be open by morning, and then we can go home.", 1.0, 0.2),
    "good-news": ("Come and see! Both boats are back, and all of them are singing!", 1.12, 0.9),
}
# Side of the portraits, in pixels.
SIDE_PX = 256


@dataclass(frozen=True, kw_only=True)
class MakeExamples:
    """Draw the portraits and speak the recordings."""

    output: Path = Path("serving/xactor_serving/page/examples")
    """Folder to write."""


def main(args: MakeExamples) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    people = training_identities(1 + max(PORTRAITS.values()), [])
    for name, number in PORTRAITS.items():
        picture = render_frame(people[number], np.zeros(CONTROL_COUNT, np.float32), SIDE_PX)
        Image.fromarray(picture).save(args.output / f"{name}.png", optimize=True)
    synthesiser = Synthesiser()
    for name, (text, pitch, arousal) in RECORDINGS.items():
        samples = synthesiser.say(text, Voice(shift=pitch), arousal)
        # A quarter of a second before and after the speech.
        silence = np.zeros(SAMPLE_RATE_HZ // 4, np.float32)
        write_sound(args.output / f"{name}.m4a", np.concatenate([silence, samples, silence]))


def write_sound(path: Path, samples: np.ndarray) -> None:
    """Write sound as AAC to an .m4a file. The samples are float32 [N], mono, 16 kHz."""
    # `ipod` is FFmpeg's name of the .m4a format.
    with av.open(f"file:{path}", "w", format="ipod") as container:
        stream = container.add_stream("aac", SAMPLE_RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])


if __name__ == "__main__":
    main(tyro.cli(MakeExamples, description=__doc__))
