"""Write manifests for tests of dubbing."""

import json
from pathlib import Path


def write_manifest(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)
