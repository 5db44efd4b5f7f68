"""Which judge groups the generations of a prompt, and what its failures lead to."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who says which responses to a problem follow the same strategy, and what becomes of a failure.

    Attributes:
      clusterer: HTTPJudge, MeshJudge, Answers or Rules of polyepo_jax.judges, or a function (problem, responses) ->
        ids of your own; None for the task's own.
      on_failure: what becomes of a group whose judge failed. "drop": no gradient; "answers": the task clusters it,
        tasks in mathematics by final answers; "stop": the run ends with a checkpoint.
      max_failure_frac: the run ends, with a checkpoint, when a larger share of the last judge calls failed, or of the
        last verifier calls.
      failure_window: how many calls these are.
    """

    clusterer: Any = None
    on_failure: Literal["drop", "answers", "stop"] = "drop"
    max_failure_frac: float = 0.5
    failure_window: int = 64

    def __post_init__(self):
        if not 0 <= self.max_failure_frac <= 1:
            raise ValueError(f"max_failure_frac must be in [0, 1], got {self.max_failure_frac}")
        if self.on_failure == "answers" and self.clusterer is None:
            raise ValueError(
                "on_failure = 'answers' needs a clusterer: a task that clusters by itself has no other way"
            )
        if isinstance(self.clusterer, type):
            raise ValueError(f"clusterer must be an instance, got the class {self.clusterer.__name__}: call it")
        if self.failure_window < 1:
            raise ValueError(f"failure_window must be at least 1, got {self.failure_window}")
        offered = callable(self.clusterer), hasattr(self.clusterer, "open"), hasattr(self.clusterer, "cluster")
        if self.clusterer is not None and not any(offered):
            raise ValueError(
                "clusterer must be a judge of polyepo_jax.judges or a function (problem, responses) -> ids, got "
                f"{self.clusterer!r}"
            )


# For what is measured rather than trained on: no share of failures is above 1, so none ends it.
BY_THE_TASK = JudgeConfig(max_failure_frac=1.0)
