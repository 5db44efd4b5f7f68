"""Low-rank adapters: the numbers of peft, and its files. Skipped where torch, transformers or peft are not there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from polyepo_jax.model import LoRA, forward, joined, load_adapters, load_hf, merged, save_adapters, save_hf, split
from tests.hf_directories import assert_same_bits, our_logits
from tests.make_hf_golden import logits_of, make_model, random_tokens, read_model
from tests.model.test_hf_parity import CASES, TINY

# peft asks transformers by a name that it has left.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# Of logits and gradients, by their largest and their norm.
TOLERANCE = 1e-5
ONE_EACH = {
    "qwen3": LoRA(3, 5.0, rank_stabilized=True),
    "qwen2": LoRA(4, 8.0, ("q_proj", "v_proj")),
    "llama": LoRA(2, 3.0),
    "mistral": LoRA(8, 4.0, ("o_proj", "down_proj")),
}
SLOW = {"qwen3 tied, scanned": LoRA(5, 7.0), "llama biased": LoRA(2, 3.0, ("k_proj", "o_proj", "gate_proj", "up_proj"))}
TOKENS = random_tokens((2, 48), TINY["vocab_size"], 1)

every_family = pytest.mark.parametrize(
    ("case", "lora"),
    [*ONE_EACH.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
    ids=lambda value: value if isinstance(value, str) else "",
)


def write_peft(peft, directory, case, lora):
    """Writes a model and random adapters to it, none of them 0; returns the model of peft."""
    import torch

    model = make_model(*CASES[case])
    model.save_pretrained(directory / "model")
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        use_rslora=lora.rank_stabilized,
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, settings)
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_" in name:
                x.copy_(torch.tensor(rng.standard_normal(tuple(x.shape)) / np.sqrt(x.shape[1]), dtype=torch.float32))
    adapted.save_pretrained(directory / "adapter")
    return adapted.eval()


def read(directory, lora):
    """Our config and parameters of it."""
    config, params = load_hf(directory / "model")
    config = dataclasses.replace(config, lora=lora)
    adapters, fingerprint = load_adapters(directory / "adapter", config)
    assert fingerprint is None
    return config, joined(adapters, params)


def relative(actual, expected) -> float:
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


@every_family
def test_logits_and_gradients_equal_those_of_peft(peft, tmp_path, case, lora):
    import torch

    model = write_peft(peft, tmp_path, case, lora)
    config, params = read(tmp_path, lora)
    with model.disable_adapter():
        plain = logits_of(model, TOKENS).numpy()
    logits = model(torch.tensor(TOKENS)).logits
    expected = logits.detach().numpy()
    assert np.abs(expected - plain).max() > 0.1 * np.abs(expected).max()
    assert relative(our_logits(config, params, TOKENS), expected) < TOLERANCE

    logprobs = torch.log_softmax(logits[:, :-1], -1)
    (-logprobs.gather(-1, torch.tensor(TOKENS)[:, 1:, None]).mean()).backward()
    theirs = {name: x.grad.numpy() for name, x in model.named_parameters() if x.grad is not None}

    def loss(adapters, frozen):
        logits, _ = forward(config, joined(adapters, frozen), jnp.asarray(TOKENS))
        logprobs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logprobs, jnp.asarray(TOKENS)[:, 1:, None], axis=2))

    with jax.default_matmul_precision("highest"):
        gradient = jax.device_get(jax.jit(jax.grad(loss))(*split(params)))
    save_adapters(tmp_path / "gradient", config, gradient)  # by the table of names, as what peft calls them
    ours = safetensors.numpy.load_file(tmp_path / "gradient" / "adapter_model.safetensors")
    assert len(ours) == len(theirs) == 2 * len(lora.targets) * config.num_hidden_layers
    total = np.sqrt(sum(np.sum(x**2) for x in theirs.values()))
    for name, x in theirs.items():
        error = np.linalg.norm(ours[name.replace(".default", "")] - x)
        assert error < TOLERANCE * total
        assert error < 3 * TOLERANCE * np.linalg.norm(x)
        assert np.linalg.norm(x) > 1e-4 * total


@every_family
def test_peft_reads_what_is_written(peft, tmp_path, case, lora):
    write_peft(peft, tmp_path, case, lora)
    config, params = read(tmp_path, lora)
    adapters, _ = split(params)
    save_adapters(tmp_path / "again", config, adapters, fingerprint="0123")
    one, other = (
        safetensors.numpy.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again")
    )
    assert_same_bits(dict(sorted(other.items())), dict(sorted(one.items())))
    read_again, fingerprint = load_adapters(tmp_path / "again", config)
    assert_same_bits(read_again, adapters)
    assert fingerprint == "0123"

    model = peft.PeftModel.from_pretrained(read_model(tmp_path / "model"), tmp_path / "again")
    expected = logits_of(model, TOKENS).numpy()
    assert relative(our_logits(config, params, TOKENS), expected) < TOLERANCE
    plain, whole = merged(config, params)
    save_hf(tmp_path / "merged", plain, whole, companions=tmp_path / "model")
    by_us = logits_of(read_model(tmp_path / "merged"), TOKENS).numpy()
    by_them = logits_of(model.merge_and_unload(), TOKENS).numpy()
    assert max(relative(by_us, by_them), relative(by_us, expected)) < TOLERANCE
    assert relative(our_logits(plain, whole, TOKENS), by_them) < TOLERANCE
