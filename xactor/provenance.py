"""Write and read the machine-readable metadata of generated videos."""

import json

from xactor import __version__

# IPTC's term for a work of which one part is recorded (the sound) and one is made by a trained model (the pictures).
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def ai_generated(*, made_from: str | None = None) -> dict[str, str]:
    """Return mp4 metadata which says that the video is AI-generated: JSON in the comment tag, which every reader shows.

    Args:
        made_from: Digest of everything that the video depends on. A later run compares digests to recognise a finished
            video.
    """
    statement: dict[str, object] = {
        "ai_generated": True,
        "digital_source_type": _SOURCE_TYPE,
        "generator": f"xactor {__version__}",
    }
    if made_from is not None:
        statement["made_from"] = made_from
    return {"comment": json.dumps(statement)}


def made_from(comment: str) -> str | None:
    """Return the digest that `ai_generated` wrote to an mp4's comment tag, or None if there is none."""
    try:
        statement = json.loads(comment)
    # Deeply nested JSON raises a RecursionError.
    except (ValueError, RecursionError):
        return None
    return statement.get("made_from") if isinstance(statement, dict) else None
