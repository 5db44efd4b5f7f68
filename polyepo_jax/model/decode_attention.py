"""Attention of one token a row to a prompt that rows share, and to the row's own tokens in a `Ring`."""

import functools
import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polyepo_jax.model.cache import Ring
from polyepo_jax.model.config import ModelConfig
from polyepo_jax.sharding import PartitionSpec, activation_spec, mesh_platform
from polyepo_jax.types import Array

# Slots of a ring that the Triton kernel reads at a time; rings on accelerators hold a multiple of it.
TRITON_BLOCK = 32
_WARPS, _STAGES = 2, 3
# Tensor cores multiply at least so many rows.
_LEAST_ROWS = 16


class Partial(NamedTuple):
    """Attention to some of the keys, in float32 at least: attended / total, if there are no others.

    attended: sum of values weighted with exp(score - top), [..., A].
    top: the largest score. total: sum of the weights.
    """

    attended: Array
    top: Array
    total: Array

    def merge(self, other: "Partial") -> Array:
        """Attention to the keys of both."""
        top = jnp.maximum(self.top, other.top)
        mine, theirs = jnp.exp(self.top - top), jnp.exp(other.top - top)
        attended = self.attended * mine[..., None] + other.attended * theirs[..., None]
        return attended / (self.total * mine + other.total * theirs)[..., None]


def attend_to(query_BKQA: Array, keys_BKCA: Array, values_BKCA: Array, mask_BC: Array) -> Partial:
    """Attention of Q unscaled queries to keys of their head, as `Partial` of [B, K, Q]; True = may be looked at.

    A row that may look nowhere gets a total of no meaning, and so low a top that merging leaves nothing of it.
    """
    float_dtype = jnp.promote_types(query_BKQA.dtype, jnp.float32)
    scores = jnp.einsum("BKQA,BKCA->BKQC", query_BKQA, keys_BKCA, preferred_element_type=float_dtype)
    # A finite value: with -inf a row that is masked throughout would be 0 / 0.
    scores = jnp.where(mask_BC[:, None, None], scores * query_BKQA.shape[-1] ** -0.5, jnp.finfo(float_dtype).min)
    top_BKQ = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top_BKQ[..., None])
    attended = jnp.einsum(
        "BKQC,BKCA->BKQA", weights.astype(values_BKCA.dtype), values_BKCA, preferred_element_type=float_dtype
    )
    return Partial(attended, top_BKQ, jnp.sum(weights, axis=-1))


def attend_shared(
    query_BHA: Array, prompt_keys_PKTA: Array, prompt_values_PKTA: Array, prompt_mask_PT: Array, own: Partial
) -> Array:
    """Attention of one token a row to a prompt that B / P adjacent rows share, and to the row's own tokens.

    As `attend` of both, of which the prompt is read once for all of its rows.

    Args:
      query_BHA: unscaled.
      prompt_keys_PKTA, prompt_values_PKTA, prompt_mask_PT: row b's prompt is b // (B / P); True = real token.
      own: of the row's own tokens, [B, K, G].

    Returns:
      [B, H, A], in the queries' dtype.
    """
    B, H, A = query_BHA.shape
    P, K = prompt_keys_PKTA.shape[:2]
    N, G = B // P, H // K

    def by_row(x_PKQ):  # [P, K, N * G, ...] -> [B, K, G, ...]
        rest = x_PKQ.shape[3:]
        return x_PKQ.reshape(P, K, N, G, *rest).swapaxes(1, 2).reshape(B, K, G, *rest)

    query_PKQA = query_BHA.reshape(P, N, K, G, A).swapaxes(1, 2).reshape(P, K, N * G, A)
    of_prompt = Partial(*map(by_row, attend_to(query_PKQA, prompt_keys_PKTA, prompt_values_PKTA, prompt_mask_PT)))
    return own.merge(of_prompt).astype(query_BHA.dtype).reshape(B, H, A)


def attends_in_triton(config: ModelConfig) -> bool:
    """Whether a decode step reads the ring with `triton_attend` on the platform of the mesh in use.

    On GPUs, but not in float32, which its products would round to 10 bits; and as long as JAX has Pallas for Triton,
    which 0.12 announces it will give up.
    """
    if config.attention == "xla" or mesh_platform() != "gpu" or config.dtype != "bfloat16":
        return False
    fits = config.head_dim >= 16 and config.head_dim & (config.head_dim - 1) == 0
    return fits and importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def attend_to_ring(triton: bool, query_BHA: Array, ring: Ring, keys_BKCA: Array, values_BKCA: Array) -> Partial:
    """Attention of one token a row to those of a layer's ring that are the row's, its own included: [B, K, G]."""
    B, H, A = query_BHA.shape
    K = keys_BKCA.shape[1]
    query_BKGA = query_BHA.reshape(B, K, H // K, A)
    if triton:
        return _triton(query_BKGA, keys_BKCA, values_BKCA, ring.lengths_B, ring.step)
    return attend_to(query_BKGA, keys_BKCA, values_BKCA, ring.mask_BC())


def triton_attend(
    query_BKGA: Array, keys_BKCA: Array, values_BKCA: Array, lengths_B: Array, step: Array, interpret: bool = False
) -> Partial:
    """`attend_to` a ring of rows on one device, which reads no slots but the rows' own, in whole blocks.

    Args:
      keys_BKCA, values_BKCA: C is a multiple of TRITON_BLOCK.
      lengths_B, step: as of `Ring`, the keys and values of this step written already.
      interpret: run on any device, for tests.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    B, K, G, A = query_BKGA.shape
    C = keys_BKCA.shape[2]
    if C % TRITON_BLOCK:
        raise ValueError(f"a ring of {C} slots is not a multiple of {TRITON_BLOCK}")
    rows = max(_LEAST_ROWS, 1 << (G - 1).bit_length())
    query_BKQA = jnp.pad(query_BKGA, ((0, 0), (0, 0), (0, rows - G), (0, 0)))
    counts_B = jnp.minimum(lengths_B, C - 1) + 1
    newest = (step % C).astype(jnp.int32).reshape(1)

    def one_head(*shape: int):  # of one row
        return pl.BlockSpec((None, None, *shape), lambda b, k: (b, k, *(0,) * len(shape)))

    float_shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    attended, top, total = pl.pallas_call(
        functools.partial(_triton_kernel, scale=A**-0.5),
        grid=(B, K),
        in_specs=[
            one_head(rows, A),
            one_head(C, A),
            one_head(C, A),
            pl.BlockSpec((1,), lambda b, k: (b,)),
            pl.BlockSpec((1,), lambda b, k: (0,)),
        ],
        out_specs=[one_head(rows, A), one_head(rows), one_head(rows)],
        out_shape=[float_shape((B, K, rows, A)), float_shape((B, K, rows)), float_shape((B, K, rows))],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name="attend_to_ring",
    )(query_BKQA, keys_BKCA, values_BKCA, counts_B, newest)
    return Partial(attended[:, :, :G], top[:, :, :G], total[:, :, :G])


def _triton_kernel(
    query_ref, keys_ref, values_ref, count_ref, newest_ref, attended_ref, top_ref, total_ref, *, scale: float
):
    """One row's head: blocks of slots from that of its oldest token on, around the ring."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    capacity, block = keys_ref.shape[0], TRITON_BLOCK
    count, newest = count_ref[0], newest_ref[0]
    query_QA = query_ref[...]
    oldest = (newest - count + 1 + capacity) % capacity
    num_blocks = jnp.minimum((oldest % block + count + block - 1) // block, capacity // block)

    def attend_block(i, carry):
        attended_QA, top_Q, total_Q = carry
        start = (oldest // block + i) % (capacity // block) * block
        there = pl.ds(start, block)
        scores_QS = plgpu.dot(query_QA, keys_ref[there, :].T) * scale
        ages_S = (newest - (start + jnp.arange(block)) + capacity) % capacity
        scores_QS = jnp.where((ages_S < count)[None], scores_QS, jnp.finfo(jnp.float32).min)
        new_Q = jnp.maximum(top_Q, jnp.max(scores_QS, axis=1))
        kept_Q, weights_QS = jnp.exp(top_Q - new_Q), jnp.exp(scores_QS - new_Q[:, None])
        values_SA = values_ref[there, :]
        attended_QA = attended_QA * kept_Q[:, None] + plgpu.dot(weights_QS.astype(values_SA.dtype), values_SA)
        return attended_QA, new_Q, total_Q * kept_Q + jnp.sum(weights_QS, axis=1)

    rows = query_QA.shape[0]
    carry = (
        jnp.zeros(query_QA.shape, jnp.float32),
        jnp.full(rows, jnp.finfo(jnp.float32).min, jnp.float32),
        jnp.zeros(rows, jnp.float32),
    )
    attended_ref[...], top_ref[...], total_ref[...] = jax.lax.fori_loop(0, num_blocks, attend_block, carry)


def _triton(query_BKGA: Array, keys_BKCA: Array, values_BKCA: Array, lengths_B: Array, step: Array) -> Partial:
    """`triton_attend` on every device of the mesh, each with its rows and heads: XLA cannot cut a kernel itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return triton_attend(query_BKGA, keys_BKCA, values_BKCA, lengths_B, step)
    of_heads = activation_spec(query_BKGA.shape, ("batch", "heads", None, None))
    of_rows = activation_spec(lengths_B.shape, ("batch",))
    without_last = PartitionSpec(*of_heads[:3])
    parts = jax.shard_map(
        lambda *arrays: tuple(triton_attend(*arrays)),
        in_specs=(of_heads, of_heads, of_heads, of_rows, PartitionSpec()),
        out_specs=(of_heads, without_last, without_last),
        check_vma=False,
    )(query_BKGA, keys_BKCA, values_BKCA, lengths_B, step)
    return Partial(*parts)
