"""Flags of the commands that ask language models, and the prompts and costs printed before they ask."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headspan.cli.numbers import ABOVE_ZERO, FROM_0, FROM_1
from headspan.cli.shared_flags import Flags
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError, counted
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, AnswerCache, Question
from headspan.llm.endpoint import OPENAI_URL, PARALLEL, TIMEOUT_SECONDS, Endpoint

# argparse gets no defaults, so a flag that was given can be refused where it has no effect: without a model.
_DEFAULTS = {"parallel": PARALLEL, "timeout": TIMEOUT_SECONDS, "answer_tokens": ANSWER_TOKENS}
_FLAGS = ("base_url", "api_key", *_DEFAULTS, "max_calls", "max_tokens", "cache", "price", "dry_run")


def asking_group(command: argparse.ArgumentParser) -> Flags:
    """The group of a command's flags about language models."""
    return command.add_argument_group("language models", "any endpoint with OpenAI's chat completions")


def add_asking_flags(command: argparse.ArgumentParser, group: Flags) -> None:
    """Add the flags that every command has that asks language models."""
    command.set_defaults(kept="answers")
    group.add_argument("--base-url", metavar="URL", help=f"the endpoint (default: OPENAI_BASE_URL, else {OPENAI_URL})")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help="the endpoint's key (default: OPENAI_API_KEY, which is safer: other users can read command lines)",
    )
    group.add_argument("--parallel", type=FROM_1, metavar="N", help=f"requests at the same time (default: {PARALLEL})")
    group.add_argument(
        "--timeout",
        type=ABOVE_ZERO,
        metavar="SECONDS",
        help=f"seconds to wait for a reply (default: {TIMEOUT_SECONDS:g})",
    )
    group.add_argument(
        "--answer-tokens", type=FROM_1, metavar="N", help=f"tokens that an answer may have (default: {ANSWER_TOKENS})"
    )
    group.add_argument(
        "--max-calls", type=FROM_0, metavar="N", help="calls that this command may make (default: the printed budget)"
    )
    group.add_argument(
        "--max-tokens",
        type=FROM_0,
        metavar="N",
        help="tokens of prompts and answers that this command may use (default: the printed budget)",
    )
    group.add_argument(
        "--cache", metavar="FOLDER", help="folder of stored answers (default: headspan/answers in the user's cache)"
    )
    group.add_argument(
        "--price",
        metavar="IN,OUT",
        help="dollars per million tokens of prompts and of answers, to print the cost in dollars too",
    )
    group.add_argument("--dry-run", action="store_true", default=None, help="print prompts and cost, and send nothing")


def refuse_asking_flags(flags: argparse.Namespace, wanted: str, *others: str) -> None:
    """Raise SettingsError if a flag is given that has no effect without a language model."""
    for name in (*_FLAGS, *others):
        if getattr(flags, name, None) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{flag} has no effect without a language model; name one with {wanted}")


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
    return found


def go_ahead(asker: Asker, questions: Sequence[Question], flags: argparse.Namespace) -> bool:
    """Print what asking `questions` costs; returns False with `--dry-run`, which ends there."""
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
        f"{counted(plan.questions, 'question')} to {models} at {asker.endpoint.shown_url}: {plan.cached:,} answered "
        f"before, {len(plan.open):,} to ask",
    )
    if plan.elsewhere:
        out(f"  some stored answers are from {', '.join(plan.elsewhere)}")
    if plan.open:
        calls, tokens = asker.limits(plan)
        out(
            f"  about {plan.prompt_tokens:,} tokens of prompts and at most {plan.answer_tokens:,} of answers"
            + (f", ${_money(plan.prompt_tokens, plan.answer_tokens, *price):,.2f} at most" if price else ""),
        )
        out(
            f"  budget: {counted(calls, 'call')} and {counted(tokens, 'token')}, retries included (each question "
            f"reserves up to {plan.max_tokens // len(plan.open):,} tokens until its reply arrives)",
        )
    if flags.dry_run:
        say("nothing was sent (--dry-run)")
    return not flags.dry_run


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        into, out = map(float, text.split(","))
    except ValueError:
        raise SettingsError(
            f"--price {text}: write dollars per million tokens of prompts and of answers, as in 2.50,10"
        ) from None
    return into, out


def _money(prompt_tokens: int, answer_tokens: int, into: float, out: float) -> float:
    return (prompt_tokens * into + answer_tokens * out) / 1e6


def print_spent(asker: Asker) -> None:
    """Print how many calls were made and how many tokens they used."""
    say(f"made {counted(asker.budget.calls, 'call')} and used {counted(asker.budget.tokens, 'token')}")
