"""Where language models answer: any endpoint that speaks OpenAI's chat completions, its key, and what may be told.

The key is sent and told to nobody: it stands in no representation, no message and no file. A key is only asked
for when something is to be sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headspan.errors import LanguageModelError, SettingsError

OPENAI_URL = "https://api.openai.com/v1"
# How long a reply may take and how many requests are under way at a time, where nothing else is said.
TIMEOUT_SECONDS, PARALLEL = 120.0, 4
# The openai client wants some key even where an endpoint of one's own wants none.
NO_KEY = "none"
# Shorter keys are dummies ("ollama", "EMPTY"), and words that answers may hold.
_SECRET_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a question is sent again when the endpoint fails, and how long it waits in between."""

    attempts: int = 7
    # Doubled each time, with jitter; the endpoint's own Retry-After counts where it is longer.
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    # An endpoint that wants more than this is left alone until the next run.
    longest_retry_after_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. `parallel` requests at most are under way at the same time."""

    base_url: str = OPENAI_URL
    api_key: str = field(default="", repr=False)
    timeout_seconds: float = TIMEOUT_SECONDS
    parallel: int = PARALLEL
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.strip())
        object.__setattr__(self, "api_key", self.api_key.strip())
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # A bracket or a port that is none.
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(
                "the base URL is no http or https address; give one such as http://localhost:8000/v1 with --base-url "
                "or OPENAI_BASE_URL"
            )
        if not all("!" <= letter <= "~" for letter in self.api_key):
            raise SettingsError(
                "the API key holds a space or a letter that no key has; set OPENAI_API_KEY again, to the key alone"
            )
        if self.timeout_seconds <= 0:
            raise SettingsError(f"--timeout {self.timeout_seconds:g} is too short; give seconds above 0")
        if self.parallel < 1:
            raise SettingsError(f"--parallel {self.parallel} is too small; give at least 1")

    @classmethod
    def from_environment(
        cls,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        parallel: int = PARALLEL,
    ) -> Endpoint:
        """What is given, else `OPENAI_BASE_URL` and `OPENAI_API_KEY`, else OpenAI itself."""
        return cls(
            base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,
            api_key or os.environ.get("OPENAI_API_KEY") or "",
            timeout_seconds,
            parallel,
        )

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it: user, password, query."""
        parts = urlsplit(self.base_url)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"

    def check_key(self) -> None:
        """Raise LanguageModelError where the endpoint is known to want a key and there is none."""
        if not self.api_key and urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname:
            raise LanguageModelError(
                f"{self.shown_url}: no API key; set OPENAI_API_KEY, or name another endpoint with --base-url or "
                "OPENAI_BASE_URL"
            )

    def without_secrets(self, text: str) -> str:
        """`text` with key and password blotted out, wherever the endpoint echoed them."""
        parts = urlsplit(self.base_url)
        for secret in (self.api_key, parts.password, parts.query):
            if secret and len(secret) >= _SECRET_LENGTH:
                text = text.replace(secret, "[secret]")
        return text
