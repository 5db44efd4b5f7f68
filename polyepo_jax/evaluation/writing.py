"""What becomes of an evaluation whose files cannot be written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from polyepo_jax.errors import RunError


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Ends the evaluation where what is written in its body cannot be; what was sampled is kept.

    Raises:
      RunError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = "make room or restore access, then go on with the same command"
        raise RunError(f"{directory} cannot be written ({error.strerror}): {remedy}") from error
