"""The commands as processes: killed, misused, asked for help."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from polyepo_jax.config import Config, load
from polyepo_jax.model import init, save_hf
from tests.commands.test_train import assert_same_run
from tests.tiny import MODEL, rl_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_compilations")]


def command_line(*arguments):
    """Runs a command of the package as a user does, on one device."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )


CONFIG = """
import dataclasses
import os
import pathlib
import signal
from polyepo_jax.runs.checkpoints import Checkpoints
from polyepo_jax.runs.metric_writers import JsonLines
from tests.tiny import SignalsItself
from polyepo_jax.config import AlgorithmConfig, InitConfig, LoRA, Polychromic, SetAdvantage
from tests.tiny import MODEL, rl_config

def get_config():
    return rl_config(task=SignalsItself(marker={marker!r}, at={at}, number=signal.SIGKILL), save_interval_steps={every},
                     eval_interval_steps=3, model=dataclasses.replace(MODEL, lora={lora}), init={init},
                     algorithm=AlgorithmConfig(SetAdvantage(Polychromic(2)), staleness={staleness}))

def die_before(cls, name, time=2):
    original = getattr(cls, name)
    def dying(*arguments, **named):
        mark = pathlib.Path({marker!r} + "." + name)
        mark.write_text(mark.read_text() + "." if mark.exists() else ".")
        if len(mark.read_text()) == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(cls, name, dying)
{patch}
"""


def run_config(directory, name, *, at=-1, every=2, patch="", lora=None, init="InitConfig()", staleness=0):
    """Writes a config and runs it; the config dies where it is told to, once."""
    config = directory / f"{name}.py"
    changes = {"at": at, "every": every, "patch": patch, "lora": lora, "init": init, "staleness": staleness}
    config.write_text(CONFIG.format(marker=str(directory / f"{name}.count"), **changes))
    return command_line("polyepo_jax.train", "--config", str(config), "--run-dir", str(directory / name))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    outcome = run_config(directory, "run")
    assert outcome.returncode == 0, outcome.stderr
    return directory / "run"


@pytest.mark.parametrize(
    ("at", "every", "patch"),
    [
        (2, 1, ""),  # in step 1, before there is a checkpoint
        (18, 1, ""),  # in step 4, right after a save began
        (10**6, 2, "die_before(Checkpoints, '_seal')"),  # a complete checkpoint without a manifest
        (10**6, 2, "die_before(JsonLines, 'sync')"),  # the log written, the checkpoint not begun
        (10**6, 2, "die_before(Checkpoints, 'restore_latest', 1)"),  # the directory is there, and nothing else
        (14, 2, ""),  # while evaluating after step 3
    ],
)
def test_kill_9_and_the_same_command_give_the_undisturbed_run(undisturbed, tmp_path, at, every, patch):
    killed = run_config(tmp_path, "run", at=at, every=every, patch=patch)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run_config(tmp_path, "run", at=at, every=every, patch=patch)
    assert again.returncode == 0, again.stderr
    assert_same_run(undisturbed, tmp_path / "run", rl_config())
    assert not (tmp_path / "run" / "corrupt_checkpoints").exists()


def test_kill_9_and_the_same_command_give_the_undisturbed_run_of_adapters(tmp_path):
    save_hf(tmp_path / "model", MODEL, jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0)))
    adapted = {"lora": "LoRA(4)", "init": f"InitConfig(model_dir={str(tmp_path / 'model')!r})"}
    undisturbed = run_config(tmp_path, "undisturbed", **adapted)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = run_config(tmp_path, "run", at=18, every=1, **adapted)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run_config(tmp_path, "run", at=18, every=1, **adapted)
    assert again.returncode == 0, again.stderr
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run", load(tmp_path / "run", Config))


@pytest.mark.parametrize("staleness", [1, 3])
def test_kill_9_and_the_same_command_give_the_undisturbed_run_of_stale_rollouts(tmp_path, staleness):
    undisturbed = run_config(tmp_path, "undisturbed", staleness=staleness)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = run_config(tmp_path, "run", at=22, every=1, staleness=staleness)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run_config(tmp_path, "run", at=22, every=1, staleness=staleness)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stderr
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run", load(tmp_path / "run", Config))


def test_commands_end_with_one_line_and_status_2_on_bad_input(tmp_path):
    epo = "configs/polynomial/poly_epo.py"
    cases = [
        (["polyepo_jax.train"], "--config is missing"),
        (["polyepo_jax.train", "--config", "nowhere.py"], "nowhere.py does not exist"),
        (["polyepo_jax.train", "--config", epo, "--lerning-rate", "1"], "--lerning-rate"),
        (["polyepo_jax.sft", "--config", epo], "must return a SFTConfig, got Config"),
        (["polyepo_jax.evaluate", "--run-dir", str(tmp_path)], "is not a run directory"),
        (["polyepo_jax.evaluate", "--run-dir", "x", "--nothing"], "--nothing"),
        (["polyepo_jax.report", str(tmp_path), "--out", str(tmp_path / "out")], "expected a run directory"),
    ]
    for arguments, message in cases:
        outcome = command_line(*arguments)
        assert outcome.returncode == 2, (arguments, outcome.stderr)
        assert outcome.stdout == ""
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "sft", "evaluate", "report", "samples"])
def test_every_command_has_help(command):
    config = {"train": "poly_epo", "sft": "warm_start"}.get(command)
    arguments = [] if config is None else ["--config", f"configs/polynomial/{config}.py"]
    outcome = command_line(f"polyepo_jax.{command}", *arguments, "--help")
    assert outcome.returncode == 0, outcome.stderr
    options = {"train": "--run-dir", "sft": "--profile", "evaluate": "--num-samples", "report": "--out"}
    options |= {"samples": "--cluster"}
    assert options[command] in outcome.stdout
