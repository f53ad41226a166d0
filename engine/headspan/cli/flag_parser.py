"""A parser of flags that prints through `terminal`, and suggests a flag or command for an unknown one."""

from __future__ import annotations

import argparse
import re
import sys
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from headspan.cli.terminal import ERR, OUT, tell
from headspan.errors import SettingsError
from headspan.escapes import escaped


class Parser(argparse.ArgumentParser):
    """argparse's parser; an error shows the usage of the command that it is about."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        words = args[: args.index("--")] if "--" in args else args
        if self._subparsers is not None:
            # Flags after the command's name belong to the command.
            words = list(takewhile(lambda word: word.startswith("-"), words))
        for word in words:
            if re.fullmatch(r"--[\w-]+(=.*)?|-[A-Za-z]\S*", word, re.DOTALL):
                self._refuse_unknown(word.split("=")[0] if word.startswith("--") else word[:2])
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unexpected argument {left[0]}; {self.prog} --help lists the arguments")
        return found, left

    def _refuse_unknown(self, flag: str) -> None:
        known = self._option_string_actions
        if not any(name.startswith(flag) for name in known):
            near = get_close_matches(flag, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the flags"
            self.error(f"there is no flag {flag}; {hint}")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError as error:
            # One sentence, as for other wrong settings; argparse would print the usage too.
            raise SettingsError(f"{'/'.join(action.option_strings)} {text or repr(text)} {error.message}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = get_close_matches(value, action.choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the commands"
            self.error(f"there is no command {value}; {hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        # argparse would print the usage to standard output if standard error is closed.
        ERR.write(self.format_usage())
        tell(f"{self.prog}: error: {message}")
        self.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        stream = OUT if file is sys.stdout and file is not None else ERR
        stream.write("\n".join(map(escaped, message.split("\n"))))
