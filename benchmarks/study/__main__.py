"""The study of docs/results.md: python -m benchmarks.study [--quick] [--only TASK ...]

Runs what is not done yet, as many at once as there are cores, each on one; what was interrupted goes on. Then writes
what comes of it: small files, tables and figures. `make results` does this.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study import page, results
from benchmarks.study.runs import TASKS, Run, all_runs, quick_runs

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Cores:
    """The cores that runs are given, one each."""

    free: list[int]
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def take(self) -> int:
        """A core, by the thread whose children stay on it."""
        with self.lock:
            core = self.free.pop()
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        return core

    def give_back(self, core: int) -> None:
        """After `take`."""
        with self.lock:
            self.free.append(core)


def is_done(run: Run, folder: Path) -> bool:
    """Whether all results of the run have been written since the study began."""
    return all(results.path_of(folder, run, split).exists() for split in run.splits)


def make(run: Run, first: concurrent.futures.Future | None, runs: Path, folder: Path, cores: Cores) -> None:
    """Trains and evaluates the run, and keeps its results; what it prints goes to a file beside its directory.

    Args:
      first: of the run that this one starts from, if it is being made.

    Raises:
      subprocess.CalledProcessError: a command failed, or one of the first run.
    """
    if first is not None:
        first.result()
    core = cores.take()
    directory = run.directory(runs)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with directory.with_suffix(".log").open("a") as log:
            start = functools.partial(subprocess.run, cwd=ROOT, stdout=log, stderr=log, check=True)
            start([sys.executable, *run.training(runs)])
            for split in run.splits:
                began = time.monotonic()
                start([sys.executable, *run.evaluation(runs, split)])
                results.save(results.read_run(directory, run, split, time.monotonic() - began), folder)
    finally:
        cores.give_back(core)


def make_all(wanted: Sequence[Run], runs: Path, folder: Path) -> list[Run]:
    """Makes the runs that are not done, in their order; the ones that failed.

    Args:
      wanted: those that others start from before them, so that what is waited for is always being made.
    """
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = Cores(list(available))
    failed: list[Run] = []
    began, num_done = time.monotonic(), 0
    todo = [run for run in wanted if not is_done(run, folder)]
    print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them done before, {len(cores.free)} at a time", flush=True)
    with concurrent.futures.ThreadPoolExecutor(len(cores.free)) as pool:
        jobs: dict[Run, concurrent.futures.Future] = {}
        for run in todo:
            first = next((jobs[other] for other in jobs if run.starts_from(other)), None)
            jobs[run] = pool.submit(make, run, first, runs, folder, cores)
        run_of = {job: run for run, job in jobs.items()}
        try:
            for job in concurrent.futures.as_completed(run_of):
                run, num_done = run_of[job], num_done + 1
                what = f"[{num_done}/{len(todo)}] {run.task}, {run.method}, seed {run.seed}"
                if (error := job.exception()) is not None:
                    failed.append(run)
                    log = run.directory(runs).with_suffix(".log")
                    print(f"{what}: FAILED, see {log}: {error}", file=sys.stderr, flush=True)
                else:
                    print(f"{what}: done, {(time.monotonic() - began) / 60:.0f} min", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # else leaving begins all others first
            raise
    return failed


def main() -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="one seed of the main methods, beside the full study")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, help="these tasks")
    options = parser.parse_args()
    runs = ROOT / "runs" / ("study_quick" if options.quick else "study")
    wanted = [run for run in (quick_runs() if options.quick else all_runs()) if run.task in options.only]
    folder = runs / "results"
    impossible: list[Run] = []
    if any(run.task == "smollm" and not is_done(run, folder) for run in wanted):
        made = subprocess.run([sys.executable, "configs/smollm/make_model.py"], cwd=ROOT)
        if made.returncode:
            print("the runs of SmolLM2 are left out: its model could not be made (above)", file=sys.stderr)
            impossible = [run for run in wanted if run.task == "smollm"]
    try:
        failed = impossible + make_all([run for run in wanted if run not in impossible], runs, folder)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    out = page.write(results.load(folder), runs / "page" if options.quick else ROOT / "docs")
    print(f"wrote {out}")
    if failed:
        print(f"{len(failed)} runs failed: the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
