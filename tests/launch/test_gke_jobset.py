"""A run on GKE: the manifest, and what kubectl is asked."""

import shlex
import shutil
import subprocess

import yaml

from tests.launch.scripts import (
    AWKWARD,
    ELSEWHERE,
    GKE,
    GOLDEN,
    LAUNCH,
    POLARIS,
    calls,
    environment,
    launch,
    stand_in,
)


def test_the_manifest_gives_the_arguments_as_they_are(tmp_path):
    arguments = [*AWKWARD, "${NAME}", "$(NAME)", "two\nlines", "tab\t", *ELSEWHERE]
    result = launch("gke_jobset.sh", ["--dry-run", "apply", *arguments], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    job = yaml.safe_load(result.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    # Kubernetes takes $$ for $, and $(NAME) for a variable.
    args = [word.replace("$$", "\0").replace("\0", "$") for word in container["args"]]
    assert args == ["--stopped-exit-code", "75", *arguments]
    assert not [word for word in container["args"] if "$" in word.replace("$$", "")]


def test_the_manifest_restarts_what_should_be():
    jobset = yaml.safe_load((GOLDEN / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    # A policy of pod failures needs pods that do not restart; a run's processes stand or fall together.
    assert (pod["restartPolicy"], job["backoffLimit"], job["completionMode"]) == ("Never", 0, "Indexed")
    assert job["completions"] == job["parallelism"] == 4
    disruption, failure = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Count"
    assert failure["action"] == "FailJob"
    assert failure["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [1, 2]}
    assert failure["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    assert policy["rules"] == [{"name": "noRetry", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert all("value" not in e or e["name"] == "PYTHONUNBUFFERED" for e in pod["containers"][0]["env"])


def test_kubectl_gets_the_manifest_of_the_dry_run(tmp_path):
    stand_in(tmp_path, "kubectl", f"cat > {shlex.quote(str(tmp_path / 'applied'))}")
    result = launch("gke_jobset.sh", ["apply", *POLARIS], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path, "kubectl") == [["apply", "--filename=-"]]
    assert yaml.safe_load((tmp_path / "applied").read_text()) == yaml.safe_load(
        (GOLDEN / "gke_jobset.yaml").read_text()
    )


def test_deleting_a_jobset_can_be_repeated(tmp_path):
    stand_in(tmp_path, "kubectl", "exit 0")
    result = launch("gke_jobset.sh", ["delete"], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--ignore-not-found" in calls(tmp_path, "kubectl")[0]


def test_a_variable_of_the_template_that_is_not_set_is_refused(tmp_path):
    for name in ("common.sh", "gke_jobset.sh", "gke_jobset.yaml"):
        shutil.copy(LAUNCH / name, tmp_path)
    with (tmp_path / "gke_jobset.yaml").open("a") as template:
        template.write("# ${NEW_VARIABLE}\n")
    command = ["bash", str(tmp_path / "gke_jobset.sh"), "--dry-run", "apply", *ELSEWHERE]
    result = subprocess.run(command, env=environment(tmp_path, **GKE), capture_output=True, text=True)
    assert result.returncode == 2
    assert "NEW_VARIABLE is not set" in result.stderr
    assert result.stdout == ""
