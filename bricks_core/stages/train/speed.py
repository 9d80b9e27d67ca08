"""How fast training goes, and how much of the time it waits for data.

Told in log lines and to W&B. Not in the artifact: a run that was killed and continued leaves the same artifact as one
that was not, and their times are not the same.
"""

from __future__ import annotations

import time


class Speed:
    """Times of the steps of this process, held-out evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self._all = _Span()
        self._recent = _Span()
        self._began_s = self._there_s = 0.0

    def begin(self) -> None:
        """A step asks for its data."""
        self._began_s = time.perf_counter()

    def data_is_there(self) -> None:
        """Its data has come."""
        self._there_s = time.perf_counter()

    def end(self, num_samples: int, num_tokens: int) -> None:
        """The step is done, with so many samples and tokens over all processes."""
        now_s = time.perf_counter()
        for span in (self._all, self._recent):
            span.add(now_s - self._began_s, self._there_s - self._began_s, num_samples, num_tokens)

    def recent(self) -> dict[str, float]:
        """Rates since this was last asked."""
        rates = self._recent.rates()
        self._recent = _Span()
        return rates

    def words(self) -> str:
        """The rates of all steps, for a person."""
        rates = self._all.rates()
        return (
            f"{self._all.num_steps} steps, {rates['steps_per_s']:.3g} steps/s, {rates['samples_per_s']:.3g} samples/s, "
            f"{rates['tokens_per_s']:,.0f} tokens/s, {rates['data_wait_share']:.1%} of the time waiting for data"
        )


class _Span:
    def __init__(self) -> None:
        self.num_steps = self.num_samples = self.num_tokens = 0
        self.time_s = self.waited_s = 0.0

    def add(self, time_s: float, waited_s: float, num_samples: int, num_tokens: int) -> None:
        self.num_steps += 1
        self.time_s += time_s
        self.waited_s += waited_s
        self.num_samples += num_samples
        self.num_tokens += num_tokens

    def rates(self) -> dict[str, float]:
        time_s = max(self.time_s, 1e-9)
        return {
            "steps_per_s": self.num_steps / time_s,
            "samples_per_s": self.num_samples / time_s,
            "tokens_per_s": self.num_tokens / time_s,
            "data_wait_share": self.waited_s / time_s,
        }
