"""How a command ends: 0 done, 2 bad input, 1 failure, 75 the same command again."""

import sys
from collections.abc import Callable, Mapping, Sequence

# EX_TEMPFAIL of sysexits.h: another process of the run was lost, and the same command goes on.
RUN_AGAIN = 75


class InputError(Exception):
    """Bad input of the user's. One line: what was expected, what came, what to do. Nothing was written."""

    status = 2


class GradeFailure(Exception):
    """A grade that *we* could not make: it invalidates what it was for, and never ends the run by itself.

    Attributes:
      kind: one lower-case word or two, joined by `_`, under which it is counted.
      counts: what happened on the way, as of `polyepo_jax.judges.Clusters.counts`.
    """

    def __init__(self, kind: str, message: str, counts: Mapping[str, float] | None = None):
        super().__init__(message)
        self.kind = kind
        self.counts = dict(counts or {})


class RunError(Exception):
    """A run that cannot go on, in one line that says why and what to do."""

    status = 1


class Interrupted(Exception):
    """The run is asked to end, and what is under way is given up; what was done before is worth a checkpoint."""


class TransientError(RunError):
    """A run that could not start for what may be over when the same command is given again."""

    status = RUN_AGAIN


def run_command(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Runs a command's `main` on the command line and exits with the status its outcome calls for.

    Args:
      main: takes the arguments without the program's name.
      arguments: those arguments; None for the process's own.
    """
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        _end(error, error.status)
    except KeyboardInterrupt as error:
        nothing_kept = "interrupted before there was anything to save; the same command starts again"
        print(str(error) or nothing_kept, file=sys.stderr)
        _end(error, 130)
    except Exception as error:
        if _part is None:
            raise
        _end(error, 1)


_part: Callable[[BaseException, int], None] | None = None


def part_with(part: Callable[[BaseException, int], None]) -> None:
    """Makes `part` what ends this process after an error, with the status it is given: others may have to know."""
    global _part
    _part = part


def _end(error: BaseException, status: int) -> None:
    if _part is not None:
        _part(error, status)
    sys.exit(status)


def warn_on_stderr(line: str) -> None:
    """For what must be seen before there is a progress line."""
    print(line, file=sys.stderr)
