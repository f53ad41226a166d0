"""An endpoint of language models: address, API key, timeouts, and the removal of secrets from texts.

Any server with OpenAI's chat completions will do. The key is sent with requests only; it is never printed, logged
or stored. It is required only when a request is sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headspan.errors import LanguageModelError, SettingsError

OPENAI_URL = "https://api.openai.com/v1"
# Default seconds until a reply, and default number of parallel requests.
TIMEOUT_SECONDS, PARALLEL = 120.0, 4
# The openai client requires a key even for endpoints that need none.
NO_KEY = "none"
# Shorter keys are placeholders ("ollama", "EMPTY") that may also be words of an answer.
_SECRET_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is retried when the endpoint fails, and the delays between the attempts."""

    attempts: int = 7
    # The delay doubles with each attempt, with jitter. A longer Retry-After of the endpoint has precedence.
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    # If the endpoint asks for a longer delay than this, the run stops.
    longest_retry_after_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. Raises SettingsError for an address, key or number that cannot work."""

    base_url: str = OPENAI_URL
    api_key: str = field(default="", repr=False)
    # Until a reply is complete.
    timeout_seconds: float = TIMEOUT_SECONDS
    # Requests at the same time, at most.
    parallel: int = PARALLEL
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", self.base_url.strip())
        object.__setattr__(self, "api_key", self.api_key.strip())
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # `urlsplit` raises it for an invalid port or IPv6 address.
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(
                "the base URL is not an http or https address; give one such as http://localhost:8000/v1 with "
                "--base-url or OPENAI_BASE_URL"
            )
        if not all("!" <= letter <= "~" for letter in self.api_key):
            raise SettingsError(
                "the API key contains a space or a character that keys do not have; set OPENAI_API_KEY to the key alone"
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
        """The endpoint of the arguments, else of `OPENAI_BASE_URL` and `OPENAI_API_KEY`, else OpenAI's own."""
        return cls(
            base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,
            api_key or os.environ.get("OPENAI_API_KEY") or "",
            timeout_seconds,
            parallel,
        )

    @property
    def shown_url(self) -> str:
        """The address without user, password and query, which may be secret."""
        parts = urlsplit(self.base_url)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"

    def check_key(self) -> None:
        """Raise LanguageModelError if the endpoint is OpenAI's and there is no key."""
        if not self.api_key and urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname:
            raise LanguageModelError(
                f"{self.shown_url}: no API key; set OPENAI_API_KEY, or name another endpoint with --base-url or "
                "OPENAI_BASE_URL"
            )

    def without_secrets(self, text: str) -> str:
        """`text` with key, password and query replaced, in case the endpoint echoed them."""
        parts = urlsplit(self.base_url)
        for secret in (self.api_key, parts.password, parts.query):
            if secret and len(secret) >= _SECRET_LENGTH:
                text = text.replace(secret, "[secret]")
        return text
