"""What a made video says of itself, for machines to read."""

import json

from xactor import __version__

# IPTC's words for a work of which some is recorded (the sound) and some made by a trained model (the pictures).
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def ai_generated() -> dict[str, str]:
    """Metadata of an mp4: JSON in its comment, the tag that every reader shows."""
    statement = {
        "ai_generated": True,
        "digital_source_type": _SOURCE_TYPE,
        "generator": f"xactor {__version__}",
    }
    return {"comment": json.dumps(statement)}
