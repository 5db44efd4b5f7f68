"""Generations in a terminal. What a model wrote is data: no markup in it is interpreted, no control character sent."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

import rich.console
import rich.text

from polyepo_jax.generations.rows import DEGENERATE, Generation
from polyepo_jax.generations.selection import sign

# Of clusters, in the order in which a prompt's generations come to them; the bar beside a response has them too.
_COLORS = ("cyan", "magenta", "yellow", "blue", "green", "bright_red", "bright_cyan", "bright_magenta", "bright_yellow")
_GUTTER = 2  # cells before a response's text


def escaped(text: str) -> rich.text.Text:
    """The text with its line breaks; other control characters, those of writing direction too, as \\x1b or \\u202e."""
    shown = rich.text.Text()
    for is_plain, run in itertools.groupby(text.replace("\t", "    "), _is_plain):
        characters = "".join(run)
        if is_plain:
            shown.append(characters)
        else:
            shown.append(characters.encode("unicode_escape").decode(), "reverse")
    return shown


def _is_plain(character: str) -> bool:
    return character == "\n" or character.isprintable() or unicodedata.category(character) == "Zs"


class Printer:
    """Writes generations under headings of their step and prompt.

    Args:
      console: to write to.
    """

    def __init__(self, console: rich.console.Console):
        self._console = console
        self._group: tuple | None = None
        self._colors: dict[int, str] = {}

    def header(self, line: str) -> None:
        """What comes first."""
        text = escaped(line)
        text.stylize("bold")
        self._write(text)

    def print(self, generation: Generation) -> None:
        """One generation; those of one prompt come one after the other."""
        if generation.group != self._group:
            self._group, self._colors = generation.group, {}
            self._write(rich.text.Text())
            title = escaped(self._title(generation).replace("\n", " "))
            title.stylize("bold")
            self._console.print(rich.text.Text("── ", "dim") + title, highlight=False)
            self._write(escaped(generation.prompt))
        self._write(rich.text.Text())
        style = self._style(generation.cluster)
        self._write(self._summary(generation, style))
        bar = rich.text.Text("┊" if generation.cluster in (None, DEGENERATE) else "┃", style)
        self._write_beside(bar, escaped(generation.response))

    @staticmethod
    def _title(generation: Generation) -> str:
        parts = (
            None if generation.step is None else f"step {generation.step}",
            generation.benchmark,
            "prompt" if generation.id is None else f"prompt {generation.id}",
        )
        return ", ".join(filter(None, parts))

    def _style(self, cluster: int | None) -> str:
        if cluster is None or cluster == DEGENERATE:
            return "dim"
        return self._colors.setdefault(cluster, _COLORS[len(self._colors) % len(_COLORS)])

    def _summary(self, generation: Generation, style: str) -> rich.text.Text:
        """Words beside colours, so that none is needed to tell."""
        reward, cluster = generation.reward, generation.cluster
        mark, color = ("? not graded", "yellow") if reward is None else ("✗ incorrect", "red")
        if reward is not None and reward > 0:
            mark, color = "✓ correct", "green"
        parts = [rich.text.Text("" if generation.sample is None else f"#{generation.sample}", "bold")]
        parts.append(rich.text.Text(f"{mark:<11}", f"bold {color}"))
        if cluster is not None:
            parts.append(rich.text.Text("∅ degenerate" if cluster == DEGENERATE else f"cluster {cluster}", style))
        if reward is not None:
            parts.append(rich.text.Text(f"reward {reward:g}"))
        if generation.advantage is not None:
            mark = {"positive": "▲", "negative": "▼"}.get(sign(generation.advantage) or "", "=")
            shown = f"{generation.advantage:+.4g}" if mark != "=" else "0"
            parts.append(rich.text.Text(f"{mark} advantage {shown}"))
        parts += [rich.text.Text(words) for words in self._size(generation)]
        return rich.text.Text("  ").join(part for part in parts if part)

    @staticmethod
    def _size(generation: Generation) -> list[str]:
        words = [] if generation.length is None else [f"{generation.length:,} tokens"]
        words += ["truncated"] if generation.truncated else []
        if generation.characters is not None:
            words.append(f"{generation.characters:,} characters, the middle left out")
        return words

    def _write_beside(self, bar: rich.text.Text, text: rich.text.Text) -> None:
        width = max(self._console.width - _GUTTER, 1)
        for line in text.wrap(self._console, width, overflow="fold") or [rich.text.Text()]:
            line.rstrip()
            self._console.print(bar, line, highlight=False, soft_wrap=True)

    def _write(self, text: rich.text.Text) -> None:
        self._console.print(text, highlight=False, overflow="fold")


class _Console(rich.console.Console):
    """A reader that has gone ends the command, as it does others."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextlib.contextmanager
def paged() -> Iterator[rich.console.Console]:
    """A console that writes to standard output; where that is a terminal, through $PAGER, or less if that is not set.

    Raises:
      BrokenPipeError: whoever read it is gone.
    """
    pager = shlex.split(os.environ.get("PAGER", "less"))
    if not sys.stdout.isatty() or not pager or shutil.which(pager[0]) is None:
        with _robust(sys.stdout):
            yield _Console(file=sys.stdout)
            sys.stdout.flush()
        return
    terminal = rich.console.Console()
    # As git does: colours pass, a page that fits is just printed, and what was shown stays on the screen.
    environment = {"LESS": "FRX"} | os.environ
    process = subprocess.Popen(pager, stdin=subprocess.PIPE, env=environment, encoding="utf-8", errors="replace")
    # An interrupt is for the pager, which stops scrolling.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert process.stdin is not None
    try:
        colored = os.path.basename(pager[0]) in ("less", "cat", "bat", "most")
        yield _Console(
            file=process.stdin,
            force_terminal=colored,
            no_color=terminal.no_color,
            color_system="standard" if colored else None,
            width=terminal.width,
        )
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _robust(stream: TextIO) -> Iterator[None]:
    """What the stream's encoding lacks is written as its number."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:  # not a file
        yield
        return
    errors = stream.errors
    reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        reconfigure(errors=errors)
