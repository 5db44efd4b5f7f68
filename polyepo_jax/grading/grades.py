"""Texts of rollouts, and the grades of prompts with what went wrong: put together, and passed between processes."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.types import Grades, Rollouts


def decode(tokenizer: Tokenizer, rollouts: Rollouts) -> list[list[str]]:
    """The text of each generation, its end token included: lists [P][N]."""
    tokens_PNT, mask_PNT = np.asarray(rollouts.tokens_PNT), np.asarray(rollouts.completion_mask_PNT)
    return [
        [tokenizer.decode(row[mask].tolist()) for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in zip(tokens_PNT, mask_PNT, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Grading:
    """Grades of one or several prompts, with what went wrong.

    grades: NumPy arrays.
    failures: one line for each failed verifier call and each failed judge call.
    counts: under the names they are logged by; those of several gradings add up.
    latencies_s: seconds that each judge call took.
    """

    grades: Grades
    failures: tuple[str, ...]
    counts: Mapping[str, float]
    latencies_s: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """What another process needs to have it too."""
        fields = ("rewards_PN", "clusters_PN", "valid_PN")
        grades = {name: np.asarray(getattr(self.grades, name)).tolist() for name in fields}
        return {**grades, "failures": self.failures, "counts": dict(self.counts), "latencies_s": self.latencies_s}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Grading":
        """Of `to_json`."""
        dtypes = {"rewards_PN": np.float32, "clusters_PN": np.int32, "valid_PN": bool}
        arrays = [np.array(value[name], dtype) for name, dtype in dtypes.items()]
        grades = Grades(*arrays)  # type: ignore[arg-type]
        return cls(grades, tuple(value["failures"]), value["counts"], tuple(value["latencies_s"]))

    def metrics(self) -> dict[str, float]:
        """Shares of failed calls, seconds of a judge call, and the counts."""

        def num_failed(caller: str) -> float:
            return sum(count for name, count in self.counts.items() if name.startswith(f"{caller}/failures/"))

        return {
            "judge/failure_frac": num_failed("judge") / len(self.latencies_s),
            "judge/latency_s": float(np.mean(self.latencies_s)),
            "judge/latency_max_s": max(self.latencies_s),
            "verifier/failure_frac": num_failed("verifier") / np.size(self.grades.rewards_PN),
            **self.counts,
        }


def add_counts(gradings: Sequence[Grading]) -> dict[str, float]:
    """The counts of several gradings, added up."""
    counts: collections.Counter[str] = collections.Counter()
    for grading in gradings:
        counts.update(grading.counts)  # unlike +, keeps zeros
    return dict(counts)


def join(gradings: Sequence[Grading]) -> Grading:
    """The gradings of successive prompts in one; all have equally many responses."""
    fields = (
        np.concatenate([getattr(grading.grades, name) for grading in gradings])
        for name in ("rewards_PN", "clusters_PN", "valid_PN")
    )
    return Grading(
        Grades(*fields),  # type: ignore[arg-type]
        tuple(line for grading in gradings for line in grading.failures),
        add_counts(gradings),
        tuple(seconds for grading in gradings for seconds in grading.latencies_s),
    )
