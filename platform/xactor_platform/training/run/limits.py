"""Stop a run that has too many bad samples or too many steps without an update of the weights."""

from collections.abc import Sequence

from xactor_platform.data.index import BadSample
from xactor_platform.data.plan import Step
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.train_config import StageConfig


class Limits:
    """Check the number of bad samples since the ranks started, and the number of steps without an update.

    If a number is larger than the config allows, the run is stopped. A bad sample is unusable, for example because it
    cannot be decoded. All ranks check the same numbers, so all of them stop after the same step.
    """

    def __init__(self, config: StageConfig):
        self._max_bad_fraction = config.data.max_bad_fraction
        self._max_skipped_steps = config.train.max_skipped_steps
        self._bad = self._read = 0

    def check_samples(self, bad: Sequence[BadSample], step: Step) -> None:
        """Raise TrainingStopped if too many of the samples read so far are bad.

        Args:
            bad: the bad samples of all ranks in this step.
            step: the plan of this step.
        """
        self._read += sum(len(batch.row) for batch in step.micro_batches)
        self._bad += len(bad)
        if bad and self._bad > self._max_bad_fraction * self._read:
            raise TrainingStopped(
                f"{self._bad} of {self._read} samples read so far are bad, more than data.max_bad_fraction "
                f"({self._max_bad_fraction:g}) allows; the last: {bad[-1]}"
            )

    def check_held_out(self, bad: Sequence[BadSample], samples: int) -> None:
        """Raise TrainingStopped if too many of the held-out samples are bad.

        Args:
            bad: the bad samples of all ranks in an evaluation.
            samples: number of samples that were read for it.
        """
        if bad and len(bad) > self._max_bad_fraction * samples:
            raise TrainingStopped(
                f"{len(bad)} of {samples} held-out samples are bad, more than data.max_bad_fraction "
                f"({self._max_bad_fraction:g}) allows; the last: {bad[-1]}"
            )

    def check_updates(self, step: int, skipped: int) -> None:
        """Raise TrainingStopped if too many steps made no update because a gradient was not finite.

        Args:
            step: the last step, counted from 1.
            skipped: number of such steps in the run.
        """
        if skipped > self._max_skipped_steps:
            raise TrainingStopped(
                f"{skipped} steps had a gradient that is not finite, more than train.max_skipped_steps "
                f"({self._max_skipped_steps}) allows; the last is step {step}"
            )
