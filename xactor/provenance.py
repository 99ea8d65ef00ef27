"""What a made video says of itself, for machines to read."""

import json

from xactor import __version__

# IPTC's words for a work of which some is recorded (the sound) and some made by a trained model (the pictures).
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def ai_generated(*, made_from: str | None = None) -> dict[str, str]:
    """Metadata of an mp4: JSON in its comment, the tag that every reader shows.

    Args:
        made_from: a digest of all that the video depends on, by which it is known again.
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
    """The digest in an mp4's comment; None where there is none."""
    try:
        statement = json.loads(comment)
    except ValueError:
        return None
    return statement.get("made_from") if isinstance(statement, dict) else None
