"""The shape and numerics of a model. Field names are those of a Hugging Face config.json where it has them."""

import dataclasses
import math
from typing import ClassVar, Literal

Dtype = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """The `linear` rope type: every frequency is divided by `factor`."""

    rope_type: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(f"rope scaling linear needs factor >= 1, got {self.factor}")


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """The `llama3` rope type: low frequencies are slowed down to reach beyond the context that was trained first.

    A frequency whose wavelength is above `original_max_position_embeddings / low_freq_factor` is divided by
    `factor`, one below `... / high_freq_factor` stays, and those in between are interpolated.
    """

    rope_type: ClassVar[str] = "llama3"
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
        _check_original_length(self.original_max_position_embeddings)


@dataclasses.dataclass(frozen=True)
class YarnRopeScaling:
    """The `yarn` rope type (Peng et al. 2023): some pairs of components turn more slowly, and attention is sharper.

    A pair that turns less than `beta_slow` times within the original context is slowed down by `factor`, one that turns
    more than `beta_fast` times is not, and those in between are interpolated by their index.

    truncate: the interpolation begins and ends at a whole index.
    attention_factor: what sine and cosine are multiplied by. None computes it from `factor`, and from `mscale` and
      `mscale_all_dim` where both are given: `attention_scale`.
    """

    rope_type: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self):
        if self.factor < 1 or not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                "rope scaling yarn needs factor >= 1 and 0 < beta_slow <= beta_fast, got "
                f"{self.factor}, {self.beta_slow} and {self.beta_fast}"
            )
        _check_original_length(self.original_max_position_embeddings)

    @property
    def attention_scale(self) -> float:
        """What sine and cosine are multiplied by: 0.1 ln(factor) + 1, as the paper recommends, or as the fields say."""
        if self.attention_factor is not None:
            return self.attention_factor
        growth = 0.1 * math.log(self.factor)
        if self.mscale and self.mscale_all_dim:
            return (growth * self.mscale + 1) / (growth * self.mscale_all_dim + 1)
        return growth + 1


def _check_original_length(positions: int) -> None:
    if positions < 1:
        raise ValueError(f"original_max_position_embeddings must be at least 1, got {positions}")


RopeScaling = LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling
ROPE_SCALINGS: dict[str, type[RopeScaling]] = {
    scaling.rope_type: scaling for scaling in (LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling)
}


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021): x W + scale (x A) B in place of x W, of which A and B alone are trained.

    rank: columns of A, rows of B. alpha: scale is alpha / rank.
    targets: the matrices W that have adapters, in every layer.
    rank_stabilized: scale is alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    rank_stabilized: bool = False

    def __post_init__(self):
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            what = f"has {', '.join(map(repr, unknown))}" if unknown else f"is {self.targets!r}"
            raise ValueError(f"model.lora.targets {what}: it takes one or several of {', '.join(TARGETS)}, each once")
        if self.rank < 1:
            raise ValueError(f"model.lora.rank must be at least 1, got {self.rank}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"model.lora.alpha must be a number above 0, got {self.alpha}")

    @property
    def scale(self) -> float:
        """What (x A) B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelNumerics:
    """How a model is computed and trained, whatever its shape.

    dtype: of activations, and of the matrix products. param_dtype: of parameters as they are stored and trained.
    remat: what the backward pass recomputes of each layer: nothing, everything but matrix products, everything.
    attention: the kernel of whole sequences: "xla" (any device), "cudnn" (NVIDIA GPUs, bfloat16), "splash" (TPUs);
      "auto" takes the mesh's platform's. "xla" is also that of every decode step; else GPUs have a kernel for it.
    lora: None trains all parameters; else adapters are trained, in param_dtype, and the rest is kept in dtype.
    """

    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    lora: LoRA | None = None

    def __post_init__(self):
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(f"model.attention = 'cudnn' needs model.dtype = 'bfloat16', got {self.dtype!r}")

    @property
    def weights_dtype(self) -> Dtype:
        """Of all parameters that are no adapters."""
        return self.param_dtype if self.lora is None else self.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelNumerics):
    """A decoder of the architectures Qwen3 (`qk_norm`), Qwen2 (`qkv_bias`) or Llama and Mistral (neither).

    vocab_size: V, rows of the embedding.
    hidden_size: D. intermediate_size: F, of the SwiGLU. num_hidden_layers: L.
    num_attention_heads: H. num_key_value_heads: K, divides H. head_dim: A, even; independent of D / H.
    rope_theta: base of the rotary frequencies. rope_scaling: None, or how they are slowed down.
    rms_norm_eps: added to the mean square.
    tie_word_embeddings: the embedding also computes the logits.
    qk_norm: RMSNorm of each query and key head before RoPE. qkv_bias: query, key and value projections add a bias.
    o_bias: so does the attention's output projection.
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
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qk_norm: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
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
        if isinstance(self.rope_scaling, YarnRopeScaling) and self.rope_theta <= 1:
            raise ValueError(f"model.rope_theta must be above 1 with rope scaling yarn, got {self.rope_theta}")
        if self.lora is not None:
            for name in self.lora.targets:
                if self.lora.rank > min(self.matrix_sizes[name]):
                    inputs, outputs = self.matrix_sizes[name]
                    raise ValueError(
                        f"model.lora.rank must be at most the smaller side of each target, got {self.lora.rank} for "
                        f"{name} of {inputs} x {outputs}"
                    )

    @property
    def matrix_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by name."""
        D, F = self.hidden_size, self.intermediate_size
        query, key = (count * self.head_dim for count in (self.num_attention_heads, self.num_key_value_heads))
        return {
            "q_proj": (D, query),
            "k_proj": (D, key),
            "v_proj": (D, key),
            "o_proj": (query, D),
            "gate_proj": (D, F),
            "up_proj": (D, F),
            "down_proj": (F, D),
        }
