"""Report the actors' time and the wall-clock time that a run took, with the pipeline's own counts."""

from dataclasses import dataclass
from typing import Any

from xactor_platform.bulk.message import StageSeconds


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Hold the counts and the times of a run."""

    figures: dict[str, Any]
    """The pipeline's own counts, such as written files, by name, as JSON values."""
    stage_s: StageSeconds
    """Seconds of actors' time, by stage."""
    wall_s: float
    """Seconds from the start of the run to its end."""

    @property
    def actor_s(self) -> float:
        """Return the seconds of actors' time of all stages together."""
        return sum(self.stage_s.values())

    def as_json(self) -> dict[str, Any]:
        """Return the content of `bill.json`: the figures, `stage_s` and `wall_s`."""
        return {**self.figures, "stage_s": self.stage_s, "wall_s": self.wall_s}

    def stages_line(self, unit: str = "actors' time") -> str:
        """Return the total seconds and the seconds of each stage, in one line for people to read.

        Args:
            unit: the kind of time that was measured, such as `threads' time`.
        """
        stages = "  ".join(f"{name} {seconds:,.1f}" for name, seconds in self.stage_s.items())
        return f"{self.actor_s:,.1f} s of {unit}, by stage: {stages}"
