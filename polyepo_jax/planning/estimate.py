"""Memory and work of a run by arithmetic alone: what `plan` says where nothing is compiled, and what it searches with.

All figures are per device. Weights, optimizer and cache are exact; activations and the rest are estimates that follow
the compiled programs (`tests/planning/test_estimate.py` says how closely).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from polyepo_jax.config import Config
from polyepo_jax.config.meshes import abstract_params, update_rows
from polyepo_jax.config.static_arguments import keeps_reference, rollouts_on, update_spec
from polyepo_jax.model import ModelConfig, logical_axes, split
from polyepo_jax.model.attention import KEPT_LENGTH, query_blocks
from polyepo_jax.planning.hardware import Chip
from polyepo_jax.sharding import AXES, param_shardings
from polyepo_jax.training.packing import folding
from polyepo_jax.training.update import UpdateSpec, init_state, state_shardings

# A TPU's vectors: heads of 64 take as much memory as heads of 128.
_TPU_LANES = 128

# Of a position of an update whose rows are packed: where it comes from, and what `training.packing.Packed` says of it.
_PACKED_BYTES = 4 + 4 + 4 + 4 + 1 + 4 + 4 + 4

# One pass over the data-center network that joins TPU slices, bytes/s of a chip: 100 Gbit/s for a host of four.
SLICE_BANDWIDTH = 100e9 / 8 / 4


def num_scores(length: int) -> int:
    """Scores of a row and head that the XLA kernel computes, those of its blocks that are masked included."""
    return sum((stop - start) * stop for start, stop in query_blocks(length))


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of one device's part of abstract arrays."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device while a program runs; `resident` is what lies there beside it.

    weights: parameters, trained or frozen, and a reference policy's. optimizer: moments.
    gradients: of a mini-batch, and of a micro-batch beside them.
    cache: keys and values. copies: weights in the compute dtype, as long as they are gathered. activations: the rest.
    in_flight: rollouts that were sampled ahead.
    """

    weights: int
    optimizer: int
    gradients: int = 0
    cache: int = 0
    copies: int = 0
    activations: int = 0
    in_flight: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does for a program.

    flops: of matrix products. hbm_bytes: between memory and compute units. sent_bytes: to other devices.
    """

    flops: float
    hbm_bytes: float
    sent_bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: float) -> "Work":
        return Work(*(count * value for value in dataclasses.astuple(self)))

    def seconds(self, chip: Chip) -> tuple[float | None, str | None]:
        """The least time on such a device, all three overlapping, and which of them takes it; None if unknown."""
        if chip.peak_flops is None or chip.hbm_bandwidth is None or chip.interconnect_bandwidth is None:
            return None, None
        times = {
            "compute": self.flops / chip.peak_flops,
            "memory": self.hbm_bytes / chip.hbm_bandwidth,
            "interconnect": self.sent_bytes / chip.interconnect_bandwidth,
        }
        bound_by = max(times, key=times.__getitem__)
        return times[bound_by], bound_by


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers that everything here is computed from.

    model, sizes: of the run; sizes of the mesh along data, fsdp, tensor. kernel: of attention.
    lanes: elements that the last axis of an array is padded to a multiple of in memory.
    """

    model: ModelConfig
    sizes: tuple[int, int, int]
    kernel: str
    lanes: int = 1

    @property
    def num_shards(self) -> int:
        """Devices that rows are cut over."""
        return self.sizes[0] * self.sizes[1]

    @property
    def tensor(self) -> int:
        return self.sizes[2]

    @property
    def on_tpu(self) -> bool:
        """Whether the layout in memory is a TPU's."""
        return self.lanes == _TPU_LANES

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return jnp.dtype(self.model.dtype).itemsize

    @property
    def padded_head_dim(self) -> int:
        """Elements that a head takes in memory."""
        return -(-self.model.head_dim // self.lanes) * self.lanes

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of a layer."""
        m = self.model
        heads = (m.num_attention_heads + m.num_key_value_heads) * m.head_dim
        return 2 * m.hidden_size * heads + 3 * m.hidden_size * m.intermediate_size

    @property
    def output_weights(self) -> int:
        return self.model.hidden_size * self.model.vocab_size

    @property
    def matrix_weights(self) -> int:
        """Elements of all matrices, a tied embedding once."""
        tables = 1 if self.model.tie_word_embeddings else 2
        return self.model.num_hidden_layers * self.layer_weights + tables * self.output_weights

    @property
    def adapter_weights(self) -> int:
        """Elements of the adapters of a layer."""
        lora, sizes = self.model.lora, self.model.matrix_sizes
        return 0 if lora is None else lora.rank * sum(sum(sizes[name]) for name in lora.targets)

    @property
    def trained_weights(self) -> int:
        """Elements of all matrices that are trained."""
        return self.model.num_hidden_layers * self.adapter_weights if self.model.lora else self.matrix_weights

    def attention_flops(self, length: int) -> float:
        """Of one row's causal attention in one layer, both products, all heads."""
        full = 4 * self.model.num_attention_heads * self.model.head_dim * length**2
        if self.kernel != "xla":
            return full / 2  # blocks above the diagonal are skipped
        return full * num_scores(length) / length**2

    def forward_flops(self, length: int) -> float:
        """Of one row through all layers, without the output projection."""
        return self.model.num_hidden_layers * (2 * length * self.layer_weights + self.attention_flops(length))


def shape_of(config: Config, sizes: tuple[int, int, int], platform: str) -> Shape:
    """The shape on a platform: "tpu", "gpu" or "cpu"."""
    kernel = config.model.attention
    if kernel == "auto":
        kernel = {"tpu": "splash", "gpu": "cudnn" if config.model.dtype == "bfloat16" else "xla"}.get(platform, "xla")
    return Shape(config.model, sizes, kernel, lanes=_TPU_LANES if platform == "tpu" else 1)


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes of a device, exact: parameters that are trained, that are frozen, of a reference policy; moments; rollouts
    that were sampled ahead, for which the parameters that sampled them need not be kept."""

    trained: int
    frozen: int
    reference: int
    optimizer: int
    in_flight: int = 0

    @property
    def own(self) -> int:
        """The policy's own parameters."""
        return self.trained + self.frozen

    @property
    def weights(self) -> int:
        """All parameters."""
        return self.own + self.reference


def state_bytes(config: Config, sizes: tuple[int, int, int]) -> StateBytes:
    """What lies on a device throughout a run."""
    spec = update_spec(config)
    # What leaves the arrays as they are would only make further entries of the cache.
    model = dataclasses.replace(spec.model, remat="none", attention="auto")
    plain = dataclasses.replace(spec, model=model, mini_batch_rows=None, micro_batch_rows=None)
    trained, frozen, optimizer = _state_bytes(plain, sizes)
    in_flight = 0
    if config.algorithm.staleness:
        mesh: Any = AbstractMesh(sizes, AXES)
        rollouts = rollouts_on(config, mesh)
        in_flight = config.algorithm.staleness * shard_bytes(rollouts, jax.tree.map(lambda x: x.sharding, rollouts))
    return StateBytes(trained, frozen, trained if keeps_reference(config) else 0, optimizer, in_flight)


@functools.lru_cache(maxsize=256)
def _state_bytes(spec: UpdateSpec, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    mesh: Any = AbstractMesh(sizes, AXES)
    trees = zip(split(abstract_params(spec.model)), split(param_shardings(mesh, logical_axes(spec.model))), strict=True)
    trained, frozen = (shard_bytes(*tree) for tree in trees)
    state = jax.eval_shape(lambda: init_state(spec, split(abstract_params(spec.model))[0]))
    return trained, frozen, shard_bytes(state.opt_state, state_shardings(spec, mesh).opt_state)


def update_memory(config: Config, shape: Shape) -> Memory:
    """Of `train_step`, at the fuller of its two peaks.

    One is where logits are differentiated: what the layers keep for the backward pass is complete, a chunk of logits
    and the output table's gradient lie beside it. The other is where the layers are: the micro-batch's gradients fill
    up beside those accumulated, with the activations of a single layer.
    """
    model, spec = config.model, update_spec(config)
    state = state_bytes(config, shape.sizes)
    rows = update_rows(config)[1]
    accumulates = rows < (spec.mini_batch_rows or config.prompts_per_step * config.num_generations)
    accumulated = state.trained if accumulates else 0
    size, t, f = shape.itemsize, shape.tensor, shape.sizes[1]
    local = rows / shape.num_shards
    length = config.max_prompt_length + config.max_completion_length
    scored = local * config.max_completion_length
    fold = update_folding(config, shape)
    bins, size_of_bin = local / fold, length * fold
    kept = model.num_hidden_layers * _kept_by_layer(shape, bins, size_of_bin)
    # The rows; and where they are packed, on every device, for any may take any of them.
    batch = config.prompts_per_step * config.num_generations * length * (4 + 4 + 2) / shape.num_shards
    if _packs(config, shape):
        batch += (spec.mini_batch_rows or config.prompts_per_step * config.num_generations) * length * _PACKED_BYTES
    # Weights are converted where they lie, all layers at once, then gathered: a layer, and the next one ahead of time.
    converted = model.num_hidden_layers * shape.layer_weights / t / f * size * (model.dtype != model.weights_dtype)
    gathered = f > 1 or model.dtype != model.weights_dtype
    table = shape.output_weights / t

    logits = 4 * bins * chunk_length(config, shape) * model.vocab_size / t
    if chunk_length(config, shape) < _most_scored(config, shape):
        # In the loop over chunks the table's gradient is summed up, whole and in the parameters' dtype; where the
        # vocabulary is cut, a chunk's gradient lies beside the sum.
        output = logits
        if model.lora is None:
            output += table * jnp.dtype(model.param_dtype).itemsize * (2 if t > 1 else 1)
    else:
        # Without a loop the gradient at the targets is an array of its own, moved to where the vocabulary is cut.
        output = logits * (3 if t > 1 and shape.num_shards > 1 else 1)
    at_output = Memory(
        weights=state.weights,
        optimizer=state.optimizer,
        gradients=accumulated,
        copies=int(converted + table * size * gathered),
        activations=int(kept + output + 3 * scored * model.hidden_size * size + batch),
        in_flight=state.in_flight,
    )
    at_layers = Memory(
        weights=state.weights,
        optimizer=state.optimizer,
        gradients=accumulated + state.trained,
        copies=int(converted + 2 * shape.layer_weights / t * size * gathered),
        activations=int(kept + _differentiated_layer(shape, bins, size_of_bin) + batch),
        in_flight=state.in_flight,
    )
    return max(at_output, at_layers, key=lambda memory: memory.total)


def update_folding(config: Config, shape: Shape) -> int:
    """Rows of full length that a bin of an update has room for, at least 1; attention of "xla" is over a whole bin."""
    rows = update_spec(config).mini_batch_rows or config.prompts_per_step * config.num_generations
    length = config.max_prompt_length + config.max_completion_length
    return max(folding(shape.kernel, rows, update_rows(config)[1], length, math.prod(shape.sizes)), 1)


def _packs(config: Config, shape: Shape) -> bool:
    """Whether an update lays texts end to end."""
    rows = update_spec(config).mini_batch_rows or config.prompts_per_step * config.num_generations
    return update_rows(config)[1] < rows and shape.kernel != "cudnn"


def _most_scored(config: Config, shape: Shape) -> int:
    """Positions of a bin that may be trained."""
    if not _packs(config, shape):
        return config.max_completion_length
    return update_folding(config, shape) * (config.max_prompt_length + config.max_completion_length) - 1


def chunk_length(config: Config, shape: Shape) -> int:
    """Positions of a bin whose logits a device holds at a time."""
    fold = update_folding(config, shape)
    bins = max(int(update_rows(config)[1] / shape.num_shards / fold), 1)
    return min(update_spec(config).chunk_length(bins, shape.tensor), fold * config.max_completion_length)


def _kept_by_layer(shape: Shape, rows: float, length: int) -> float:
    """Bytes that a layer leaves for the backward pass: its input, and as `remat` says the outputs of products."""
    model, t, tokens = shape.model, shape.tensor, rows * length
    D, F, A = model.hidden_size, model.intermediate_size, model.head_dim
    H, K = model.num_attention_heads, model.num_key_value_heads
    kept = tokens * D / t
    if model.remat != "full":
        kept += tokens * ((H + 2 * K) * A + 2 * F) / t + 2 * tokens * D / t
        if model.lora is not None:
            kept += tokens * model.lora.rank * len(model.lora.targets)
    if model.remat == "none":
        kept += tokens * (4 * D + 3 * F + (H + K) * A) / t
        if shape.kernel == "xla":
            kept += H * rows * (num_scores(length) if length <= KEPT_LENGTH else 0) / t
    return kept * shape.itemsize


def _differentiated_layer(shape: Shape, rows: float, length: int) -> float:
    """Bytes of the layer that is being differentiated: what is between its products, and the gradients of that.

    Whole: the inputs of attention and of the MLP, the gradients of output and input. Cut: queries, keys, values and
    what was attended to; gate, up and their product with the gradients of the three.
    """
    model, t, tokens = shape.model, shape.tensor, rows * length
    D, F, A = model.hidden_size, model.intermediate_size, shape.padded_head_dim
    H, K = model.num_attention_heads, model.num_key_value_heads
    layer = tokens * (4 * D + ((2 * H + 2 * K) * A + 6 * F) / t) * shape.itemsize
    if shape.kernel == "splash":
        layer += 4 * tokens * H * shape.lanes / t  # each query's normaliser, on all lanes
    if shape.kernel == "xla":
        layer += 3 * 4 * H * rows * max(stop - start for start, stop in query_blocks(length)) * length / t
        if model.remat != "none" and length <= KEPT_LENGTH:
            layer += H * rows * num_scores(length) / t * shape.itemsize  # kept from when the layer is computed again
    return layer


def update_work(config: Config, shape: Shape) -> Work:
    """Of one step's updates on all rows."""
    model, spec = config.model, update_spec(config)
    rows = config.prompts_per_step * config.num_generations * spec.num_iterations
    micro_rows = update_rows(config)[1]
    num_micro = rows / micro_rows
    length = config.max_prompt_length + config.max_completion_length
    L, t, f = model.num_hidden_layers, shape.tensor, shape.sizes[1]
    fold = update_folding(config, shape)
    layers, attention = 2 * length * shape.layer_weights, shape.attention_flops(fold * length) / fold
    down = 2 * length * model.hidden_size * model.intermediate_size
    output = 2 * config.max_completion_length * shape.output_weights
    # Chunk by chunk, logits are computed again; where one holds what a full row trains, they are kept.
    output_products = (3 if model.lora is None else 2) + (
        chunk_length(config, shape) < fold * config.max_completion_length
    )
    # A backward pass is two products for each of the forward's, or one where the matrix is frozen; attention kernels
    # compute scores again, twice, and XLA's once where they are not kept.
    backward_attention = 3.5 * attention
    if shape.kernel == "xla":
        backward_attention = (2 if fold * length <= KEPT_LENGTH else 2.5) * attention
    again = {"none": 0.0, "dots": attention, "full": layers - down + attention}[model.remat]
    low = 2 * length * shape.adapter_weights
    products = 3 * layers if model.lora is None else 2 * layers + 3 * low
    per_row = L * (products + attention + backward_attention + again) + output_products * output
    if spec.loss.needs_reference:
        per_row += L * (layers + attention) + output
    flops = rows * per_row / math.prod(shape.sizes)

    size = shape.itemsize
    weight_bytes = shape.matrix_weights / t * size
    activations = micro_rows / shape.num_shards * length * model.hidden_size * size
    passes = 3 + (model.remat == "full")
    hbm = num_micro * (passes * weight_bytes + L * passes * 12 * activations)
    hbm += 8 * shape.trained_weights * 4 / t / f  # the optimizer reads and writes weights, moments and gradients
    # Gathered forward and backward, gradients scattered.
    sent = num_micro * (3 if model.lora is None else 2) * (f - 1) / f * weight_bytes
    sent += num_micro * L * 4 * passes * (t - 1) / t * activations
    sent += num_micro * 2 * (shape.sizes[0] - 1) / shape.sizes[0] * shape.trained_weights * 4 / t / f
    return Work(flops, hbm, sent)
