"""Tiny random models of the Hugging Face families, and what transformers computes with them.

`python -m tests.make_hf_golden` wrote tests/golden/hf_*, with transformers 5.23.0, torch 2.13.0 (CPU), safetensors
0.8.0 and NumPy 2.4.6, in float32. Make them anew only to follow a new layout of transformers' files; the numbers are
the architectures' and do not change. torch and transformers are imported where they are needed, so that tests can
take the rest of this file without them.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# family -> settings. Heads of 10 are not hidden_size / num_attention_heads, where the family allows that.
SETTINGS = {
    "qwen3": _SIZES | {"head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "qwen2": _SIZES | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama": _SIZES | {"head_dim": 10, "rope_parameters": _LLAMA3},
}
# Ends the greedy completions of some of the golden rows and not of others.
END = {"qwen3": 12, "qwen2": 27, "llama": 31}
# Greedy completions vary with these, and no token wins by less than 0.001.
SEED = {"qwen3": 2, "qwen2": 3, "llama": 3}
PROMPT_LENGTHS, PAD, NEW_TOKENS = (3, 12, 1, 7, 9), 0, 64


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights that make every part of a model matter: no scale is 1, no bias is 0, logits are of several units.

    They come from NumPy, whose streams do not change between versions of torch.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        noise = rng.standard_normal(shapes[name])
        if name == "model.norm.weight":
            # Of both signs: a tied output layer would otherwise repeat the last token for ever.
            value = 1.2 * noise
        elif name.endswith("norm.weight"):
            # Sharp attention: otherwise heads average over all tokens, and positions hardly count.
            value = (1.5 if "q_norm" in name else 1) + 0.3 * noise
        elif name.endswith(".bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = 0.7 * noise
        else:
            gain = 2 if "lm_head" in name or "q_proj" in name else 1
            value = gain * noise / np.sqrt(shapes[name][1])
        weights[name] = value.astype(np.float32)
    return weights


def make_model(family: str, settings: dict, seed: int = 0):
    """A transformers model with `random_weights`, in float32, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **json.loads(json.dumps(settings)))  # transformers edits what it is given
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    weights = random_weights({name: tuple(x.shape) for name, x in state.items()}, seed)
    model.load_state_dict({name: torch.tensor(x) for name, x in weights.items()}, strict=False)
    model.tie_weights()
    return model.eval()


def read_model(directory: Path | str, dtype: str = "float32"):
    """The transformers model of a directory."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def logits_of(model, tokens_BT: np.ndarray):
    """Logits of transformers for rows without padding: a tensor."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits


def random_tokens(shape: tuple[int, ...], vocab_size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, vocab_size, shape)


def prompts_of(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts of PROMPT_LENGTHS, and their mask."""
    length = max(PROMPT_LENGTHS)
    mask = np.arange(length)[None] >= length - np.array(PROMPT_LENGTHS)[:, None]
    return np.where(mask, random_tokens(mask.shape, vocab_size, seed), PAD), mask


def complete(model, prompts: np.ndarray, mask: np.ndarray, end: int | None) -> np.ndarray:
    """Greedy completions by transformers, padded to NEW_TOKENS."""
    import torch

    tokens = model.generate(
        torch.tensor(prompts),
        attention_mask=torch.tensor(mask.astype(np.int64)),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=PAD,
    ).numpy()[:, prompts.shape[1] :]
    return np.pad(tokens, ((0, 0), (0, NEW_TOKENS - tokens.shape[1])), constant_values=PAD)


def expected_of(family: str, model) -> dict[str, np.ndarray]:
    """What expected.npz holds."""
    tokens = random_tokens((2, 40), _SIZES["vocab_size"], 1)
    prompts, mask = prompts_of(_SIZES["vocab_size"], 2)
    return {
        "tokens": tokens,
        "logits": logits_of(model, tokens).numpy(),
        "prompts": prompts,
        "prompts_mask": mask,
        "completions": complete(model, prompts, mask, END[family]),
    }


def main() -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for family, settings in SETTINGS.items():
        directory = GOLDEN / f"hf_{family}"
        shutil.rmtree(directory, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_model(family, settings, SEED[family]).save_pretrained(directory)
            (directory / "generation_config.json").unlink()
            np.savez_compressed(directory / "expected.npz", **expected_of(family, read_model(directory)))


if __name__ == "__main__":
    main()
    sys.exit(0)
