r"""How far a judge can be trusted: python -m polyepo_jax.audit_judge responses.jsonl --judge-url URL --judge-model NAME

Asks for the clusters of every problem's responses several times: in other orders, and with other random seeds where
the judge has any. Says how well it agrees with itself (adjusted Rand index), what share of the responses it calls
degenerate, how large its clusters are, and how often one cluster holds different final answers.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.errors import InputError, RunError, run_command, warn_on_stderr
from polyepo_jax.evaluation import adjusted_rand_index
from polyepo_jax.grading import Grading, JudgeConfig, add_counts
from polyepo_jax.runs.run_directory import write_json
from polyepo_jax.shared_by_commands.saved_responses import (
    Saved,
    SavedOptions,
    SavedRow,
    Unverified,
    check_output,
    grade_groups,
    said_of_failures,
)
from polyepo_jax.types import DEGENERATE


@dataclasses.dataclass(frozen=True)
class Arguments(SavedOptions):
    """Measure how well a judge agrees with itself.

    Attributes:
      orders: how many orders of each problem's responses it is shown.
      seeds: how many sampling seeds it is asked with, in the first of these orders.
      out: where the numbers go, as JSON; also the place of the cache of its replies.
    """

    orders: int = 4
    seeds: int = 4
    out: Path = Path("audit.json")


# Ids of each problem's responses, in the order of the file; None where the judge failed.
Clustering = list[list[int] | None]


def main(arguments: Sequence[str]) -> None:
    """The command."""
    options = parse_command_line(Arguments, arguments, "python -m polyepo_jax.audit_judge")
    with options.explained():
        _audit(options)


def _audit(options: Arguments) -> None:
    if options.orders < 2 or options.seeds < 1:
        raise InputError(f"--orders must be at least 2 and --seeds at least 1, got {options.orders}, {options.seeds}")
    check_output(options.out, options.responses)
    saved = options.read()
    # A failure is no opinion of the judge's: neither made up from answers, nor the end.
    judge = dataclasses.replace(saved.judge, on_failure="drop")
    gradings: list[Grading] = []  # of all calls, for what went wrong
    directory = options.out.absolute().parent
    by_order = cluster(saved, judge, directory, gradings, options.orders)
    by_seed = by_order[:1]
    for seeded in _other_seeds(judge, options.seeds):
        by_seed += cluster(saved, seeded, directory, gradings)
    (answers,) = cluster(saved, JudgeConfig(), None, [])
    audit = {
        "num_problems": len(saved.rows),
        "across_orders": agreement(by_order),
        "across_seeds": agreement(by_seed) if len(by_seed) > 1 else None,
        **describe(by_order, answers),
        "counts": {name: count for name, count in sorted(add_counts(gradings).items()) if count},
    }
    write_json(options.out, audit)
    failed = said_of_failures(gradings)
    if all(ids is None for clustering in by_order for ids in clustering):
        raise RunError(f"the judge clustered no problem: {failed}")
    if failed:
        warn_on_stderr(options.explain(failed))
    _print(str(options.responses), audit)


def _other_seeds(judge: JudgeConfig, num_seeds: int) -> list[JudgeConfig]:
    """The judge with each further sampling seed, as far as it has any and they change anything."""
    clusterer = judge.clusterer
    if not hasattr(clusterer, "sampling_seed") or getattr(clusterer, "temperature", 1) == 0:
        return []
    seeds = range(clusterer.sampling_seed + 1, clusterer.sampling_seed + num_seeds)
    return [dataclasses.replace(judge, clusterer=dataclasses.replace(clusterer, sampling_seed=seed)) for seed in seeds]


def cluster(
    saved: Saved, judge: JudgeConfig, directory: Path | None, gradings: list[Grading], num_orders: int = 1
) -> list[Clustering]:
    """Each problem's clusters as the judge has them, for each order of the responses; the first is as they are saved.

    Args:
      gradings: take those of all calls.

    Raises:
      RunError: it failed too often.
    """
    orders = [_order(row, seed) for seed in range(num_orders) for row in saved.rows]
    groups = [
        (row.problem, [row.responses[i] for i in order])
        for row, order in zip(saved.rows * num_orders, orders, strict=True)
    ]
    found = grade_groups(Unverified(saved.task), judge, groups, directory, "asking the judge")
    gradings += found
    clusterings: list[Clustering] = [[] for _ in range(num_orders)]
    for index, (grading, order) in enumerate(zip(found, orders, strict=True)):
        ids = np.empty(len(order), int)
        ids[order] = np.asarray(grading.grades.clusters_PN)[0]
        valid = np.all(grading.grades.valid_PN)
        clusterings[index // len(saved.rows)].append(ids.tolist() if valid else None)
    return clusterings


def _order(row: SavedRow, seed: int) -> np.ndarray:
    """A random order of the responses; with seed 0 as they are saved."""
    indices = np.arange(len(row.responses))
    return np.random.default_rng([seed, row.problem.id]).permutation(indices) if seed else indices


def agreement(clusterings: Sequence[Clustering]) -> dict[str, float] | None:
    """The adjusted Rand index of every two clusterings of a problem: its mean over pairs and problems, and the share
    of problems on which all agree.

    The degenerate count as one cluster. Problems with a lone response, on which nobody could differ, are left out. None
    where no problem has two clusterings.
    """
    means = []
    for of_problem in zip(*clusterings, strict=True):
        known = [ids for ids in of_problem if ids is not None and len(ids) > 1]
        pairs = [adjusted_rand_index(a, b) for k, a in enumerate(known) for b in known[:k]]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    if not means:
        return None
    return {
        "num_repeats": len(clusterings),
        "adjusted_rand_index": sum(means) / len(means),
        "always_the_same_frac": sum(math.isclose(mean, 1) for mean in means) / len(means),
    }


def describe(clusterings: Sequence[Clustering], answers: Clustering) -> dict[str, Any]:
    """Degenerate share, sizes of clusters, and clusters of several responses that mix final answers, over all repeats.

    A response without a final answer counts as having one of its own kind.
    """
    sizes: Counter[int] = Counter()
    num_degenerate = num_responses = num_mixed = 0
    num_clusters = []
    for clustering in clusterings:
        for ids, answer_ids in zip(clustering, answers, strict=True):
            if ids is None or answer_ids is None:
                continue
            counted = Counter(id_ for id_ in ids if id_ != DEGENERATE)
            sizes.update(counted.values())
            num_clusters.append(len(counted))
            num_responses += len(ids)
            num_degenerate += len(ids) - counted.total()
            held = {id_: {a for a, other in zip(answer_ids, ids, strict=True) if other == id_} for id_ in counted}
            num_mixed += sum(len(different) > 1 for different in held.values())
    num_shared = sum(count for size, count in sizes.items() if size > 1)
    return {
        "degenerate_frac": num_degenerate / num_responses if num_responses else None,
        "clusters_a_problem": sum(num_clusters) / len(num_clusters) if num_clusters else None,
        "cluster_sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "mixed_answers_frac": num_mixed / sizes.total() if sizes else None,
        "mixed_answers_frac_of_shared": num_mixed / num_shared if num_shared else None,
    }


def _print(name: str, audit: dict[str, Any]) -> None:
    console = rich.console.Console()

    def shown(value: float | None, form: str) -> str:
        return "none" if value is None else format(value, form)

    console.print(f"{name}: {audit['num_problems']} problems", markup=False, highlight=False, soft_wrap=True)
    table = rich.table.Table("agreement with itself", "repeats", "adjusted Rand index", "always the same")
    for what in ("across_orders", "across_seeds"):
        found = audit[what]
        if found is None:
            why = "no seed (temperature 0?)" if what == "across_seeds" else "nothing to compare"
            table.add_row(what.replace("_", " "), "", why, "")
        else:
            index, share = found["adjusted_rand_index"], found["always_the_same_frac"]
            table.add_row(what.replace("_", " "), str(found["num_repeats"]), f"{index:.3f}", f"{share:.1%}")
    console.print(table)
    console.print(
        f"degenerate {shown(audit['degenerate_frac'], '.1%')}, clusters a problem "
        f"{shown(audit['clusters_a_problem'], '.2f')}",
        highlight=False,
    )
    console.print(
        f"clusters that mix final answers {shown(audit['mixed_answers_frac'], '.1%')}, of those of several responses "
        f"{shown(audit['mixed_answers_frac_of_shared'], '.1%')}",
        highlight=False,
    )
    sizes = ", ".join(f"{count} of {size}" for size, count in audit["cluster_sizes"].items())
    console.print(f"clusters by number of responses: {sizes or 'none'}", highlight=False)
    if audit["counts"]:
        counts = ", ".join(f"{name} {count:g}" for name, count in audit["counts"].items())
        console.print(counts, markup=False, highlight=False)


if __name__ == "__main__":
    run_command(main)
