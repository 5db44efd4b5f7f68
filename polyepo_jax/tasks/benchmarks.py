r"""Published sets of mathematical problems, as they are on the Hugging Face hub.

A copy of your own is read in place of the hub's by `dataclasses.replace(AIME_2025, path="aime25.jsonl")`, or on the
command line by `--task.train.path FILE`. Copies from elsewhere may name their fields differently.
"""

import dataclasses
import difflib
import functools
import re

from polyepo_jax.rewards.answers import boxed
from polyepo_jax.tasks.dataset import Dataset, name_of


def after_hashes(solution: str) -> str:
    """What follows the last `####` of a solution of GSM8K's; empty if nothing does."""
    return solution.rpartition("####")[2].strip() if "####" in solution else ""


def last_boxed(solution: str) -> str:
    r"""What the last \boxed{} of a worked solution holds; empty without one."""
    return boxed(solution) or ""


# A set whose fields are known from code that reads it, not from the data.
_unseen = functools.partial(Dataset, fields_seen=False)

# For training: arXiv:2604.17654 trains on it. Its rows also have a `difficulty`, how often a 7B model solves them.
POLARIS_53K = Dataset("polaris_53k", hub="POLARIS-Project/Polaris-Dataset-53K", split="train")

# For evaluation. MathArena calls its only split `train`.
GSM8K = Dataset("gsm8k", hub="openai/gsm8k", subset="main", problem="question", extract=after_hashes)
MATH_500 = _unseen("math_500", hub="HuggingFaceH4/MATH-500")
AIME_2024 = Dataset("aime_2024", hub="HuggingFaceH4/aime_2024", split="train")
AIME_2025 = _unseen("aime_2025", hub="MathArena/aime_2025", split="train")
AIME_2026 = _unseen("aime_2026", hub="MathArena/aime_2026", split="train")
HMMT_FEB_2025 = _unseen("hmmt_feb_2025", hub="MathArena/hmmt_feb_2025", split="train")
HMMT_NOV_2025 = _unseen("hmmt_nov_2025", hub="MathArena/hmmt_nov_2025", split="train")
BEYOND_AIME = _unseen("beyond_aime", hub="ByteDance-Seed/BeyondAIME")
# 40 problems. The copy that circulates as amc23.jsonl has `problem`, and answers like 27.0.
AMC_2023 = _unseen("amc_2023", hub="math-ai/amc23", problem="question")
# 272 problems of MIT courses. The copy that circulates as minerva.jsonl has `problem` and a worked `solution`, of which
# `extract=last_boxed` takes the final answer.
MINERVA = _unseen("minerva", hub="math-ai/minervamath", problem="question")


def _plain(name: str) -> str:
    """`MATH-500` and `math500` are `math_500`, `aime25` is `aime_2025`."""
    return re.sub("20(?=[0-9]{2}$)", "", re.sub("[^a-z0-9]", "", name.lower()))


def by_name(text: str) -> Dataset:
    """One of the sets for evaluation by its name, `math500`; or from a copy of it, `math500=FILE`; or any file, `FILE`.

    A FILE that is none of these sets has the fields `problem` and `answer`.

    Raises:
      ValueError: a name that no set has.
    """
    name, _, path = text.partition("=")
    published = [value for value in globals().values() if isinstance(value, Dataset) and value != POLARIS_53K]
    for dataset in published:
        if _plain(name) == _plain(dataset.name):
            return dataclasses.replace(dataset, path=path) if path else dataset
    if path or re.fullmatch("[a-z0-9_-]+", name.lower()):
        names = [dataset.name for dataset in published]
        close = difflib.get_close_matches(name.lower(), names, 1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no benchmark is called {name!r}: {guess}there are {', '.join(names)}, or give a file")
    return Dataset(name_of(text), path=text)
