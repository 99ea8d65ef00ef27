"""Write the figures of a benchmark, with the command and the environment (machine and versions) that they depend on."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path("infra/benchmarks")


def save_results(output: Path, figures: Mapping[str, Any]) -> None:
    """Write figures to a JSON file, with the command line and the environment, and print the file's path."""
    from xactor_platform.cluster.environment import environment

    results = {
        "command": " ".join(["python", f"jobs/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "environment": environment(),
        **figures,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    print(output)
