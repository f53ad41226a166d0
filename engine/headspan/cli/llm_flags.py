"""Flags of the commands that ask language models, and what is printed before any is asked: prompts and cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError, counted
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, AnswerCache, Question
from headspan.llm.endpoint import OPENAI_URL, PARALLEL, TIMEOUT_SECONDS, Endpoint

# Each with its default, which the command line leaves out, so that a flag without a model is noticed.
_DEFAULTS = {"parallel": PARALLEL, "timeout": TIMEOUT_SECONDS, "answer_tokens": ANSWER_TOKENS}
_FLAGS = ("base_url", "api_key", *_DEFAULTS, "max_calls", "max_tokens", "cache", "price", "dry_run")


def add_asking_flags(command: argparse.ArgumentParser) -> None:
    """The flags, in a group of their own."""
    command.set_defaults(kept="answers")
    flags = command.add_argument_group("language models", "any endpoint with OpenAI's chat completions")
    flags.add_argument("--base-url", help=f"the endpoint (default: OPENAI_BASE_URL, else {OPENAI_URL})")
    flags.add_argument("--api-key", help="its key (default: OPENAI_API_KEY, which no list of processes shows)")
    flags.add_argument("--parallel", type=int, help=f"requests at a time (default: {PARALLEL})")
    flags.add_argument("--timeout", type=float, help=f"seconds that a reply may take (default: {TIMEOUT_SECONDS:g})")
    flags.add_argument("--answer-tokens", type=int, help=f"tokens that an answer may have (default: {ANSWER_TOKENS})")
    flags.add_argument("--max-calls", type=int, help="calls that this command may make (default: printed beforehand)")
    flags.add_argument("--max-tokens", type=int, help="tokens that it may use, both ways (default: printed beforehand)")
    flags.add_argument("--cache", help="folder of kept answers (default: headspan/answers in the user's cache folder)")
    flags.add_argument("--price", help="dollars a million tokens, as IN,OUT, to print the cost in money too")
    flags.add_argument("--dry-run", action="store_true", default=None, help="print prompts and cost, and ask nothing")


def overwrite_flag(command: argparse.ArgumentParser, deleted: str) -> None:
    """The flag without which a command deletes no result."""
    command.add_argument("--overwrite", action="store_true", help=f"replace the run, and delete {deleted}")


def refuse_asking_flags(flags: argparse.Namespace, wanted: str, *others: str) -> None:
    """Raise SettingsError where a flag is given that says nothing without a language model."""
    for name in (*_FLAGS, *others):
        if getattr(flags, name, None) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for language models; name one with {wanted}")


def asker_of(flags: argparse.Namespace) -> Asker:
    """The endpoint, cache and budget that the flags name."""
    endpoint = Endpoint.from_environment(
        flags.base_url, flags.api_key, value_of(flags, "timeout"), int(value_of(flags, "parallel"))
    )
    return Asker(endpoint, AnswerCache(flags.cache), flags.max_calls, flags.max_tokens)


def value_of(flags: argparse.Namespace, name: str) -> float:
    """A flag's value, or its default."""
    value = getattr(flags, name)
    found: float = _DEFAULTS[name] if value is None else value
    if name == "answer_tokens" and found < 1:
        raise SettingsError(f"--answer-tokens {found} is too small; give at least 1")
    return found


def go_ahead(asker: Asker, questions: Sequence[Question], flags: argparse.Namespace) -> bool:
    """Print what asking `questions` takes; False where that was all that was wanted (`--dry-run`)."""
    plan = asker.plan(questions)
    price = _price(flags.price)
    out = say if flags.dry_run else tell
    if flags.dry_run:
        for number, question in enumerate(plan.open, start=1):
            say(f"--- {question.model}, question {number} of {len(plan.open)}")
            for line in question.prompt.split("\n"):
                say(line)
            say()
    if not plan.questions:
        out("there is nothing to ask")
        return not flags.dry_run
    models = ", ".join(dict.fromkeys(question.model for question in questions))
    out(
        f"{counted(plan.questions, 'question')} to {models} at {asker.endpoint.shown_url}: {plan.kept:,} answered "
        f"before, {len(plan.open):,} to ask",
    )
    if plan.elsewhere:
        out(f"  kept answers came from {', '.join(plan.elsewhere)}")
    if plan.open:
        calls, tokens = asker.limits(plan)
        out(
            f"  that takes some {plan.prompt_tokens:,} tokens of prompts and at most {plan.answer_tokens:,} of answers"
            + (f", ${_money(plan.prompt_tokens, plan.answer_tokens, *price):,.2f} at most" if price else ""),
        )
        out(
            f"  budget: {counted(calls, 'call')} and {counted(tokens, 'token')}, retries counted (a question may "
            f"reserve {plan.max_tokens // len(plan.open):,} tokens until its reply says the use)",
        )
    if flags.dry_run:
        say("nothing was asked (--dry-run)")
    return not flags.dry_run


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        into, out = map(float, text.split(","))
    except ValueError:
        raise SettingsError(f"--price {text}: write dollars a million tokens, as in 2.50,10") from None
    return into, out


def _money(prompt_tokens: int, answer_tokens: int, into: float, out: float) -> float:
    return (prompt_tokens * into + answer_tokens * out) / 1e6
