"""What the tests of the launch scripts share: stand-ins for the tools that they call.

Nothing here reaches a cloud or a cluster: `environment` puts programs of its own names before gcloud, kubectl, srun,
scancel and scontrol.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "golden" / "launch"
TOOLS = ("gcloud", "kubectl", "srun", "scancel", "scontrol")
SCRIPTS = ("local_pod.sh", "tpu_vm.sh", "gke_jobset.sh", "slurm.sbatch")
AWKWARD = ["a b", "it's", '"quoted"', "$HOME", "$(touch injected)", "back\\slash", "`touch injected`", "*", "", "a;b"]
SECRETS = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "wandb_secret", "JUDGE_API_KEY": "judge_secret"}
TPU = {"NAME": "polaris", "PROJECT": "my-project", "ZONE": "us-west4-a", "POLL_S": "0.01", "SSH_FAILURES": "3"}
GKE = {"NAME": "polaris", "IMAGE": "us-docker.pkg.dev/my-project/polyepo/polyepo:1"}
POLARIS = ["--config", "configs/math/qwen3_4b_polaris.py", "--run-dir", "gs://my-bucket/polaris"]
ELSEWHERE = ["--run-dir", "gs://my-bucket/run"]
POLYNOMIAL = ["--config", "configs/polynomial/poly_epo.py", "--task.name", "it's a name"]


def environment(folder, **variables):
    """What a script sees: no tool but the stand-ins of `folder`, and no credentials."""
    for tool in TOOLS:
        if not (folder / tool).exists():
            stand_in(folder, tool, "exit 99")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "PYTHON": sys.executable} | variables


def stand_in(folder, name, body):
    """A program that notes how it was called, in NAME.calls, and then does what `body` says."""
    calls = shlex.quote(str(folder / f"{name}.calls"))
    script = f'#!/usr/bin/env bash\nprintf "%s\\x1f" "$@" >> {calls}; echo >> {calls}\n{body}\n'
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def calls(folder, name):
    path = folder / f"{name}.calls"
    return [line.split("\x1f")[:-1] for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def launch(script, arguments, env, cwd, timeout=30):
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def until(condition, deadline_s=30):
    """Waits for a condition that another process brings about."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err
