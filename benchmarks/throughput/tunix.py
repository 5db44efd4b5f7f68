"""google-tunix, its sampler and its logprobs: python -m benchmarks.throughput.tunix CASE"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl.common import compute_per_token_logps

from benchmarks.throughput.cases import MODELS, Case, case_of, lengths, report


class Numbers:
    """A tokenizer whose words are token ids."""

    def encode(self, text: str, **_: object) -> list[int]:
        """Words to ids."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: object) -> str:
        """Nobody reads it."""
        return ""

    def bos_id(self) -> int:
        """Never used."""
        return 1

    def eos_id(self) -> int:
        """Never used."""
        return 0

    def pad_id(self) -> int:
        """Prompts are all of one length."""
        return 0


def model_of(case: Case) -> Qwen3:
    """The case's model."""
    m = MODELS[case.model]
    config = ModelConfig(
        num_layers=m.num_hidden_layers,
        vocab_size=m.vocab_size,
        embed_dim=m.hidden_size,
        hidden_dim=m.intermediate_size,
        num_heads=m.num_attention_heads,
        head_dim=m.head_dim,
        num_kv_heads=m.num_key_value_heads,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    return Qwen3(config, rngs=nnx.Rngs(0))


def rollout(case: Case) -> None:
    """Samples with its own sampler, which gets each prompt once for every generation."""
    m = MODELS[case.model]
    length = case.prompt_length + case.completion_length
    cache = CacheConfig(length, m.num_hidden_layers, m.num_key_value_heads, m.head_dim)
    sampler = Sampler(model_of(case), Numbers(), cache)
    shape = case.prompts, case.prompt_length - 1  # it puts one token before them
    prompts = np.random.default_rng(0).integers(2, m.vocab_size, shape)
    texts = [" ".join(map(str, prompt)) for prompt in prompts for _ in range(case.generations)]
    stop_ids = list(range(1, 1 + round(case.stop_share * m.vocab_size))) or [-1]
    at_a_time = case.max_rows or case.rows

    def run(number: int) -> float:
        tokens = 0
        for first in range(0, case.rows, at_a_time):
            output = sampler(
                texts[first : first + at_a_time],
                max_generation_steps=case.completion_length,
                max_prompt_length=case.prompt_length,
                temperature=1.0,
                top_p=1.0,
                seed=number,
                eos_tokens=stop_ids,
                return_logprobs=True,
            )
            tokens += sum(len(row) for row in output.tokens)
        return tokens

    report(case, run)


def update(case: Case) -> None:
    """The clipped loss of its logprobs, differentiated and applied in one jit."""
    m, model = MODELS[case.model], model_of(case)
    graphdef, state = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, b2=0.99, weight_decay=0.0))
    opt_state = optimizer.init(state)
    random = np.random.default_rng(1)
    prompts = jnp.asarray(random.integers(2, m.vocab_size, (case.rows, case.prompt_length)), jnp.int32)
    completions = jnp.asarray(random.integers(2, m.vocab_size, (case.rows, case.completion_length)), jnp.int32)
    mask = jnp.arange(case.completion_length) < jnp.asarray(lengths(case))[:, None]
    completions = jnp.where(mask, completions, 0)
    old = jnp.full(completions.shape, -np.log(m.vocab_size))
    advantages = jnp.asarray(random.normal(size=(case.rows, 1)), jnp.float32)

    def loss_of(state):
        logprobs = compute_per_token_logps(graphdef, state, prompts, completions, 0, -1, stop_gradient=False)
        ratio = jnp.exp(logprobs - old)
        losses = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 0.8, 1.28))
        return jnp.sum(jnp.where(mask, losses, 0)) / case.rows / case.completion_length

    @jax.jit
    def step(state, opt_state):
        loss, gradient = jax.value_and_grad(loss_of)(state)
        changes, opt_state = optimizer.update(gradient, opt_state, state)
        return optax.apply_updates(state, changes), opt_state, loss

    def run(number: int) -> float:
        nonlocal state, opt_state
        state, opt_state, loss = step(state, opt_state)
        float(loss)
        return case.rows * case.prompt_length + sum(lengths(case))

    report(case, run)


if __name__ == "__main__":
    case = case_of(sys.argv[1])
    {"rollout": rollout, "update": update}[case.kind](case)
