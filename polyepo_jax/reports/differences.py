"""What differs between the configurations of runs, and which runs are one method with several seeds."""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyepo_jax.reports.runs import LABELS, Run
from polyepo_jax.reports.visible import one_line, visible

_ABSENT = "-"
_LONGEST = 120  # characters of a setting that is shown
_DEEPEST = 20


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs whose configurations differ in their seed only, evaluated alike; most methods are one run.

    label: different for each method of a report. kind: as of `Run`.
    """

    label: str
    kind: str
    runs: tuple[Run, ...]

    @property
    def num_seeds(self) -> int:
        return len(self.runs)

    def evaluated(self, benchmark: str) -> list[Run]:
        """The runs that were evaluated on a benchmark."""
        return [run for run in self.runs if benchmark in run.benchmarks]


def settings_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration under dotted keys; lists, and what is nested deeper than in any of ours, are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value and prefix.count(".") < _DEEPEST
        flat |= settings_of(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _written(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return one_line(text, _LONGEST)


def setting_differences(runs: Sequence[Run]) -> list[tuple[str, tuple[str, ...]]]:
    """Dotted keys whose values are not the same in all runs, with each run's value as text, in the files' order.

    A run without a configuration, and a key that a run does not have, is shown as a dash. What only one kind of run has
    is left out where these agree: a warm start has no algorithm. Fewer than two runs with a configuration differ in
    nothing.
    """
    all_settings = [settings_of(run.config) for run in runs]
    with_config = [settings for settings in all_settings if settings]
    if len(with_config) < 2:
        return []
    keys = dict.fromkeys(key for settings in with_config for key in settings)
    return [
        (key, tuple(_written(settings[key]) if key in settings else _ABSENT for settings in all_settings))
        for key in keys
        if _differs(key, with_config)
    ]


def _differs(key: str, all_settings: Sequence[dict[str, Any]]) -> bool:
    having = [settings for settings in all_settings if key in settings]
    kinds = {settings.get("class") for settings in having}
    return any(settings[key] != having[0][key] for settings in having) or any(
        key not in settings and settings.get("class") in kinds for settings in all_settings
    )


def _without_seed(path: Any, seed: Any) -> Any:
    """A path without the parts that name the seed: runs/seed1/base, runs-seed1/base and runs/1/base are runs/base."""
    if not isinstance(path, str) or not isinstance(seed, int):
        return path
    marks = re.compile(rf"(?:^|[-_.]+)(?:seed|s)?[-_.=]*0*{seed}$", re.IGNORECASE)
    # `make demo` gives seed 0 the plain name.
    return "/".join(part for part in (marks.sub("", part) for part in path.split("/")) if part)


def _has_seed(run: Run) -> bool:
    seed = run.config.get("seed")
    return isinstance(seed, int) and not isinstance(seed, bool)


def without_seed(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """How an evaluation sampled, apart from its seed."""
    return {key: value for key, value in sampling.items() if key != "seed"}


def _identity(run: Run) -> str:
    """Equal for runs that differ in their seed only and were evaluated in the same way."""
    settings = settings_of(run.config)
    seed = settings.pop("seed", None)
    if "init.run_dir" in settings:
        settings["init.run_dir"] = _without_seed(settings["init.run_dir"], seed)
    # Among other numbers of samples, other numbers of answers are found.
    samples = sorted({benchmark.num_samples for benchmark in run.benchmarks.values()})
    return json.dumps([settings, samples, run.checkpoint_step, without_seed(run.sampling)], sort_keys=True)


def _common_kind(runs: Sequence[Run]) -> str:
    """The directory name that the runs share, less what numbers the seed; "" if that is all of it."""
    names = {run.kind for run in runs}
    if len(names) == 1:
        return names.pop()
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return re.sub(r"[-_. ]*(?:seed|s)?[-_.=]*$", "", "".join(column[0] for column in letters), flags=re.IGNORECASE)


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """The runs by method, in the order of each one's first run.

    Only different seeds make runs one method: the same one twice, or none known, leaves them apart.
    """
    groups: dict[str, list[Run]] = collections.defaultdict(list)
    for i, run in enumerate(runs):
        groups[_identity(run) if _has_seed(run) else f"run {i}"].append(run)
    methods: list[Method] = []
    for group in groups.values():
        if len(group) > 1 and len({run.config["seed"] for run in group}) == len(group):
            kind = _common_kind(group) or group[0].kind
            methods.append(Method(visible(LABELS.get(kind, kind)), kind, tuple(group)))
        else:
            methods += [Method(run.label, run.kind, (run,)) for run in group]
    counts = collections.Counter(method.label for method in methods)
    methods = [m if counts[m.label] == 1 else dataclasses.replace(m, label=m.runs[0].label) for m in methods]
    if len({method.label for method in methods}) < len(methods):
        methods = [dataclasses.replace(method, label=method.runs[0].label) for method in methods]
    order = {id(run): i for i, run in enumerate(runs)}
    return sorted(methods, key=lambda method: order[id(method.runs[0])])
