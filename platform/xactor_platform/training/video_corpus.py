"""Check that the corpus of stage 1, the training of the renderer on videos, can teach motion to the renderer."""

from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.origin import LATENTS, Origin, check_fit
from xactor_platform.data.index import CONTROLS, LANDMARKS, Index
from xactor_platform.storage.weights import read_config


def check_tracks(index: Index) -> None:
    """Check the control tracks and landmarks from which a renderer with a guess network learns motion.

    Raises:
        ValueError: only some samples have them, or control tracks lack landmarks.
    """
    for member in (CONTROLS, LANDMARKS):
        count = index.having(member)
        if 0 < count < index.samples:
            raise ValueError(
                f"{index.location.uri}: {member} must be in all samples or in none, got {count} of {index.samples}"
            )
    if index.having(CONTROLS) and not index.having(LANDMARKS):
        raise ValueError(
            f"{index.location.uri}: clips with control tracks need {LANDMARKS} for a guess; make the corpus again"
        )


def check_start(index: Index, unet: str, *, trains_encoder: bool) -> None:
    """Check that a renderer to train further works with the latents from which the corpus teaches motion. Print notes.

    Args:
        index: the index of the corpus.
        unet: folder or URI of the renderer's UNet.
        trains_encoder: whether the training changes the motion encoder.

    Raises:
        ValueError: the corpus has control tracks, and the renderer works with other latents than their embedding.
    """
    config = read_config(unet)
    start, notes = Origin(unet, config.get(LATENTS)), []
    # Only a renderer with a guess network learns from control tracks.
    if config.get("guess_channels") and index.having(CONTROLS):
        notes = check_fit(LATENTS, start, Origin(index.location.uri, CONTROLS_ORIGIN))
    elif start.name == CONTROLS_ORIGIN and trains_encoder:
        notes.append(
            f"{unet} works with motion latents of {CONTROLS_ORIGIN}, and {index.location.uri} has no control tracks: "
            f"the motion encoder will make latents of its own, which need another motion model"
        )
    for note in notes:
        print(f"NOTE: {note}", flush=True)
