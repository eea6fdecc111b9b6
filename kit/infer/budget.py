"""Decide when the work must stop so that a deadline is kept."""

from kit.core.clock import Deadline


class TimeBudget:
    """Decides before each step whether one more step and writing the CSV still fit before the deadline.

    A step is one batch of a network. Once the budget ran out it stays so, even if the clock is set back.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self.longest_step_s = 0.0
        self.write_s = 0.0
        self.step_began = self.deadline.now()
        self.stopped = False

    def start_step(self) -> None:
        """Time the next step from now on: loading files before it was not a step."""
        self.step_began = self.deadline.now()

    def should_stop(self) -> bool:
        """End a step, and decide whether another one fits."""
        now = self.deadline.now()
        self.longest_step_s = max(self.longest_step_s, now - self.step_began)
        self.step_began = now
        # The CSV is written once more at the end. That may take twice as long as it did before.
        needed_s = self.longest_step_s + 2 * self.write_s + 0.2
        if self.deadline.left_s() < needed_s:
            self.stopped = True
        return self.stopped
