"""What may be spent: calls and tokens, reserved before a request is sent and settled when its reply says the use.

Reservations are upper bounds (a token is a byte at least), so that the budget holds whatever the tokenizer, as long
as the endpoint keeps to an answer's limit of tokens. A request that would not fit waits for others to settle, and is
refused when none is under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class BudgetSpentError(Exception):
    """No room for another request."""


class Budget:
    """Calls and tokens of one command, counted by several threads."""

    def __init__(self) -> None:
        self.max_calls = 0
        self.max_tokens = 0
        self.calls = 0
        self.tokens = 0
        self._reserved = 0
        self._changed = threading.Condition()

    def allow(self, max_calls: int, max_tokens: int) -> None:
        """Set how much may be spent in all."""
        with self._changed:
            self.max_calls, self.max_tokens = max_calls, max_tokens

    def reserve(self, tokens: int, stopped: Callable[[], bool]) -> None:
        """Take a call and room for `tokens`; BudgetSpentError where there is none."""
        with self._changed:
            while self.tokens + self._reserved + tokens > self.max_tokens and self._reserved and not stopped():
                # Only what is under way can make room; asked again now and then, since stopping tells nobody.
                self._changed.wait(0.1)
            if self.calls >= self.max_calls or self.tokens + self._reserved + tokens > self.max_tokens:
                raise BudgetSpentError
            self.calls += 1
            self._reserved += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Give back a reservation, of which `used` tokens were spent."""
        with self._changed:
            self._reserved -= reserved
            self.tokens += used
            self._changed.notify_all()
