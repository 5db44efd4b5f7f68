"""Which tensor goes where: one table of names, for reading and writing."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from polyepo_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Weight:
    """One line of the table.

    ours: path in the params, or in those of a layer.
    theirs: name in the file behind the layout's prefix, with the layer's number for {}.
    num_inputs: leading axes of ours that the matrix product contracts; PyTorch stores a linear map as
      [outputs, inputs], so that ours is the transpose, cut into axes. 0 for what is no linear map: same order there.
    present: whether a model has it.
    """

    ours: str
    theirs: str
    num_inputs: int = 0
    present: Callable[[ModelConfig], bool] = lambda config: True

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return (array.T if self.num_inputs else array).reshape(shape)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.num_inputs:
            return math.prod(shape[self.num_inputs :]), math.prod(shape[: self.num_inputs])
        return shape if self.ours == "embed_tokens" else (math.prod(shape),)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        shape = self.their_shape(array.shape)
        return np.ascontiguousarray(array.reshape(shape[::-1]).T if self.num_inputs else array.reshape(shape))


_EMBEDDING = Weight("embed_tokens", "embed_tokens.weight")
_LM_HEAD = Weight("lm_head", "lm_head.weight", 1, lambda config: not config.tie_word_embeddings)
_OUTER = (_EMBEDDING, Weight("norm.scale", "norm.weight"), _LM_HEAD)
_LAYER = (
    Weight("input_layernorm.scale", "layers.{}.input_layernorm.weight"),
    Weight("post_attention_layernorm.scale", "layers.{}.post_attention_layernorm.weight"),
    *(Weight(f"self_attn.{x}_proj", f"layers.{{}}.self_attn.{x}_proj.weight", 1) for x in "qkv"),
    Weight("self_attn.o_proj", "layers.{}.self_attn.o_proj.weight", 2),
    *(
        Weight(f"self_attn.{x}_bias", f"layers.{{}}.self_attn.{x}_proj.bias", 0, lambda config: config.qkv_bias)
        for x in "qkv"
    ),
    Weight("self_attn.o_bias", "layers.{}.self_attn.o_proj.bias", 0, lambda config: config.o_bias),
    *(
        Weight(
            f"self_attn.{x}_norm.scale",
            f"layers.{{}}.self_attn.{x}_norm.weight",
            0,
            lambda config: config.qk_norm,
        )
        for x in "qk"
    ),
    *(Weight(f"mlp.{x}_proj", f"layers.{{}}.mlp.{x}_proj.weight", 1) for x in ("gate", "up", "down")),
)


def _adapters(weight: Weight) -> tuple[Weight, Weight]:
    """The lines of a matrix's adapters in PEFT's files."""
    target = weight.ours.rpartition(".")[2]

    def line(ours: str, theirs: str, num_inputs: int) -> Weight:
        names = weight.ours + ours, weight.theirs.removesuffix("weight") + theirs
        return Weight(*names, num_inputs, lambda config: config.lora is not None and target in config.lora.targets)

    return line("_lora_a", "lora_A.weight", weight.num_inputs), line("_lora_b", "lora_B.weight", 1)


_ADAPTERS = tuple(line for weight in _LAYER if weight.num_inputs for line in _adapters(weight))
# What PEFT puts before a model's names.
ADAPTER_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands before the names. body: of embedding, layers and norm. head: of the output layer."""

    body: str
    head: str = ""

    def name(self, weight: Weight, layer: int | None = None) -> str:
        return (self.head if weight is _LM_HEAD else self.body) + weight.theirs.format(layer)

    @property
    def table(self) -> str:
        return self.name(_EMBEDDING)

    @property
    def output(self) -> str:
        return self.name(_LM_HEAD)


# As CausalLM classes save their tensors, and as we do; as the class without an output layer does; as the language model
# within a multimodal one is saved, now and formerly.
LAYOUTS = (
    Layout("model."),
    Layout(""),
    Layout("model.language_model."),
    Layout("language_model.model.", "language_model."),
)


def layout_of(names: Collection[str]) -> Layout:
    """The layout of a checkpoint with these tensors: that of its layers. The first where there are none."""
    found = (x for x in LAYOUTS if any(name.startswith(f"{x.body}layers.") for name in names))
    return next(found, LAYOUTS[0])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file. path: keys in the params. layer: its index on the leading axis there, None outside."""

    name: str
    weight: Weight
    path: tuple[str, ...]
    layer: int | None


def entries_of(config: ModelConfig, layout: Layout = LAYOUTS[0]) -> Iterator[Entry]:
    """The tensors of a model."""
    for weight in _OUTER:
        if weight.present(config):
            yield Entry(layout.name(weight), weight, tuple(weight.ours.split(".")), None)
    for layer in range(config.num_hidden_layers):
        for weight in _LAYER:
            if weight.present(config):
                yield Entry(layout.name(weight, layer), weight, ("layers", *weight.ours.split(".")), layer)


def adapter_entries_of(config: ModelConfig, layout: Layout = LAYOUTS[0]) -> Iterator[Entry]:
    """The tensors of a model's adapters."""
    for layer in range(config.num_hidden_layers):
        for weight in _ADAPTERS:
            if weight.present(config):
                name = ADAPTER_PREFIX + layout.name(weight, layer)
                yield Entry(name, weight, ("layers", *weight.ours.split(".")), layer)


def at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, key: node[key], path, tree)


def put(tree: Any, path: tuple[str, ...], value: Any) -> None:
    at(tree, path[:-1])[path[-1]] = value
