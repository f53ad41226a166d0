"""A budget of calls and tokens: reserved before each request, settled when the reply reports usage.

Reservations are upper bounds (a token has at least one byte), so the budget holds for every tokenizer if the endpoint
respects the limit of tokens per answer. A request that does not fit waits for others to settle, and is refused when no
other is in progress.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class BudgetSpentError(Exception):
    """The budget has no room for another request."""


class Budget:
    """Calls and tokens of one Asker, counted by several threads."""

    def __init__(self) -> None:
        self.max_calls = 0
        self.max_tokens = 0
        self.calls = 0
        self.tokens = 0
        self._reserved = 0
        self._changed = threading.Condition()

    def allow(self, max_calls: int, max_tokens: int) -> None:
        """Set the totals that may be spent."""
        with self._changed:
            self.max_calls, self.max_tokens = max_calls, max_tokens

    def reserve(self, tokens: int, stopped: Callable[[], bool]) -> None:
        """Reserve a call and `tokens`, waiting for other requests if need be. Raises BudgetSpentError without room."""
        with self._changed:
            while self.tokens + self._reserved + tokens > self.max_tokens and self._reserved and not stopped():
                # Requests in progress may free tokens. The timeout is for `stopped`, which does not notify.
                self._changed.wait(0.1)
            if self.calls >= self.max_calls or self.tokens + self._reserved + tokens > self.max_tokens:
                raise BudgetSpentError
            self.calls += 1
            self._reserved += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Replace a reservation by the `used` tokens that were spent."""
        with self._changed:
            self._reserved -= reserved
            self.tokens += used
            self._changed.notify_all()
