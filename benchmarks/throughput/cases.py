"""What is measured: models, batches and the arithmetic that each of them needs. No package but the standard library."""

import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Model:
    """A Qwen3 model with random weights in float32, tied embeddings and rope_theta 1e6."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def layer_weights(self) -> int:
        """Elements of a layer's matrices."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    def flops(self, tokens: int, scored: int, context: float) -> float:
        """Of a forward pass over `tokens`, of which `scored` have logits, each looking at `context` on average."""
        attention = 4 * self.num_attention_heads * self.head_dim * context
        return tokens * self.num_hidden_layers * (2 * self.layer_weights + attention) + (
            2 * scored * self.hidden_size * self.vocab_size
        )


MODELS = {
    "tiny": Model(128, 4, 4, 2, 32, 384, 512),
    "small": Model(512, 8, 8, 4, 64, 1536, 32768),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement.

    name: in the table. kind: "rollout" or "update". model: of MODELS.
    prompts, generations: P and N. prompt_length, completion_length: tokens, all real.
    mixed: completion lengths are geometric with a quarter of completion_length as their mean, and cut there.
    max_rows: rollouts at a time; 0 for all.
    micro_rows: rows whose activations an update holds at a time, where the contestant knows that.
    repeats: timed runs, after one that is not.
    """

    name: str
    kind: str
    model: str
    prompts: int = 8
    generations: int = 8
    prompt_length: int = 64
    completion_length: int = 128
    mixed: bool = False
    max_rows: int = 0
    micro_rows: int = 4
    repeats: int = 3

    @property
    def rows(self) -> int:
        """P * N."""
        return self.prompts * self.generations

    @property
    def stop_share(self) -> float:
        """Share of the vocabulary that ends a completion: a random model hits it as often at every step."""
        return 4 / self.completion_length if self.mixed else 0.0

    def flops(self, tokens: float) -> float:
        """Of the whole case, where completions have so many tokens in all."""
        model, length = MODELS[self.model], tokens / self.rows
        if self.kind == "rollout":
            prefill = model.flops(self.prompts * self.prompt_length, 0, self.prompt_length / 2)
            return prefill + model.flops(round(tokens), round(tokens), self.prompt_length + length / 2)
        all_tokens = self.rows * self.prompt_length + tokens
        return 3 * model.flops(round(all_tokens), round(tokens), (self.prompt_length + length) / 2)


CASES = (
    Case("rollout tiny", "rollout", "tiny", repeats=5),
    Case("rollout small", "rollout", "small"),
    Case("rollout prompt 512", "rollout", "small", 4, 16, 512, 64, repeats=2),
    Case("rollout mixed", "rollout", "tiny", 256, 8, 64, 128, mixed=True, max_rows=64, repeats=2),
    Case("update tiny", "update", "tiny", micro_rows=16, repeats=5),
    Case("update small", "update", "small", repeats=2),
    Case("update mixed", "update", "small", mixed=True, repeats=2),
)


def case_of(text: str) -> Case:
    """A case as it is handed to a worker."""
    return Case(**json.loads(text))


def lengths(case: Case) -> list[int]:
    """Completion lengths of an update's rows: the same for all contestants."""
    import random

    if not case.mixed:
        return [case.completion_length] * case.rows
    generator, share = random.Random(0), case.stop_share
    return [
        next((t for t in range(1, case.completion_length) if generator.random() < share), case.completion_length)
        for _ in range(case.rows)
    ]


def report(case: Case, run: Callable[[int], float], **more: Callable[[], object]) -> None:
    """Times a contestant and says so in one line of JSON.

    Args:
      run: takes the number of the run, the first of which is not timed, and returns the tokens that count: those of the
        completions of a rollout, those of prompts and completions of an update.
      more: what else to say, asked for in the end.
    """
    run(0)
    rates, tokens = [], []
    for number in range(1, case.repeats + 1):
        started = time.perf_counter()
        tokens.append(run(number))
        rates.append(tokens[-1] / (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"tokens_per_s": statistics.median(rates), "rates": rates, "tokens": tokens[-1], "peak_bytes": peak}
    print(json.dumps(result | {name: value() for name, value in more.items()}))
    sys.stdout.flush()
