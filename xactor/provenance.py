"""Machine-readable metadata of generated videos."""

import json

from xactor import __version__

# IPTC's term for a work that is recorded in part (the sound) and made by a trained model in part (the pictures).
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def ai_generated(*, made_from: str | None = None) -> dict[str, str]:
    """Return the metadata of an mp4 that says it is AI-generated: JSON in the comment, a tag that every reader shows.

    Args:
        made_from: Digest of everything that the video depends on, by which a later run recognises it.
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
    """Return the digest in an mp4's comment, or None if it has none."""
    try:
        statement = json.loads(comment)
    except ValueError:
        return None
    return statement.get("made_from") if isinstance(statement, dict) else None
