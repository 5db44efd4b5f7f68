"""Models in Hugging Face's format: the numbers of transformers.

Where torch and transformers are not installed, tests/golden/hf_* stand for them; tests.make_hf_golden made those.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.model import Llama3RopeScaling, ModelConfig
from polyepo_jax.model.hf import load_hf, read_config, save_hf
from polyepo_jax.model.hf.config import config_json
from polyepo_jax.model.rotary import rotary_frequencies, rotary_scale
from polyepo_jax.sampling.generate import GenerationSpec, generate
from polyepo_jax.sampling.methods import Sampling
from polyepo_jax.types import Prompts
from tests.hf_directories import (
    ABSENT,
    FAMILIES,
    LLAMA3,
    YARN,
    as_of_transformers_4,
    copy_of,
    edit_json,
    golden,
    our_logits,
    renamed,
    values_of,
)
from tests.make_hf_golden import (
    END,
    GOLDEN,
    NEW_TOKENS,
    PAD,
    complete,
    expected_of,
    logits_of,
    make_model,
    prompts_of,
    random_tokens,
    read_model,
)

TOLERANCE = 1e-4


def our_completions(config: ModelConfig, params, prompts, mask, end: int) -> np.ndarray:
    """Greedy completions, one of each prompt."""
    spec = GenerationSpec(config, 1, NEW_TOKENS, (end,), PAD, Sampling(temperature=0.0))
    rows = jnp.arange(len(prompts))
    with jax.default_matmul_precision("highest"):
        rollouts = generate(
            spec, params, Prompts(jnp.asarray(prompts, jnp.int32), jnp.asarray(mask), rows), jax.random.key(0)
        )
    tokens, completion_mask = np.asarray(rollouts.tokens_PNT)[:, 0], np.asarray(rollouts.completion_mask_PNT)[:, 0]
    assert np.array_equal(np.asarray(rollouts.truncated_PN)[:, 0], ~(tokens == end).any(axis=1))
    return np.where(completion_mask, tokens, PAD)


def assert_completions_differ(completions: np.ndarray, end: int) -> None:
    """That the same completions are evidence: they vary, and the end token stops some rows early, not all."""
    ended = (completions == end).any(axis=1)
    assert ended.any()
    assert not ended.all()
    assert len({tuple(row) for row in completions}) == len(completions)
    assert np.median([len(set(row)) for row in completions]) >= 8


# --- parity with the committed files ---


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_logits(family):
    config, params, expected = golden(family)
    logits = our_logits(config, params, expected["tokens"])
    assert expected["logits"].std() > 1
    assert np.abs(logits - expected["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_completions(family):
    config, params, expected = golden(family)
    assert_completions_differ(expected["completions"], END[family])
    completions = our_completions(config, params, expected["prompts"], expected["prompts_mask"], END[family])
    np.testing.assert_array_equal(completions, expected["completions"])


def test_golden_configs():
    """What config.json says, field by field."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    qwen3 = ModelConfig(**sizes, head_dim=10, rope_theta=5000.0, qk_norm=True)
    qwen2 = ModelConfig(
        **sizes,
        head_dim=6,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        qk_norm=False,
        qkv_bias=True,
    )
    llama = ModelConfig(
        **sizes, head_dim=10, rope_theta=1000.0, rope_scaling=Llama3RopeScaling(4.0, 1.0, 4.0, 16), qk_norm=False
    )
    for family, config in {"qwen3": qwen3, "qwen2": qwen2, "llama": llama}.items():
        assert read_config(GOLDEN / f"hf_{family}") == golden(family)[0] == config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_both_layouts_of_a_config_say_the_same(tmp_path, family, kind):
    directory = copy_of(family, tmp_path / "old")
    as_of_transformers_4(directory, kind)
    raw = json.loads((directory / "config.json").read_text())
    assert "rope_theta" in raw
    assert "rope_parameters" not in raw
    assert read_config(directory) == read_config(GOLDEN / f"hf_{family}")


def test_what_a_config_need_not_say(tmp_path):
    directory = copy_of("qwen3", tmp_path / "model")
    edit_json(
        directory / "config.json",
        **dict.fromkeys(("head_dim", "tie_word_embeddings", "hidden_act", "max_position_embeddings"), ABSENT),
    )
    config = read_config(directory)
    assert (config.head_dim, config.tie_word_embeddings) == (128, False)  # Qwen3's own
    edit_json(directory / "config.json", model_type="llama", num_key_value_heads=ABSENT)
    config = read_config(directory)
    assert (config.head_dim, config.num_key_value_heads) == (6, 4)


# --- parity with transformers, where it is installed ---


TINY = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
YARN_IN_FULL = YARN | {
    "rope_theta": 100.0,
    "factor": 8.0,
    "beta_fast": 3.0,
    "beta_slow": 0.5,
    "mscale": 2.0,
    "mscale_all_dim": 0.5,
    "truncate": False,
}


def plain_rope(theta: float) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# Heads, ties, scalings, depths.
CASES = {
    "qwen3": ("qwen3", TINY | plain_rope(1e6) | {"head_dim": 12}),
    "qwen3 tied, scanned": ("qwen3", TINY | {"tie_word_embeddings": True, "head_dim": 16, "num_hidden_layers": 5}),
    "qwen3 scaled": ("qwen3", TINY | {"head_dim": 8, "rope_parameters": LLAMA3, "num_key_value_heads": 1}),
    "qwen3 biased": ("qwen3", TINY | plain_rope(1e6) | {"head_dim": 12, "attention_bias": True}),
    "llama biased": (
        "llama",
        TINY | plain_rope(1e4) | {"head_dim": 12, "attention_bias": True, "num_hidden_layers": 5},
    ),
    "qwen2": ("qwen2", TINY | plain_rope(1e6) | {"num_key_value_heads": 1, "use_sliding_window": False}),
    "qwen2 tied": ("qwen2", TINY | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_size": 40}),
    "llama": ("llama", TINY | {"head_dim": 12, "rope_parameters": LLAMA3}),
    "qwen3 linear": ("qwen3", TINY | {"head_dim": 8, "rope_parameters": LINEAR}),
    # As Qwen's cards have it, and all that can be said.
    "qwen3 yarn": ("qwen3", TINY | {"head_dim": 32, "rope_parameters": YARN | {"rope_theta": 1e4}}),
    "qwen2 yarn": ("qwen2", TINY | {"rope_parameters": YARN_IN_FULL}),
    "llama yarn": ("llama", TINY | {"head_dim": 12, "rope_parameters": YARN | {"rope_theta": 50.0, "truncate": False}}),
    "mistral": ("mistral", TINY | plain_rope(1e6) | {"sliding_window": None, "head_dim": 12}),
    "mistral, a window of all": ("mistral", TINY | {"sliding_window": 48, "max_position_embeddings": 48}),
    "llama tied": ("llama", TINY | {"tie_word_embeddings": True, "num_key_value_heads": 4} | plain_rope(5e5)),
}


# One case a family; the others are slow.
ONE_EACH = ("qwen3", "qwen2", "llama", "mistral")


@pytest.mark.parametrize(
    "case", [case if case in ONE_EACH else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_logits_equal_those_of_transformers(transformers, tmp_path, case):
    family, settings = CASES[case]
    make_model(family, settings).save_pretrained(tmp_path / "new", max_shard_size="30KB")
    shards = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    assert len(shards) > 1
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    differences = {}
    for layout in ("new", "rope_type", "type"):
        directory = tmp_path / layout
        if layout != "new":
            shutil.copytree(tmp_path / "new", directory)
            as_of_transformers_4(directory, layout)
        expected = logits_of(read_model(directory), tokens).numpy()
        config, params = load_hf(directory)
        assert config.dtype == config.param_dtype == "float32"
        assert expected.std() > 1
        differences[layout] = float(np.abs(our_logits(config, params, tokens) - expected).max())
    print(case, differences)
    assert max(differences.values()) < TOLERANCE


@pytest.mark.parametrize("case", ["qwen3 tied, scanned", "qwen3", "llama"])
def test_a_checkpoint_without_the_prefix_is_the_same_model(transformers, tmp_path, case):
    """As the class without an output layer saves it: transformers puts `model.` before its names."""
    make_model(*CASES[case]).save_pretrained(tmp_path / "model")
    renamed("")(tmp_path / "model")
    assert "norm.weight" in values_of(tmp_path / "model")
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    expected = logits_of(read_model(tmp_path / "model"), tokens).numpy()
    config, params = load_hf(tmp_path / "model")
    assert np.abs(our_logits(config, params, tokens) - expected).max() < TOLERANCE
    save_hf(tmp_path / "again", config, params)
    assert np.array_equal(logits_of(read_model(tmp_path / "again"), tokens).numpy(), expected)


@pytest.mark.parametrize("case", ["qwen3", "mistral"])
def test_a_checkpoint_in_float16_is_the_same_model(transformers, tmp_path, case):
    make_model(*CASES[case]).half().save_pretrained(tmp_path)
    assert {x.dtype.name for x in values_of(tmp_path).values()} == {"float16"}
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    expected = logits_of(read_model(tmp_path, "float32"), tokens).numpy()
    config, params = load_hf(tmp_path)
    assert config.dtype == config.param_dtype == "float32"
    assert np.abs(our_logits(config, params, tokens) - expected).max() < TOLERANCE


def test_a_window_matters_as_soon_as_it_does_not_hold_all_positions(transformers, tmp_path):
    """What the case above with a window of all would miss: one token less changes the last position."""
    family, settings = CASES["mistral, a window of all"]
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    whole, cut = (logits_of(make_model(family, settings | {"sliding_window": w}), tokens).numpy() for w in (48, 47))
    assert np.array_equal(whole[:, :47], cut[:, :47])
    assert np.abs(whole[:, 47] - cut[:, 47]).max() > 100 * TOLERANCE
    make_model(family, settings | {"sliding_window": 47}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a sliding window of 47 tokens"):
        read_config(tmp_path)


SCALED = {
    "qwen2.5": {"factor": 4.0, "original_max_position_embeddings": 32768},
    "truncated to the same pairs": {"factor": 2.0, "original_max_position_embeddings": 7},
    "all of them slowed down": {"factor": 2.0, "original_max_position_embeddings": 1, "truncate": False},
    "betas": {"factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0},
    "betas, not truncated": {"factor": 4.0, "original_max_position_embeddings": 99, "beta_fast": 4, "truncate": False},
    "attention factor": {"factor": 4.0, "original_max_position_embeddings": 99, "attention_factor": 0.7, "mscale": 3.0},
    "mscale alone": {"factor": 4.0, "original_max_position_embeddings": 99, "mscale": 3.0},
    "both": {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    "one of both is 0": {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0},
    "null": {"factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": None, "attention_factor": None},
    "original length of the model": {"factor": 2.0},
}


@pytest.mark.parametrize("case", SCALED)
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 1e6), (20, 10.0)])
def test_yarn_turns_as_it_does_in_transformers(transformers, tmp_path, case, head_dim, theta):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.Qwen3Config(
        **TINY | {"head_dim": head_dim, "rope_parameters": {"rope_type": "yarn", "rope_theta": theta} | SCALED[case]}
    )
    config.save_pretrained(tmp_path)
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config)
    ours = read_config(tmp_path)
    frequencies = rotary_frequencies(head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=2e-6)
    assert rotary_scale(ours.rope_scaling) == pytest.approx(scale, rel=1e-12)
    # It is written as it was understood.
    written = config_json(ours, "float32", {})
    again = transformers.Qwen3Config(
        **{name: written[name] for name in (*TINY, "head_dim", "rope_parameters") if name in written}
    )
    expected_again, scale_again = ROPE_INIT_FUNCTIONS["yarn"](again)
    assert np.array_equal(expected_again, expected)
    assert scale_again == scale


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_files_are_what_transformers_computes(transformers, family):
    _, _, golden_values = golden(family)
    expected = expected_of(family, read_model(GOLDEN / f"hf_{family}"))
    assert expected.keys() == golden_values.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(golden_values[name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("case", "seed", "end"), [("qwen3", 3, 23), ("llama", 1, 12)])
def test_completions_equal_those_of_transformers(transformers, tmp_path, case, seed, end):
    model = make_model(*CASES[case], seed)
    model.save_pretrained(tmp_path / "model")
    prompts, mask = prompts_of(TINY["vocab_size"], 4)
    expected = complete(model, prompts, mask, end)
    assert_completions_differ(expected, end)
    config, params = load_hf(tmp_path / "model")
    np.testing.assert_array_equal(our_completions(config, params, prompts, mask, end), expected)


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), *((family, "bfloat16") for family in FAMILIES)]
)
def test_transformers_reads_what_is_written(transformers, tmp_path, case, dtype):
    import torch

    family, settings = CASES[case]
    model = make_model(family, settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "first")
    config, params = load_hf(tmp_path / "first")
    assert config.dtype == dtype
    save_hf(tmp_path / "second", config, params, companions=tmp_path / "first", max_file_bytes=30_000)
    save_hf(tmp_path / "alone", config, params)
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    expected = logits_of(read_model(tmp_path / "first", dtype), tokens)
    for name in ("second", "alone"):
        assert torch.equal(logits_of(read_model(tmp_path / name, dtype), tokens), expected)
        read = transformers.AutoConfig.from_pretrained(tmp_path / name)
        original = transformers.AutoConfig.from_pretrained(tmp_path / "first")
        # Nothing but a name tells a Mistral without a window from a Llama.
        assert type(read) is type(original) or (family, name) == ("mistral", "alone")
        assert read.dtype == getattr(torch, dtype)
        assert read.rope_parameters == original.rope_parameters
        assert getattr(read, "attention_bias", False) == getattr(original, "attention_bias", False)
