"""tyro, with errors of one line."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from polyepo_jax.errors import InputError


def parse_command_line(cls: Any, arguments: Sequence[str], program: str, **options: Any) -> Any:
    """tyro.cli, with its boxed messages turned into one-line errors.

    Raises:
      InputError: what tyro would print before it exits with status 2.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(cls, args=list(arguments), prog=program, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        lines = [line.strip("│╭╮╰╯ ") for line in message.getvalue().splitlines()[1:]]
        body = []
        for line in lines:
            if set(line) <= {"─"}:
                break
            body.append(line)
        raise InputError(f"{' '.join(body)}; `{program} --help` lists what is allowed") from None
    except (ValueError, TypeError) as error:  # a dataclass refused its values
        raise InputError(str(error)) from error
