"""The update: one batch in, a new train state out, in one jit."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from polyepo_jax.losses import PolicyLoss, SupervisedLoss, token_logprobs
from polyepo_jax.model import (
    ModelConfig,
    hidden_states,
    joined,
    logical_axes,
    output_params,
    rounded_output,
    split,
    unembed,
)
from polyepo_jax.model.attention import kernel_of
from polyepo_jax.sampling import Sampling
from polyepo_jax.sharding import (
    BATCH_AXES,
    Mesh,
    PartitionSpec,
    by_rows,
    constrain,
    num_devices_in_use,
    num_row_shards_in_use,
    param_shardings,
    replicated,
)
from polyepo_jax.training.packing import Packed, folding, pack, permuted
from polyepo_jax.training.update_numbers import combined, of_no_update, per_token, summary, weight_sums
from polyepo_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) after clipping the global gradient norm.

    max_grad_norm: 0 leaves gradients as they are.
    warmup_steps: updates of linear warm-up to the learning rate.
    decay_steps: updates, warm-up included, after which a cosine has brought the learning rate to 0; 0 keeps it
      constant. Independent of max_steps, so that a run can be prolonged.
    """

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    decay_steps: int = 0

    def __post_init__(self):
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("eps", "weight_decay", "max_grad_norm", "warmup_steps", "decay_steps"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"optimizer.decay_steps ({self.decay_steps}) includes the warm-up: it must exceed "
                f"optimizer.warmup_steps ({self.warmup_steps}), or be 0 for a constant learning rate"
            )

    def schedule(self, learning_rate: float) -> optax.Schedule:
        """The learning rate after so many updates."""
        if self.decay_steps:
            return optax.warmup_cosine_decay_schedule(0.0, learning_rate, self.warmup_steps, self.decay_steps)
        if self.warmup_steps:
            return optax.linear_schedule(0.0, learning_rate, self.warmup_steps)
        return optax.constant_schedule(learning_rate)

    def build(self, learning_rate: float) -> optax.GradientTransformation:
        """The optax transformation."""
        schedule = self.schedule(learning_rate)
        clip = optax.clip_by_global_norm(self.max_grad_norm) if self.max_grad_norm else optax.identity()
        adamw = optax.adamw(schedule, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay)
        return optax.chain(clip, adamw)


@dataclasses.dataclass(frozen=True)
class UpdateSpec:
    """What an update computes; static under jit.

    model, loss, optimizer, learning_rate: as named.
    prompt_length: leading positions of a row that are never trained; their logits are not computed.
    sampling: the distribution whose logprobs count: the one that was sampled.
    num_iterations: passes over the batch.
    mini_batch_rows: rows of an optimizer update; None for all of the batch.
    micro_batch_rows: rows of full length whose activations are held at a time; None for all of the mini-batch. Shorter
      rows share their room, and there are fewer micro-batches.
    skip_zero_advantage: leave out rows that have advantage 0 or no trained token. Loss and gradient stay what they
      were, since such rows add nothing to either (without a KL term) and the denominator counts all rows.
    max_logits: logits that a device holds at a time, at most, except that there are those of one position of its rows,
      and of half as many positions as a hidden state has components: with fewer, summing up the table's gradient takes
      longer than computing it. The default is 128 MiB of float32.
    stale: an earlier policy sampled the batch: how unequally that weighs its tokens is among the numbers.
    """

    model: ModelConfig
    loss: PolicyLoss | SupervisedLoss
    optimizer: OptimizerConfig
    learning_rate: float
    prompt_length: int
    sampling: Sampling = Sampling()
    num_iterations: int = 1
    mini_batch_rows: int | None = None
    micro_batch_rows: int | None = None
    skip_zero_advantage: bool = False
    max_logits: int = 2**25
    stale: bool = False

    @property
    def updates_once(self) -> bool:
        """Whether all rows are in one update, and no other follows."""
        return self.num_iterations == 1 and self.mini_batch_rows is None

    def chunk_length(self, num_rows: int, parts: int) -> int:
        """Positions of each row whose logits a device holds at a time, of so many rows and of 1 / parts of the
        vocabulary."""
        most = self.max_logits * parts // (num_rows * self.model.vocab_size)
        return max(most, self.model.hidden_size // 2 // num_rows, 1)

    def __post_init__(self):
        if self.skip_zero_advantage and self.loss.needs_reference:
            raise ValueError("skip_zero_advantage needs beta = 0: the KL term trains every row, whatever its advantage")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes.

    step: int32, batches seen.
    params: those that are trained, as of `model.split`. opt_state: optax's.
    nonfinite_in_a_row: int32, latest consecutive updates that were skipped because loss or gradient were not finite.
    """

    step: Array
    params: Any
    opt_state: Any
    nonfinite_in_a_row: Array


def init_state(spec: UpdateSpec, params) -> TrainState:
    """A state at step 0 that starts from `params`, which are those that are trained."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=spec.optimizer.build(spec.learning_rate).init(params),
        nonfinite_in_a_row=jnp.zeros((), jnp.int32),
    )


def state_shardings(spec: UpdateSpec, mesh: Mesh) -> Any:
    """A TrainState of shardings: moments lie beside their parameters, scalars everywhere."""
    shardings, _ = split(param_shardings(mesh, logical_axes(spec.model)))
    optimizer = spec.optimizer.build(spec.learning_rate)
    # The optimizer's tree with the parameters' shardings in place of the parameters, the rest replicated.
    abstract = jax.eval_shape(optimizer.init, jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), shardings))
    opt_shardings = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    everywhere: Any = replicated(mesh)
    return TrainState(step=everywhere, params=shardings, opt_state=opt_shardings, nonfinite_in_a_row=everywhere)


def packed_logprobs(spec: UpdateSpec, params, packed: Packed, fold: int) -> Array:
    """The model's logprob of each trained token given those of its text before it, [R, T], nats; else 0.

    Args:
      params: all of the model's.
    """
    hidden_RTD, _ = hidden_states(
        spec.model, params, packed.tokens_RT, packed.positions_RT, segments_BT=packed.segments_RT
    )
    # Rows that are alone train nothing in their prompts' columns; in a bin texts begin anywhere.
    first = spec.prompt_length if fold == 0 else 1

    num_trained = jnp.max(jnp.sum(packed.trained_RT, axis=1))

    def score(shared, hidden_RTD, targets_RT, trained_RT):
        output, num_trained = shared
        constants = rounded_output(spec.model, output)
        if spec.model.lora is not None:  # frozen: no gradient is to be summed up
            output, constants = {}, output | constants
        hidden_RTD = constrain(hidden_RTD, "batch", None, None)

        def logits(output, constants, hidden_RCD):
            logits_RCV = unembed(spec.model, output | constants, hidden_RCD)
            return jax.vmap(jax.vmap(spec.sampling.transform))(logits_RCV)

        # The rows are this device's; their logits are cut further along the vocabulary.
        mesh = jax.sharding.get_abstract_mesh()
        chunk_length = spec.chunk_length(targets_RT.shape[0], 1 if mesh.empty else mesh.shape["tensor"])
        if fold == 0:
            logprobs_RT = token_logprobs(logits, output, hidden_RTD, targets_RT, chunk_length, constants=constants)
        else:
            # What is trained first: as much as a bin of full rows trains, then what one of short rows may have beyond.
            usual = packed.tokens_RT.shape[1] - fold * spec.prompt_length
            order_RT = jnp.argsort(~trained_RT, axis=1, stable=True)
            back_RT = jnp.argsort(order_RT, axis=1)
            hidden_RTD = permuted(hidden_RTD, order_RT, back_RT)
            targets_RT = jnp.take_along_axis(targets_RT, order_RT, axis=1)
            first_length = usual if usual <= chunk_length else 0
            chunk_length = min(chunk_length, usual)
            cuts = (0, first_length, None), (first_length, targets_RT.shape[1], num_trained - first_length)
            parts = [
                token_logprobs(logits, output, hidden_RTD[:, a:b], targets_RT[:, a:b], chunk_length, wanted, constants)
                for a, b, wanted in cuts
                if a < b
            ]
            logprobs_RT = jnp.concatenate(parts, axis=1)
            logprobs_RT = jnp.take_along_axis(logprobs_RT, back_RT, axis=1)
        return jnp.where(trained_RT, logprobs_RT, 0)

    # The hidden state at position t predicts the token at t + 1.
    scored = hidden_RTD[:, first - 1 : -1], packed.tokens_RT[:, first:], packed.trained_RT[:, first:]
    logprobs_RT = by_rows(score, (output_params(spec.model, params), num_trained), *scored)
    return jnp.pad(logprobs_RT, ((0, 0), (first, 0)))


def _sums(
    spec: UpdateSpec, fold: int, frozen, params, packed: Packed, reference_params
) -> tuple[Array, dict[str, Array]]:
    """The loss before normalisation, and sums for the metrics."""
    logprobs = packed_logprobs(spec, joined(params, frozen), packed, fold)
    reference = logprobs
    if spec.loss.needs_reference:
        reference_params = joined(reference_params, frozen)
        reference = jax.lax.stop_gradient(packed_logprobs(spec, reference_params, packed, fold))
    # Where a step has one update, the policy before it is the one at hand.
    proximal = jax.lax.stop_gradient(logprobs) if spec.updates_once else packed.proximal_logprobs_RT
    sampler, trained = packed.sampler_logprobs_RT, packed.trained_RT
    losses, sums = spec.loss.tokens(logprobs, sampler, proximal, reference, packed.advantages_RT, trained)
    sums["tokens"] = jnp.sum(trained)
    sums["all_tokens"] = jnp.sum(packed.segments_RT != 0)
    sums["gap"] = jnp.sum(jnp.where(trained, jnp.abs(logprobs - sampler), 0))
    if spec.stale:
        sums |= weight_sums(logprobs, sampler, trained)
    return jnp.sum(losses * packed.weights_RT), sums


def _pack(spec: UpdateSpec, batch: Batch, fold: int) -> Packed:
    weights_B = spec.loss.token_weights(
        jnp.sum(batch.loss_mask_BT, axis=1), batch.tokens_BT.shape[1] - spec.prompt_length
    )
    kept_B = ~_adds_nothing(batch) if spec.skip_zero_advantage else jnp.ones(batch.tokens_BT.shape[0], bool)
    if spec.loss.importance_cap is None or spec.updates_once:  # nothing is to be carried that nobody reads
        batch = dataclasses.replace(batch, proximal_logprobs_BT=batch.sampler_logprobs_BT)
    return pack(batch, weights_B.astype(jnp.promote_types(spec.model.dtype, jnp.float32)), kept_B, fold)


def loss_and_gradient(spec: UpdateSpec, params, batch: Batch, reference_params=(), frozen=()):
    """Loss of a mini-batch, its gradient and sums for the metrics, accumulated over micro-batches.

    The same numbers, up to rounding, for any `micro_batch_rows`: rows are summed, then divided once. With
    `skip_zero_advantage` the sums count the rows that were not left out.
    """
    num_rows, length = batch.tokens_BT.shape
    micro_rows = spec.micro_batch_rows or num_rows
    fold = folding(kernel_of(spec.model), num_rows, micro_rows, length, num_devices_in_use())
    packed = _pack(spec, batch, fold)
    gradient_of = jax.value_and_grad(functools.partial(_sums, spec, fold, frozen), has_aux=True)

    if micro_rows == num_rows:
        (loss, sums), gradient = gradient_of(params, packed, reference_params)
    else:
        parts = _split_rows(packed, num_rows // micro_rows)

        def add(index, total):
            part = jax.tree.map(lambda x: x[index], parts)
            (loss, sums), gradient = gradient_of(params, part, reference_params)
            (total_loss, totals), total_gradient = total
            loss, gradient = jax.tree.map(jnp.add, (total_loss, total_gradient), (loss, gradient))
            return (loss, combined(totals, sums)), gradient

        shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], parts), reference_params)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # Empty bins are the last.
        num_filled = jnp.sum(jnp.any(parts.segments_RT != 0, axis=(1, 2)))
        (loss, sums), gradient = jax.lax.fori_loop(0, num_filled, add, zeros)
    scale = 1 / spec.loss.normalizer(batch.loss_mask_BT)
    return loss * scale.astype(loss.dtype), jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient), sums


def _with_proximal_logprobs(spec: UpdateSpec, params, batch: Batch) -> Batch:
    """The batch with what the policy of these parameters, all of them, says of its tokens before the first update."""
    num_rows = batch.tokens_BT.shape[0]
    packed = _pack(dataclasses.replace(spec, skip_zero_advantage=False), batch, 0)
    parts = _split_rows(packed, num_rows // (spec.micro_batch_rows or spec.mini_batch_rows or num_rows))
    scored = jax.lax.map(lambda part: packed_logprobs(spec, params, part, 0), parts)
    return dataclasses.replace(batch, proximal_logprobs_BT=scored.reshape(batch.tokens_BT.shape))


def _adds_nothing(batch: Batch) -> Array:
    """Rows that have no part in a policy loss without KL term, bool[B]. A NaN advantage has one: it must be seen."""
    return (batch.advantages_B == 0) | ~jnp.any(batch.loss_mask_BT, axis=1)


def _split_rows(tree: Any, num_parts: int) -> Any:
    """[B, ...] -> [parts, B / parts, ...]; each part keeps all devices busy where there is a mesh."""
    mesh = jax.sharding.get_abstract_mesh()

    def split(x):
        x = x.reshape(num_parts, -1, *x.shape[1:])
        if mesh.empty or x.shape[1] % num_row_shards_in_use():
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES))

    return jax.tree.map(split, tree)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def pass_step(spec: UpdateSpec, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
    """Counts a step whose batch has nothing to train on, every advantage being 0 and the loss without a KL term.

    Parameters, moments and the schedule stay: Adam would move the parameters on by its momentum.

    Returns:
      The new state (the old one is donated), and scalars as of `train_step`: a learning rate of 0, for nothing is
      updated, and NaN for what is said of tokens, of which there were none.
    """
    new = dataclasses.replace(state, step=state.step + 1)
    stats = of_no_update(spec.loss.importance_cap is not None, spec.stale)
    return new, stats | {"nonfinite_in_a_row": new.nonfinite_in_a_row + 0}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    spec: UpdateSpec, state: TrainState, batch: Batch, reference_params=(), frozen=()
) -> tuple[TrainState, dict[str, Array]]:
    """Updates the state on a batch: `num_iterations` passes of one optimizer update a mini-batch.

    An update whose loss or gradient is not finite is skipped and counted; parameters and moments stay.

    Args:
      spec: static.
      state: donated.
      batch: B rows, cut into mini-batches in order.
      reference_params: the initial policy's, where the loss has a KL term; like the state's.
      frozen: the model's other parameters, as of `model.split`: no gradient of them is computed.

    Returns:
      The new state, and scalars: `loss`, `grad_norm`, `clip_frac`, `kl`, `learning_rate`, means over the updates, and
      `importance_capped_frac` where the loss has an importance cap; `ratio_mean` and `ratio_max` of the ratio that the
      loss clips, over tokens and updates; `sampler_gap`, the mean |trainer logprob - sampler logprob| before the first
      update, nats (like `clip_frac` and the ratio's of the rows that were not skipped; NaN if all were), and where the
      batch is stale `effective_sample_size`, as of `update_numbers`, of the same tokens; `tokens`, real ones of prompts
      and completions that all updates went through; `nonfinite`, updates skipped, and `nonfinite_in_a_row` of the new
      state.
    """
    num_rows = batch.tokens_BT.shape[0]
    num_mini_batches = num_rows // (spec.mini_batch_rows or num_rows)
    optimizer, schedule = spec.optimizer.build(spec.learning_rate), spec.optimizer.schedule(spec.learning_rate)
    if spec.loss.importance_cap is not None and not spec.updates_once:
        batch = _with_proximal_logprobs(spec, joined(state.params, frozen), batch)
    mini_batches = _split_rows(batch, num_mini_batches)

    def update(state: TrainState, index: Array):
        mini_batch = jax.tree.map(lambda x: x[index % num_mini_batches], mini_batches)
        loss, gradient, sums = loss_and_gradient(spec, state.params, mini_batch, reference_params, frozen)
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)

        def keep_unless_finite(new, old):
            return jnp.where(finite, new, old)

        new_state = TrainState(
            step=state.step,
            params=jax.tree.map(keep_unless_finite, params, state.params),
            opt_state=jax.tree.map(keep_unless_finite, opt_state, state.opt_state),
            nonfinite_in_a_row=jnp.where(finite, 0, state.nonfinite_in_a_row + 1),
        )
        num_updates = optax.tree.get(state.opt_state, "ScaleByScheduleState").count
        stats = {"loss": loss, "grad_norm": grad_norm, "nonfinite": ~finite, "learning_rate": schedule(num_updates)}
        return new_state, stats | per_token(sums)

    indices = jnp.arange(spec.num_iterations * num_mini_batches)
    state, stats = jax.lax.scan(update, state, indices, unroll=indices.size == 1)
    state = dataclasses.replace(state, step=state.step + 1)
    chex.assert_shape(stats["loss"], indices.shape)
    # A copy of the last: the state itself is donated.
    return state, summary(stats) | {"nonfinite_in_a_row": state.nonfinite_in_a_row + 0}
