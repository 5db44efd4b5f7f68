"""Runs that take seconds: the polynomial task with a model far too small for it."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from unittest import mock

from polyepo_jax.config import AlgorithmConfig, Config, EvaluationConfig, LoggingConfig, SFTConfig
from polyepo_jax.model import ModelConfig
from polyepo_jax.pods import peers
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.tasks import Polynomial

MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


@dataclasses.dataclass(frozen=True)
class EasyPolynomial(Polynomial):
    """Rewards any response with an even number of characters, so that an untrained model gets both rewards."""

    def verify(self, problem, response):
        return float(len(response) % 2 == 0)

    def cluster(self, problem, responses):
        return [ord(response[0]) for response in responses]


def signal_itself(number):
    """Sends this process a signal, and returns when the run that it is in knows: a thread hears it, in its own time."""
    heard = threading.Event()

    def request_stop(original=peers.request_stop):
        original()
        heard.set()

    with mock.patch.object(peers, "request_stop", request_stop):
        os.kill(os.getpid(), number)
        assert heard.wait(60)


@dataclasses.dataclass(frozen=True)
class SignalsItself(EasyPolynomial):
    """Sends this process a signal when the clusterer is called for the `at`-th time, four times a step; once a file."""

    marker: str = ""
    at: int = 10
    number: int = signal.SIGTERM

    def cluster(self, problem, responses):
        path = Path(self.marker)
        calls = int(path.read_text()) + 1 if path.exists() else 1
        path.write_text(str(calls))
        if calls == self.at:
            self.interrupt()
        return super().cluster(problem, responses)

    def interrupt(self):
        signal_itself(self.number)


SHARED = {
    "model": MODEL,
    "max_steps": 6,
    "save_interval_steps": 2,
    "prompts_per_step": 4,
    "max_prompt_length": 6,
    "max_completion_length": 25,
    "learning_rate": 1e-2,
    "evaluation": EvaluationConfig(num_samples=4, num_prompts=8, num_validation_prompts=4, max_rows=16),
    "logging": LoggingConfig(tensorboard=False, samples_interval_steps=1),
}


def sft_config(**changes) -> SFTConfig:
    # Rows that eight devices divide; a set-RL step has 4 * 4.
    return SFTConfig(**(SHARED | {"task": Polynomial(), "prompts_per_step": 8} | changes))


def rl_config(**changes) -> Config:
    defaults = {
        "task": EasyPolynomial(),
        "num_generations": 4,
        "max_completion_length": 8,
        "algorithm": AlgorithmConfig(advantage=SetAdvantage(Polychromic(set_size=2))),
    }
    return Config(**(SHARED | defaults | changes))


# What depends on the clock or the machine.
UNREPRODUCIBLE = ("time/", "throughput/", "memory/", "judge/latency", "judge/exposed")


def metrics_of(directory: Path) -> list[dict]:
    """The reproducible part of metrics.jsonl."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(UNREPRODUCIBLE)} for line in lines]
