"""The shape and numerics of a model. Field names are those of a Hugging Face config.json where it has them."""

import dataclasses
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """The `llama3` rope type: low frequencies are slowed down to reach beyond the context that was trained first.

    A frequency whose wavelength is above `original_max_position_embeddings / low_freq_factor` is divided by
    `factor`, one below `... / high_freq_factor` stays, and those in between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope scaling llama3 needs factor >= 1 and 0 < low_freq_factor < high_freq_factor, got "
                f"{self.factor}, {self.low_freq_factor} and {self.high_freq_factor}"
            )
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                f"original_max_position_embeddings must be at least 1, got {self.original_max_position_embeddings}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelNumerics:
    """How a model is computed, whatever its shape.

    dtype: of activations, and of the matrix products. param_dtype: of parameters as they are stored and trained.
    remat: what the backward pass recomputes of each layer: nothing, everything but matrix products, everything.
    attention: the kernel of whole sequences: "xla" (any device), "cudnn" (NVIDIA GPUs, bfloat16), "splash" (TPUs);
      "auto" takes the mesh's platform's.
    """

    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"

    def __post_init__(self):
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(f"model.attention = 'cudnn' needs model.dtype = 'bfloat16', got {self.dtype!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelNumerics):
    """A decoder of the architectures Qwen3 (`qk_norm`), Qwen2 (`qkv_bias`) or Llama (neither).

    vocab_size: V, rows of the embedding.
    hidden_size: D. intermediate_size: F, of the SwiGLU. num_hidden_layers: L.
    num_attention_heads: H. num_key_value_heads: K, divides H. head_dim: A, even; independent of D / H.
    rope_theta: base of the rotary frequencies. rope_scaling: None, or how they are slowed down.
    rms_norm_eps: added to the mean square.
    tie_word_embeddings: the embedding also computes the logits.
    qk_norm: RMSNorm of each query and key head before RoPE. qkv_bias: query, key and value projections add a bias.
    max_position_embeddings: positions the model was made for.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rope_scaling: Llama3RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qk_norm: bool = True
    qkv_bias: bool = False
    max_position_embeddings: int = 32768

    def __post_init__(self):
        super().__post_init__()
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
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
