"""Parse PTX text into instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


@dataclass(frozen=True, slots=True)
class Instruction:
    """`@guard parts operands`; `parts` is the mnemonic split at its points, `guard` empty or a predicate.

    A program's own shared memory is always called `shared` here: Triton 3.8 writes its full name, `shared::cta`.
    """

    guard: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel's parameters by name, in order, its instructions, and the places of its labels."""

    parameters: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


@cache
def parse(ptx: str) -> Program:
    """Parse the only kernel in `ptx`; the result is cached."""
    head, body = ptx[ptx.index(".visible .entry") :].split("\n{", 1)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    # Labels between braces are known there only: their names get the number of the braces.
    scopes, scope = 0, ""
    for line in body.rpartition("\n}")[0].splitlines():
        for statement in line.partition("//")[0].split(";"):
            text = " ".join(statement.split())
            if text == "{":
                scopes += 1
                scope = f"@{scopes}"
            elif text == "}":
                scope = ""
            elif text.endswith(":"):
                labels[text[:-1] + scope] = len(instructions)
            elif text and not text.startswith("."):
                found = _instruction(text)
                if found.parts[0] == "bra" and found.operands[0] + scope in labels:
                    found = replace(found, operands=(found.operands[0] + scope,))
                instructions.append(found)
    return Program(tuple(re.findall(r"\w+_param_\d+", head)), tuple(instructions), labels)


def _instruction(text: str) -> Instruction:
    guard, rest = "", text
    if text.startswith("@"):
        guard, _, rest = text[1:].partition(" ")
    mnemonic, _, operands = rest.partition(" ")
    parts = tuple("shared" if part == "shared::cta" else part for part in mnemonic.split("."))
    return Instruction(guard, parts, tuple(_OPERAND.findall(operands)), text)


def listed(operand: str) -> list[str]:
    """The registers of `{a, b}`, or of `a`."""
    return [name.strip() for name in operand.strip("{}").split(",")]
