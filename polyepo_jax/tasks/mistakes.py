"""Demonstrations that are wrong: a base model is broad and often wrong, and leaves something to be corrected."""

import numpy as np


def check(error_rate: float, spread: float) -> None:
    """Raises ValueError for a share of wrong demonstrations, or a spread of what they choose, that cannot be."""
    if not 0 <= error_rate <= 1:
        raise ValueError(f"error_rate must be between 0 and 1, got {error_rate}")
    if not spread > 0:
        raise ValueError(f"spread must be positive, got {spread}")


def with_wrong_digit(text: str, rng: np.random.Generator) -> str:
    """The text with one digit changed of what follows its last "="."""
    start = text.rindex("=") + 1
    position = int(rng.choice([i for i in range(start, len(text)) if text[i].isdigit()]))
    digit = (int(text[position]) + int(rng.integers(1, 10))) % 10
    return f"{text[:position]}{digit}{text[position + 1 :]}"
