"""Decoding a token at a time in every row, with prompts that rows share."""

import jax

from polyepo_jax.model.attention import kernel_of, self_attend
from polyepo_jax.model.cache import PromptCache, Ring
from polyepo_jax.model.config import ModelConfig
from polyepo_jax.model.decode_attention import attend_shared, attend_to_ring, attends_in_triton
from polyepo_jax.model.transformer import Params, run_layers, token_positions
from polyepo_jax.types import Array


def unstacked(params: Params) -> Params:
    """Parameters whose layers are a tuple: no step of a decode loop has to cut a layer's out of the stack."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count))
    return {**params, "layers": layers}


def prompt_cache(config: ModelConfig, params: Params, tokens_PT: Array, mask_PT: Array) -> PromptCache:
    """Keys and values of prompts, in layers as the parameters are.

    Args:
      tokens_PT, mask_PT: as in `forward`.
    """
    kernel = kernel_of(config)

    def attend_new(carry, index, query, keys, values):
        attended = self_attend(kernel, query, keys, values, mask_PT)
        return attended, carry, (keys.swapaxes(1, 2), values.swapaxes(1, 2))

    _, _, kept = run_layers(config, params, tokens_PT, token_positions(mask_PT), None, attend_new)
    keys, values = zip(*kept, strict=True) if isinstance(params["layers"], tuple) else kept
    return PromptCache(keys, values, mask_PT)


def decode_step(
    config: ModelConfig, params: Params, tokens_B: Array, positions_B: Array, prompts: PromptCache, ring: Ring
) -> tuple[Array, Ring]:
    """The final, normalised hidden states [B, D] of one more token in every row.

    Args:
      params: layers as those of `prompts` and `ring`.
      positions_B: of these tokens in their texts, prompt included.
      prompts: of P prompts, each of the B / P rows that are adjacent.
      ring: of the rows' own tokens.

    Returns:
      hidden_BD in config.dtype; the ring with keys and values of these tokens, its lengths unchanged.
    """
    triton = attends_in_triton(config) and isinstance(ring.keys, tuple)

    def attend_layer(carry, index, query, keys, values):
        own_keys, own_values = (ring.write(x, index, new[:, 0]) for x, new in zip(carry, (keys, values), strict=True))
        of_layer = ring.read(own_keys, index), ring.read(own_values, index)
        own = attend_to_ring(triton, query[:, 0], ring, *of_layer)
        of_prompt = prompts.keys[index], prompts.values[index], prompts.mask_PT
        return attend_shared(query[:, 0], *of_prompt, own)[:, None], (own_keys, own_values), None

    hidden, (keys, values), _ = run_layers(
        config, params, tokens_B[:, None], positions_B[:, None], (ring.keys, ring.values), attend_layer
    )
    return hidden[:, 0], Ring(keys, values, ring.lengths_B, ring.step + 1)
