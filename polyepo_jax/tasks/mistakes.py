"""Demonstrations that are wrong: a base model is broad and often wrong, and leaves something to be corrected."""

import numpy as np


def with_wrong_digit(text: str, rng: np.random.Generator) -> str:
    """The text with one digit changed of what follows its last "="."""
    start = text.rindex("=") + 1
    position = int(rng.choice([i for i in range(start, len(text)) if text[i].isdigit()]))
    digit = (int(text[position]) + int(rng.integers(1, 10))) % 10
    return f"{text[:position]}{digit}{text[position + 1 :]}"
