"""The command `pool`, which lets a language model write the texts that TEXTSPAN chooses from."""

from __future__ import annotations

import argparse
import re

from headspan.cli.commands import Section
from headspan.cli.llm_flags import add_asking_flags, asker_of, asking_group, go_ahead, print_spent
from headspan.cli.numbers import FROM_1
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import say
from headspan.concepts.pool_writer.draft import Draft
from headspan.concepts.pool_writer.request import PoolRequest
from headspan.concepts.pool_writer.write import check_count, write_pool
from headspan.errors import SettingsError, counted
from headspan.llm.asking import Asker
from headspan.user_paths import expand_user

_LONGEST_NAME = 60


def add_pool(section: Section) -> None:
    """Add `pool`."""
    pool = section.add(
        "pool",
        _pool,
        'headspan pool --llm gpt-4o --ask "general image descriptions" --count 3500',
    )
    texts = pool.add_argument_group("texts")
    texts.add_argument("--ask", required=True, metavar="WHAT", help='what to write, as in "general image descriptions"')
    texts.add_argument("--count", type=FROM_1, metavar="N", required=True, help="how many different texts to write")
    texts.add_argument("--concepts", action="store_true", help="ask for the concept of each text too")
    texts.add_argument("--out", metavar="FILE", help="the file to write or continue (default: named after --ask)")
    asking = asking_group(pool)
    asking.add_argument("--llm", metavar="MODEL", required=True, help="the model that writes")
    asking.add_argument(
        "--per-call", type=FROM_1, metavar="N", default=20, help="texts per request (default: %(default)s)"
    )
    add_asking_flags(pool, asking)


def _pool(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    if flags.answer_tokens is not None:
        raise SettingsError("--answer-tokens does not apply to pools; ask for fewer texts per request with --per-call")
    check_count(flags.count)
    request = PoolRequest(flags.llm, flags.ask, flags.concepts, flags.per_call)
    asker = asker_of(flags)
    out = expand_user(flags.out or _named_after(flags.ask, flags.concepts))
    draft = Draft.open(out, request)
    expected = draft.expected(flags.count, asker.endpoint.parallel)
    if flags.dry_run:
        say("later prompts will list texts that exist by then; here x stands for them")
        say()
    if not go_ahead(asker, expected, flags):
        return 0
    # The printed budget is for all rounds together.
    calls, tokens = asker.limits(asker.plan(expected))
    asker = Asker(asker.endpoint, asker.cache, calls, tokens)
    written = write_pool(asker, request, flags.count, out, progress)
    print_spent(asker)
    say(f"{counted(written.texts, 'text')} by {flags.llm} at {asker.endpoint.shown_url} written to {written.path}")
    say(f"the model repeated {counted(written.repeated, 'text')}; its raw answers are in {draft.answers_path}")
    return 0


def _named_after(ask: str, concepts: bool) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", ask.lower())[:_LONGEST_NAME].strip("-")
    return f"{stem or 'pool'}.{'tsv' if concepts else 'txt'}"
