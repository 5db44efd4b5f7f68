"""The list of runs: all differ from configs/TASK/METHOD.py in what stands here, and in their seed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

TASKS = ("polynomial", "polynomial_hard", "multiplication", "smollm")
BASE = "base"
METHODS = ("grpo", "poly_epo", "grpo_div", "mixture", "pass_at_n", "distinct_correct", "settled")
STEPS = {"polynomial": 400, "polynomial_hard": 300, "multiplication": 300, "smollm": 60}
# Settings were chosen on seed 0.
SEEDS = (11, 12, 13)
# What differs by task: on hard polynomials problems are many in place of seeds.
SEEDS_OF = {"polynomial": SEEDS, "polynomial_hard": SEEDS[:2], "multiplication": SEEDS, "smollm": SEEDS[:1]}
METHODS_OF = {
    "polynomial": METHODS,
    "polynomial_hard": METHODS,
    "multiplication": tuple(method for method in METHODS if method != "mixture"),
    "smollm": ("grpo", "poly_epo", "settled"),
}


def file_name(method: str) -> str:
    """A method's name without characters that are a nuisance in paths."""
    return method.replace(" = ", "").replace(",", "").replace(" ", "_").replace("λ", "lambda_")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, and the splits it is evaluated on.

    task, method: of tables. config: the file. overrides: of its fields, as on a command line. num_samples: of each
    problem in the evaluation, None for as the config says. start: the method whose run it starts from, None for none.
    """

    task: str
    method: str
    seed: int
    config: str
    overrides: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("test",)
    num_samples: int | None = None
    start: str | None = BASE

    @property
    def earlier_steps(self) -> int:
        """Of reinforcement learning before the run begins."""
        return 0 if self.start in (None, BASE) else STEPS[self.task]

    def starts_from(self, other: "Run") -> bool:
        """Whether this run needs the other one at its end."""
        return (self.task, self.start, self.seed) == (other.task, other.method, other.seed)

    def directory(self, runs: Path) -> Path:
        """The run directory below that of all runs."""
        return runs / self.task / file_name(self.method) / f"seed{self.seed}"

    def training(self, runs: Path) -> list[str]:
        """The command that makes the run, as arguments of `python`; it resumes where it was interrupted."""
        directory = str(self.directory(runs))
        if self.start is None:
            start = ["-m", "polyepo_jax.sft", "--config", self.config]
        else:
            first = runs / self.task / self.start / f"seed{self.seed}"
            start = ["-m", "polyepo_jax.train", "--config", self.config, "--init.run_dir", str(first)]
        return [*start, "--run-dir", directory, "--seed", str(self.seed), *self.overrides]

    def evaluation(self, runs: Path, split: str) -> list[str]:
        """The command that evaluates the run, likewise."""
        samples = [] if self.num_samples is None else ["--num-samples", str(self.num_samples)]
        # All problems of the validation split, of which training looks at a few.
        prompts = ["--num-prompts", "1000"] if split == "validation" else []
        directory = str(self.directory(runs))
        return ["-m", "polyepo_jax.evaluate", "--run-dir", directory, "--split", split, *samples, *prompts]


def _of_task(task: str, seed: int, methods: tuple[str, ...]) -> Iterator[Run]:
    num_samples = 256 if task == "polynomial_hard" else None
    yield Run(task, BASE, seed, f"configs/{task}/warm_start.py", num_samples=num_samples, start=None)
    # What variants are compared with.
    splits = ("test", "validation") if (task, seed) == ("polynomial", SEEDS[0]) else ("test",)
    for method in methods:
        config = f"configs/{task}/{method}.py"
        if method == "settled":
            yield Run(task, method, seed, config, (), splits, num_samples, start="poly_epo")
        else:
            yield Run(task, method, seed, config, _longer(task), splits, num_samples)


def _longer(task: str) -> tuple[str, ...]:
    """All methods train until GRPO changes no more."""
    return ("--max_steps", str(STEPS[task]))


def _variants() -> Iterator[Run]:
    """One setting changed at a time, on one base, for choices: evaluated on the validation split."""
    advantage, objective = "--algorithm.advantage.", "--algorithm.advantage.objective."
    changes = {
        **{f"grpo_div {weight}": (f"{advantage}weight", weight) for weight in WEIGHTS},
        **{f"poly_epo n = {n}": (f"{objective}set_size", n) for n in ("2", "3", "6")},
        "poly_epo N = 16": ("--num_generations", "16"),
        "poly_epo N = 16, n = 8": ("--num_generations", "16", f"{objective}set_size", "8"),
        **{f"poly_epo {k} sets drawn": (f"{advantage}num_sets", k) for k in ("4", "16")},
        "poly_epo with the indicator": (f"{objective}require_distinct", "True"),
        "poly_epo with four updates a batch": ("--algorithm.mini_batch_size", "8"),
        "settled λ = 0": (f"{objective}weights", "1", "0"),
        "settled λ = 0.05": (f"{objective}weights", "0.95", "0.05"),
        "settled λ = 0.2": (f"{objective}weights", "0.8", "0.2"),
    }
    for name, change in changes.items():
        method = name.partition(" ")[0]
        start, steps = ("poly_epo", ()) if method == "settled" else (BASE, _longer("polynomial"))
        config = f"configs/polynomial/{method}.py"
        yield Run("polynomial", name, SEEDS[0], config, (*steps, *change), ("validation",), start=start)


def _longer_runs() -> Iterator[Run]:
    """On multiplication GRPO still changes after 300 steps: how far it goes, on one base."""
    for method in ("grpo", "poly_epo"):
        config = f"configs/multiplication/{method}.py"
        yield Run("multiplication", f"{method} 600 steps", SEEDS[0], config, ("--max_steps", "600"))


WEIGHTS = ("0.1", "0.2", "1", "2")  # beside 0.5


def all_runs() -> list[Run]:
    """Those first that others start from."""
    by_seed = sorted((seed, task) for task in TASKS for seed in SEEDS_OF[task])
    runs = [run for seed, task in by_seed for run in _of_task(task, seed, METHODS_OF[task])]
    return sorted([*runs, *_variants(), *_longer_runs()], key=lambda run: run.method != BASE)


def quick_runs() -> list[Run]:
    """One seed, the tasks whose warm start takes a few minutes, and the methods that matter most."""
    tasks = ("polynomial", "polynomial_hard")
    runs = [run for task in tasks for run in _of_task(task, SEEDS[0], ("grpo", "poly_epo", "settled"))]
    return sorted(runs, key=lambda run: run.method != BASE)
