"""Grouped-query attention, as functions of arrays.

`attend` is the reference: any mask, any length. `self_attend` is causal attention of whole sequences, in the kernel
of the platform: none of them asks for all [T, T] scores of a long sequence at a time (how many blocks of them XLA's own
kernel holds is up to XLA, on CPUs nearly all).
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from polyepo_jax.model.config import ModelConfig
from polyepo_jax.sharding import activation_spec, mesh_platform
from polyepo_jax.types import Array

# Tokens of a row whose scores the XLA kernel keeps for the backward pass, and queries whose scores it holds at a time.
KEPT_LENGTH = 1024
# Tile of the splash kernel; the hardware's lanes are 128 wide, and lengths and head sizes are padded to that.
_SPLASH_BLOCK, _LANES = 512, 128


def attend(query_BTHA: Array, keys_BCKA: Array, values_BCKA: Array, mask_BTC: Array) -> Array:
    """Softmax attention in which key/value head k serves the query heads k * g ... k * g + g - 1.

    Args:
      query_BTHA: unscaled queries; the scale A^-0.5 is applied here.
      keys_BCKA, values_BCKA: H is a multiple g of K.
      mask_BTC: bool, True where query t may look at slot c.

    Returns:
      [B, T, H, A], in the queries' dtype. Scores and softmax are in float32 at least. A query that may look
      nowhere (padding) yields a finite value of no meaning.
    """
    chex.assert_rank([query_BTHA, keys_BCKA, values_BCKA, mask_BTC], [4, 4, 4, 3])
    B, T, H, A = query_BTHA.shape
    K = keys_BCKA.shape[2]
    float_dtype = jnp.promote_types(query_BTHA.dtype, jnp.float32)
    G = H // K
    # The queries of a key/value head in one axis Q = G * T: products of two axes each, which every backend has.
    query_BKQA = query_BTHA.reshape(B, T, K, G, A).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, A)
    scores = jnp.einsum("BKQA,BCKA->BKQC", query_BKQA, keys_BCKA, preferred_element_type=float_dtype)
    # A finite value: with -inf a row that is masked throughout would be 0 / 0.
    scores = scores.reshape(B, K, G, T, -1) * A**-0.5
    scores = jnp.where(mask_BTC[:, None, None], scores, jnp.finfo(float_dtype).min)
    weights_BKQC = jax.nn.softmax(scores, axis=-1).astype(query_BTHA.dtype).reshape(B, K, G * T, -1)
    attended_BKQA = jnp.einsum("BKQC,BCKA->BKQA", weights_BKQC, values_BCKA)
    return attended_BKQA.reshape(B, K, G, T, A).transpose(0, 3, 1, 2, 4).reshape(B, T, H, A)


def kernel_of(config: ModelConfig) -> str:
    """The kernel of whole sequences on the platform of the mesh in use: "xla", "cudnn" or "splash"."""
    if config.attention != "auto":
        return config.attention
    platform = mesh_platform()
    if platform == "tpu":
        return "splash"
    # cuDNN has no float32 attention.
    return "cudnn" if platform == "gpu" and config.dtype == "bfloat16" else "xla"


def knows_segments(kernel: str) -> bool:
    """Whether `self_attend` in this kernel tells several texts of a row apart."""
    return kernel != "cudnn"


def self_attend(kernel: str, query_BTHA: Array, keys_BTKA: Array, values_BTKA: Array, segments_BT: Array) -> Array:
    """Causal attention among the tokens of each text; of no meaning on padding, where its gradient is to be 0.

    Args:
      kernel: "xla", "cudnn" or "splash".
      query_BTHA, keys_BTKA, values_BTKA: as of `attend`, of the same T tokens.
      segments_BT: the text that a token is of, 0 for padding; or bool, True = real token, where each row has one text.
        One is all that "cudnn" allows.
    """
    if kernel == "splash":
        return _splash(query_BTHA, keys_BTKA, values_BTKA, segments_BT)
    if kernel == "cudnn":
        return cudnn_attend(query_BTHA, keys_BTKA, values_BTKA, segments_BT != 0)
    return _blocked(query_BTHA, keys_BTKA, values_BTKA, segments_BT)


@jax.custom_vjp
def _blocked(query_BTHA: Array, keys_BTKA: Array, values_BTKA: Array, segments_BT: Array) -> Array:
    """`attend` for blocks of queries, each with the keys up to its end.

    The gradient is its own (Dao et al. 2022, appendix B.2): it passes half as often over the scores as that of the
    softmax, which on a CPU is most of what attention costs. Rows of more than KEPT_LENGTH tokens compute them again,
    unless XLA merges that with the forward pass, as it does where both are in one loop body.
    """
    return _blocked_forward(query_BTHA, keys_BTKA, values_BTKA, segments_BT)[0]


def query_blocks(length: int) -> list[tuple[int, int]]:
    """Where the XLA kernel's blocks of queries begin and end.

    Up to eight, as long as each then has 64 to KEPT_LENGTH queries: more save little, and take longer to compile.
    """
    size = min(max(-(-length // (8 * 64)) * 64, 64), KEPT_LENGTH)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _grouped(x_BTHA: Array, num_kv_heads: int) -> Array:
    """[B, T, H, A] -> [B, K, G, T, A], with the query heads of a key/value head beside each other."""
    B, T, H, A = x_BTHA.shape
    return x_BTHA.reshape(B, T, num_kv_heads, H // num_kv_heads, A).transpose(0, 2, 3, 1, 4)


def _ungrouped(blocks_BKGtA: list[Array]) -> Array:
    """Blocks along T of what `_grouped` returns, back to [B, T, H, A]."""
    x = jnp.concatenate(blocks_BKGtA, axis=3)
    B, K, G, T, A = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, A)


def _exponentials(query_BKQA: Array, keys_BCKA: Array, segments_BT: Array, start: int, stop: int):
    """exp(score - largest score) of the queries `start` to `stop`, and its sums.

    Args:
      query_BKQA: unscaled, grouped as Q = G * t.

    Returns:
      [B, K, Q, stop] in the queries' dtype, 0 where a query may not look, 1 throughout where it may look nowhere; and
      [B, K, Q, 1], in float32 at least.
    """
    B, K, Q, _ = query_BKQA.shape
    float_dtype = jnp.promote_types(query_BKQA.dtype, jnp.float32)
    seen_Btc = (segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]) & (segments_BT[:, None, :stop] != 0)
    seen_Btc = seen_Btc & jnp.tri(stop - start, stop, k=start, dtype=bool)[None]
    scores = jnp.einsum("BKQA,BCKA->BKQC", query_BKQA, keys_BCKA[:, :stop], preferred_element_type=float_dtype)
    scores = scores.reshape(B, K, -1, stop - start, stop) * query_BKQA.shape[-1] ** -0.5
    # A finite value: with -inf a row that is masked throughout would be 0 / 0.
    scores = jnp.where(seen_Btc[:, None, None], scores, jnp.finfo(float_dtype).min)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).reshape(B, K, Q, stop)
    return exponentials.astype(query_BKQA.dtype), jnp.sum(exponentials, axis=-1, keepdims=True)


def _blocked_forward(query_BTHA: Array, keys_BTKA: Array, values_BTKA: Array, segments_BT: Array):
    length, K = keys_BTKA.shape[1:3]
    query_BKGTA = _grouped(query_BTHA, K)
    attended, kept = [], []
    for start, stop in query_blocks(length):
        query = query_BKGTA[:, :, :, start:stop]
        query_BKQA = query.reshape(*query.shape[:2], -1, query.shape[-1])
        weights_BKQC, sums_BKQ1 = _exponentials(query_BKQA, keys_BTKA, segments_BT, start, stop)
        products_BKQA = jnp.einsum(
            "BKQC,BCKA->BKQA", weights_BKQC, values_BTKA[:, :stop], preferred_element_type=sums_BKQ1.dtype
        )
        # Divided last: there are fewer components than keys.
        attended.append((products_BKQA / sums_BKQ1).astype(query.dtype).reshape(query.shape))
        kept.append((weights_BKQC, sums_BKQ1) if length <= KEPT_LENGTH else None)
    return _ungrouped(attended), (query_BKGTA, keys_BTKA, values_BTKA, segments_BT, attended, kept)


def _blocked_backward(residuals, gradient_BTHA: Array):
    query_BKGTA, keys_BTKA, values_BTKA, segments_BT, attended, kept = residuals
    length, K = keys_BTKA.shape[1:3]
    gradient_BKGTA = _grouped(gradient_BTHA, K)
    by_query: list[Array] = []
    by_keys: Any = None
    by_values: Any = None
    # The last block first: it sees all keys, and what the others add is added in place.
    for index, (start, stop) in reversed(list(enumerate(query_blocks(length)))):
        query, gradient = query_BKGTA[:, :, :, start:stop], gradient_BKGTA[:, :, :, start:stop]
        query_BKQA, gradient_BKQA, attended_BKQA = (
            x.reshape(*query.shape[:2], -1, query.shape[-1]) for x in (query, gradient, attended[index])
        )
        weights_BKQC, sums_BKQ1 = kept[index] or _exponentials(query_BKQA, keys_BTKA, segments_BT, start, stop)
        gradient_BKQA = (gradient_BKQA / sums_BKQ1).astype(query.dtype)
        mean_BKQ1 = jnp.sum(gradient_BKQA.astype(sums_BKQ1.dtype) * attended_BKQA, axis=-1, keepdims=True)
        by_weights_BKQC = jnp.einsum(
            "BKQA,BCKA->BKQC", gradient_BKQA, values_BTKA[:, :stop], preferred_element_type=sums_BKQ1.dtype
        )
        by_scores_BKQC = weights_BKQC * (by_weights_BKQC - mean_BKQ1) * query.shape[-1] ** -0.5
        by_scores_BKQC = by_scores_BKQC.astype(query.dtype)
        by_query.append(jnp.einsum("BKQC,BCKA->BKQA", by_scores_BKQC, keys_BTKA[:, :stop]).reshape(query.shape))
        # Components before keys: XLA's CPU backend is twice as fast for it.
        by_keys_here, by_values_here = (
            jnp.einsum("BKQA,BKQC->BKAC", x, y, preferred_element_type=sums_BKQ1.dtype).transpose(0, 3, 1, 2)
            for x, y in ((query_BKQA, by_scores_BKQC), (gradient_BKQA, weights_BKQC))
        )
        by_keys = by_keys_here if by_keys is None else by_keys.at[:, :stop].add(by_keys_here)
        by_values = by_values_here if by_values is None else by_values.at[:, :stop].add(by_values_here)
    dtype = query_BKGTA.dtype
    return _ungrouped(by_query[::-1]), by_keys.astype(dtype), by_values.astype(dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def cudnn_attend(
    query_BTHA: Array,
    keys_BTKA: Array,
    values_BTKA: Array,
    mask_BT: Array,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Array:
    """cuDNN's flash attention, through JAX, for rows whose real tokens are consecutive.

    It knows no padding but that behind a row, and no gradient of odd lengths: rows are turned so that they begin with
    their first real token, and one token may be added. `implementation="xla"` runs the same call on any device, for
    tests.
    """
    length = query_BTHA.shape[1]
    first_B1 = jnp.argmax(mask_BT, axis=1)[:, None]
    slots_1T = jnp.arange(length)[None]

    def turn(x_BTHA: Array, order_BT: Array) -> Array:
        return jnp.take_along_axis(x_BTHA, order_BT[:, :, None, None], axis=1)

    query, keys, values = (
        jnp.pad(turn(x, (slots_1T + first_B1) % length), ((0, 0), (0, length % 2), (0, 0), (0, 0)))
        for x in (query_BTHA, keys_BTKA, values_BTKA)
    )
    # A row of padding alone counts one token, or its softmax would be 0 / 0.
    lengths_B = jnp.maximum(jnp.sum(mask_BT, axis=1, dtype=jnp.int32), 1)
    attended = jax.nn.dot_product_attention(
        query,
        keys,
        values,
        is_causal=True,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )
    attended = turn(attended[:, :length], (slots_1T - first_B1) % length)
    # The kernel need not write what lies behind a row's length.
    return jnp.where(mask_BT[:, :, None, None], attended, 0)


def _splash_kernel(num_heads: int, length: int, interpret: bool):
    """The kernel for one row of `num_heads` local heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    size = next(size for size in (_SPLASH_BLOCK, 256, _LANES) if length % size == 0)
    blocks = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * num_heads)
    return splash.make_splash_mha(causal, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret)


def splash_attend(
    query_BTHA: Array, keys_BTKA: Array, values_BTKA: Array, segments_BT: Array, interpret: bool = False
) -> Array:
    """Splash attention of rows on one device; skips the blocks above the diagonal.

    Padding is a segment of its own, so that no real token looks at it. `interpret=True` runs on any device, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    _, length, num_heads, head_dim = query_BTHA.shape
    rest = -length % _LANES
    # Zeros in further components of a head change no score, further tokens are padding.
    query, keys, values = (
        jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, rest), (0, -head_dim % _LANES)))
        for x in (query_BTHA * head_dim**-0.5, keys_BTKA, values_BTKA)
    )
    kernel = _splash_kernel(num_heads, length + rest, interpret)
    segments_BT = jnp.pad(segments_BT.astype(jnp.int32), ((0, 0), (0, rest)))
    attended_BHTA = jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))(
        query, keys, values, segments_BT
    )
    return attended_BHTA.swapaxes(1, 2)[:, :length, :, :head_dim].astype(query_BTHA.dtype)


def _splash(query_BTHA: Array, keys_BTKA: Array, values_BTKA: Array, segments_BT: Array) -> Array:
    """`splash_attend` on every device of the mesh, each with its rows and heads: XLA cannot cut a kernel itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return splash_attend(query_BTHA, keys_BTKA, values_BTKA, segments_BT)
    heads = activation_spec(query_BTHA.shape, ("batch", None, "heads", None))
    kv_heads = activation_spec(keys_BTKA.shape, ("batch", None, "heads", None))
    if kv_heads[2] is None:
        heads = kv_heads  # cut alone, query heads would meet the wrong ones of all key/value heads
    rows = activation_spec(segments_BT.shape, ("batch", None))
    return jax.shard_map(splash_attend, in_specs=(heads, kv_heads, kv_heads, rows), out_specs=heads, check_vma=False)(
        query_BTHA, keys_BTKA, values_BTKA, segments_BT
    )
