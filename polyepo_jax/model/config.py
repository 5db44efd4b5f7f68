"""The shape and numerics of a model. Field names are those of a Hugging Face Qwen3 config.json."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Decoder of the Qwen3 architecture.

    vocab_size: V, rows of the embedding.
    hidden_size: D. intermediate_size: F, of the SwiGLU. num_hidden_layers: L.
    num_attention_heads: H. num_key_value_heads: K, divides H. head_dim: A, even; independent of D / H.
    rope_theta: base of the rotary frequencies. rms_norm_eps: added to the mean square.
    tie_word_embeddings: the embedding also computes the logits.
    dtype: of activations. param_dtype: of parameters as initialised.
    remat: what the backward pass recomputes of each layer: nothing, everything but matrix products, everything.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"model.num_key_value_heads ({self.num_key_value_heads}): each key/value head serves equally many"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim must be even (rotary embedding turns pairs), got {self.head_dim}")
