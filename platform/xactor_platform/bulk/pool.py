"""Set the size of one stage's pool of actors."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Set the number of actors of one stage, and the resources of each.

    Raises:
        ValueError: the sizes contradict each other, or an actor has neither CPUs nor GPUs.
    """

    min: int = 1
    """Number of actors that start with the run, at least 1."""
    max: int = 4
    """Maximum number of actors. Ray Data adds actors while messages wait, and removes idle ones."""
    cpus: float = 0.5
    """CPUs of each actor. Fractions are allowed."""
    gpus: float = 0
    """GPUs of each actor. Fractions are allowed. Only stages that hold a model use GPUs."""

    def __post_init__(self):
        if not 1 <= self.min <= self.max:
            raise ValueError(f"a pool needs 1 <= min <= max, got {self.min}..{self.max}")
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise ValueError(
                f"a pool's actors need CPUs or GPUs, each >= 0 and one > 0, got {self.cpus:g} and {self.gpus:g}"
            )

    @property
    def min_cpus(self) -> float:
        """Return the CPUs of the pool at its smallest size."""
        return self.min * self.cpus
