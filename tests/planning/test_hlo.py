"""Compiled programs read back: against counts by hand, XLA's own analysis, and texts of the compiler for TPU."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from polyepo_jax.planning.hardware import parse_topology, topology_mesh
from polyepo_jax.planning.hlo import Collective, collectives, dot_flops, largest_buffers, products
from polyepo_jax.sharding import MeshConfig, make_mesh

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
P = PartitionSpec


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def text_of(function, *arguments) -> str:
    return compiled(function, *arguments).as_text()


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def on_mesh(mesh, function, axis="fsdp", out=None):
    """Over arrays cut along `axis`, with collectives written by hand."""
    return jax.shard_map(
        function, mesh=mesh, in_specs=P(axis), out_specs=P(axis) if out is None else out, check_vma=False
    )


def ring(mesh, axis):
    size = mesh.shape[axis]
    return [(i, (i + 1) % size) for i in range(size)]


# Of 8 x 4 float32 on each of g devices, 128 bytes: what one of them sends.
@pytest.mark.parametrize(("axis", "size"), [("fsdp", 4), ("tensor", 2), (("fsdp", "tensor"), 8)])
@pytest.mark.parametrize(
    ("kind", "operation", "sent"),
    [
        ("all-reduce", lambda x, axis: lax.psum(x, axis), lambda g: 2 * 128 * (g - 1) // g),
        ("all-gather", lambda x, axis: lax.all_gather(x, axis, tiled=True), lambda g: 128 * g * (g - 1) // g),
        ("reduce-scatter", lambda x, axis: lax.psum_scatter(x, axis, tiled=True), lambda g: 128 * (g - 1) // g),
        ("all-to-all", lambda x, axis: lax.all_to_all(x, axis, 0, 0, tiled=True), lambda g: 128 * (g - 1) // g),
    ],
)
def test_bytes_of_each_kind(mesh, axis, size, kind, operation, sent):
    text = text_of(on_mesh(mesh, lambda x: operation(x, axis), axis), array(8 * size, 4))
    assert collectives(text, 1) == (Collective(kind, size, 1, sent(size)),)


@pytest.mark.parametrize(("axis", "size"), [("fsdp", 4), ("tensor", 2)])
def test_bytes_of_a_permutation(mesh, axis, size):
    text = text_of(on_mesh(mesh, lambda x: lax.ppermute(x, axis, ring(mesh, axis)), axis), array(8 * size, 4))
    assert collectives(text, 1) == (Collective("collective-permute", size, 1, 128),)


def test_most_bytes_first_and_one_entry_for_each_kind_and_size(mesh):
    def function(x):
        gathered = lax.all_gather(x, "fsdp", tiled=True)
        once = lax.psum(gathered.sum(), "fsdp")
        return lax.psum(x * once, "tensor") + lax.psum(jnp.sin(lax.psum(x * 3, "tensor")), "tensor")

    found = collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1)
    assert found == (
        Collective("all-gather", 4, 1, 3 * 128),
        Collective("all-reduce", 2, 2, 3 * 128),  # the compiler joins two of the three
        Collective("all-reduce", 4, 1, 2 * 4 * 3 // 4),
    )


def test_groups_of_one_exchange_nothing(mesh):
    assert collectives(text_of(on_mesh(mesh, lambda x: lax.psum(x, "data")), array(32, 4)), 1) == ()


def summed_in_scan(length, x):
    return lax.scan(lambda carry, _: (jnp.sin(lax.psum(carry, "fsdp")), None), x, None, length=length)[0]


def test_loops_multiply(mesh):
    text = text_of(on_mesh(mesh, functools.partial(summed_in_scan, 5)), array(32, 4))
    assert collectives(text, 1000) == (Collective("all-reduce", 4, 5, 5 * 192),)


def test_nested_loops_multiply(mesh):
    def function(x):
        return lax.scan(lambda carry, _: (summed_in_scan(5, carry) + 1, None), x, None, length=3)[0]

    assert collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1000) == (
        Collective("all-reduce", 4, 15, 15 * 192),
    )


@pytest.mark.parametrize(
    ("start", "step", "goes_on", "trips"),
    [
        (0, 1, lambda i, n: i < 11, 11),
        (2, 3, lambda i, n: i < 11, 3),
        (2, 3, lambda i, n: 11 > i, 3),
        (2, 3, lambda i, n: i <= 11, 4),
        (9, -2, lambda i, n: i > 0, 5),
        (9, -2, lambda i, n: i >= 1, 5),
        (0, 1, lambda i, n: i < n, 1000),
        (9, 1, lambda i, n: i * n < 11, 1000),
    ],
)
def test_trips_of_a_loop_that_may_end_early(mesh, start, step, goes_on, trips):
    """The compiler knows no number of trips; the counter bounds it where there is one. The condition runs once more."""

    def function(x):
        n = x[0, 0].astype(jnp.int32)

        def condition(state):
            i, y = state
            return goes_on(i, n) & (lax.pmax(y.sum(), "fsdp") < 1e6)

        def body(state):
            i, y = state
            return i + step, lax.all_gather(y, "tensor", tiled=True)[:8] * 1.5

        return lax.while_loop(condition, body, (jnp.int32(start), x))[1]

    found = {each.kind: each for each in collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1000)}
    assert found["all-gather"].count == trips
    assert found["all-reduce"].count == trips + 1


def test_what_counts_by_data_bounds_nothing(mesh):
    def function(x):
        def body(state):
            i, y = state
            return i + (y > 0).sum(), lax.psum(y, "fsdp")

        return lax.while_loop(lambda state: state[0] < 11, body, (0, x))[1]

    found = collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1000)
    assert found == (Collective("all-reduce", 4, 1000, 1000 * 192),)


def test_an_unknown_start_leaves_an_upper_bound(mesh):
    def function(x):
        def body(state):
            i, y = state
            return i + 1, lax.psum(y, "fsdp")

        return lax.while_loop(lambda state: state[0] < 11, body, (x[0, 0].astype(jnp.int32), x))[1]

    found = collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1000)
    assert found == (Collective("all-reduce", 4, 11, 11 * 192),)


def test_the_larger_branch_counts(mesh):
    def function(x):
        index = lax.axis_index("fsdp") % 3
        branches = (
            lambda y: lax.psum(y, "tensor"),
            lambda y: lax.psum(jnp.sin(lax.psum(y, "tensor")), "tensor"),
            lambda y: y,
        )
        return lax.switch(index, branches, x)

    assert collectives(text_of(on_mesh(mesh, function), array(32, 4)), 1) == (Collective("all-reduce", 2, 2, 2 * 128),)


def test_sharding_alone_makes_collectives(mesh):
    """fsdp: the matrix [16, 8], 64 elements on each device after the cut over tensor, is gathered where it is used."""

    def cut(*axes):
        return NamedSharding(mesh, P(*axes))

    function = jax.jit(
        lambda x, w: x @ w, in_shardings=(cut("fsdp"), cut("fsdp", "tensor")), out_shardings=cut("fsdp", "tensor")
    )
    text = function.lower(array(400, 16), array(16, 8)).compile().as_text()
    assert collectives(text, 1) == (Collective("all-gather", 4, 1, 3 * 16 * 4 * 4 // 4),)
    assert dot_flops(text, 1) == 2 * 100 * 16 * 4


@pytest.mark.parametrize(
    ("function", "shapes", "flops"),
    [
        (lambda a, b: a @ b, [(8, 16), (16, 4)], 2 * 8 * 16 * 4),
        (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), [(3, 8, 16), (3, 4, 16)], 2 * 3 * 8 * 16 * 4),
        (lambda a, b: jnp.einsum("aijk,bjk->aib", a, b), [(2, 8, 4, 5), (6, 4, 5)], 2 * 2 * 8 * 4 * 5 * 6),
        (lambda a, b, c: (a @ b) @ c, [(8, 16), (16, 4), (4, 32)], 2 * 8 * 16 * 4 + 2 * 8 * 4 * 32),
    ],
)
def test_flops_of_products_are_those_of_xla(function, shapes, flops):
    program = compiled(function, *(array(*shape) for shape in shapes))
    assert dot_flops(program.as_text(), 1) == flops
    assert program.cost_analysis()["flops"] == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (0, 3))])
@pytest.mark.parametrize("dilation", [((1, 1), (1, 1)), ((3, 2), (1, 2)), ((2, 4), (3, 1))])
def test_flops_of_convolutions_are_those_of_xla(strides, padding, dilation):
    program = compiled(
        lambda x, w: lax.conv_general_dilated(
            x, w, strides, padding, *dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        array(2, 9, 7, 3),
        array(2, 3, 3, 4),
    )
    assert dot_flops(program.as_text(), 1) == program.cost_analysis()["flops"]


def test_flops_in_loops_multiply():
    def function(x, w):
        def layer(carry, matrix):
            return jnp.tanh(carry @ matrix), None

        return lax.while_loop(lambda y: y.sum() < 1, lambda y: lax.scan(layer, y, w)[0], x)

    assert dot_flops(text_of(function, array(4, 8), array(6, 8, 8)), 10) == 10 * 6 * 2 * 4 * 8 * 8


def test_flops_of_the_larger_branch():
    def function(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert dot_flops(text_of(function, array(4, 8), array(8, 8)), 1) == 2 * 2 * 4 * 8 * 8


def test_largest_buffers_show_what_is_never_made():
    """Cross-entropy of [B, T, D] over V: in one piece logits [B, T, V] exist, by chunks of T they do not."""
    b, t, d, v = 2, 32, 8, 512

    def loss(x, w):
        logits = jnp.einsum("btd,dv->btv", x, w)
        return jax.nn.logsumexp(logits, axis=-1).sum()

    def chunked(x, w):
        chunks = jnp.moveaxis(x.reshape(b, 16, t // 16, d), 1, 0)
        return lax.map(lambda chunk: loss(chunk, w), chunks).sum()

    whole = largest_buffers(text_of(loss, array(b, t, d), array(d, v)), 3)
    pieces = largest_buffers(text_of(chunked, array(b, t, d), array(d, v)), 3)
    assert whole[0][0] == 4 * b * t * v
    assert pieces[0] == (4 * d * v, f"f32[{d},{v}]", pieces[0][2])
    assert all(size < 4 * b * t * v for size, *_ in pieces)
    assert len(pieces) == len({shape for _, shape, _ in pieces}) == 3
    assert [size for size, *_ in pieces] == sorted((size for size, *_ in pieces), reverse=True)


def test_largest_buffers_name_the_operation():
    (first, *_) = largest_buffers(text_of(lambda a, b: jnp.sin(a @ b), array(64, 8), array(8, 32)), 1)
    assert first[:2] == (4 * 64 * 32, "f32[64,32]")
    assert "dot_general" in first[2] or "sin" in first[2]


def test_steps_within_a_fusion_are_no_buffers():
    text = text_of(lambda x: (jnp.exp(x[:, None] * x[None, :]) + 1).sum(axis=1), array(64))
    assert max(size for size, *_ in largest_buffers(text, 10)) <= 4 * 64 * 64
    assert "f32[64,64]" not in {shape for _, shape, _ in largest_buffers(text, 10)}


@pytest.mark.parametrize("function", [collectives, dot_flops, largest_buffers])
def test_other_text_is_refused(function):
    with pytest.raises(ValueError, match="no text of a compiled program"):
        function("module @jit_f {\n}\n", 1)


# Written by the compiler for TPU (v5e, tpu7x and two slices of v5e), shortened.
TPU_HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"
TPU_SUM = """\
%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

"""
# An all-gather spread over three fusions, two of which also multiply.
TPU_CHAIN = """\
%fused_computation.39 (param_0: bf16[8,64]) -> (bf16[8,64], bf16[8,256], u32[]) {
  %param_0 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.26 = bf16[8,256]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=16, \
replica_groups=[4,4]<=[4,4]T(1,0), dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.2 = (bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[8,256]{1,0}, /*index=2*/u32[]{:S(2)}) \
custom-call(%all-gather.26), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.84 (param_0.1: bf16[8,64], param_1: bf16[8,8]) -> (bf16[8,8], bf16[8,256]) {
  %param_0.1 = bf16[8,64]{1,0} parameter(0)
  %param_1 = bf16[8,8]{1,0} parameter(1)
  %convolution.29 = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} convolution(%param_1, %param_1), dim_labels=bf_io->bf
  %all-gather.28 = bf16[8,256]{1,0} all-gather(%param_0.1), channel_id=16, replica_groups=[4,4]<=[4,4]T(1,0), \
dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %tuple.64 = (bf16[8,8]{1,0}, bf16[8,256]{1,0}) tuple(%convolution.29, %all-gather.28)
}

%fused_computation.41 (param_0.2: bf16[8,64]) -> bf16[8,256] {
  %param_0.2 = bf16[8,64]{1,0} parameter(0)
  %all-gather.30 = bf16[8,256]{1,0} all-gather(%param_0.2), channel_id=16, replica_groups=[4,4]<=[4,4]T(1,0), \
dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.4 = bf16[8,256]{1,0} custom-call(%param_0.2, %all-gather.30), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: bf16[8,64], w: bf16[8,8]) -> bf16[8,256] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[8,8]{1,0} parameter(1)
  %async-collective-start = (bf16[8,64]{1,0}, bf16[8,256]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.39
  %fusion.84 = (bf16[8,8]{1,0}, bf16[8,256]{1,0}) fusion(%x, %w), kind=kCustom, calls=%async_collective_fusion.84
  ROOT %async-collective-done = bf16[8,256]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.41
}
"""
TPU_REDUCE_SCATTER = """\
%all-reduce-scatter (input: bf16[64,8]) -> bf16[16,8] {
  %input = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = u32[] constant(0)
  %all-reduce.1 = bf16[64,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=2, \
replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}, to_apply=%add
  ROOT %dynamic-slice.3 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.1, %zero, %zero), \
dynamic_slice_sizes={16,8}
}

ENTRY %main (x: bf16[64,8]) -> bf16[16,8] {
  %x = bf16[64,8]{1,0} parameter(0)
  ROOT %fusion = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
}
"""
TPU_SPARSE_CORE = """\
%called_computation.1 (param_0.3: bf16[8,64], param_1.1: token[]) -> bf16[32,64] {
  %param_1.1 = token[] parameter(1)
  %param_0.3 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,64]{1,0:T(8,128)(2,1)} all-gather(%param_0.3), channel_id=1, \
replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[8,64]) -> bf16[32,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %done = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %start = ((bf16[8,64]{1,0:T(8,128)(2,1)}, token[]), bf16[32,64]{1,0}) call-start(%x, %done), \
async_execution_thread="sparsecore", to_apply=%called_computation.1
  ROOT %call-done = bf16[32,64]{1,0:T(8,128)(2,1)} call-done(%start)
}
"""
TPU_ENTRY = """\
ENTRY %main (x: f32[8,64]) -> f32[8,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %token = token[] after-all()
  LINE
}
"""


def entry(line: str) -> str:
    return TPU_SUM + TPU_ENTRY.replace("LINE", line)


def reduced(groups: str) -> str:
    return entry(f"ROOT %r = f32[8,64]{{1,0}} all-reduce(%x), channel_id=1, {groups}to_apply=%add, metadata={{}}")


def sent_between_slices(target: str, transfer: str) -> str:
    return entry(
        "%send.7 = (f32[8,64]{1,0:T(8,128)}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        f'_xla_megascale_target={target},_xla_megascale_transfer_type="{transfer}"}}\n'
        "  ROOT %recv.7 = (f32[8,64]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, "
        f'frontend_attributes={{_xla_megascale_target={target},_xla_megascale_transfer_type="{transfer}"}}'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TPU_CHAIN, Collective("all-gather", 4, 1, 3 * 8 * 64 * 2)),
        (TPU_SUM + TPU_REDUCE_SCATTER, Collective("reduce-scatter", 4, 1, 3 * 64 * 8 * 2 // 4)),
        (TPU_SPARSE_CORE, Collective("all-gather", 4, 1, 3 * 8 * 64 * 2)),
        (reduced("replica_groups={{0,1},{2,3}}, "), Collective("all-reduce", 2, 1, 2048)),
        (reduced("replica_groups=[2,8]<=[16], "), Collective("all-reduce", 8, 1, 2 * 2048 * 7 // 8)),
        (reduced("replica_groups=[8,2]<=[2,8]T(1,0), "), Collective("all-reduce", 2, 1, 2048)),
        (reduced("replica_groups=mesh['a'=4,'b'=4] {'b'}, "), Collective("all-reduce", 4, 1, 2 * 2048 * 3 // 4)),
        (reduced("replica_groups=mesh['a'=4,'b'=4] {'a','b'}, "), Collective("all-reduce", 16, 1, 2 * 2048 * 15 // 16)),
        (reduced("replica_groups=mesh['a'=4,'b'=4] {'a':(2)2}, "), Collective("all-reduce", 2, 1, 2048)),
        (reduced("replica_groups={}, "), Collective("all-reduce", 16, 1, 2 * 2048 * 15 // 16)),
        (
            entry(
                "%start = (f32[8,64]{1,0}, f32[8,64]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, "
                "source_target_pairs={{0,4},{4,8},{8,12},{1,5},{5,9},{9,13}}, metadata={}\n"
                "  ROOT %done = f32[8,64]{1,0} collective-permute-done(%start)"
            ),
            Collective("collective-permute", 4, 1, 2048),
        ),
        (sent_between_slices('"{1,2}x{0:3}"', "ALL_REDUCE"), Collective("all-reduce", 2, 1, 2048, True)),
        (sent_between_slices('"{1:4}x{0:3}"', "REDUCE_SCATTER"), Collective("reduce-scatter", 4, 1, 1536, True)),
        (sent_between_slices("{{100,300},{200,400}}", "ALL_GATHER"), Collective("all-gather", 2, 1, 2048, True)),
        (
            sent_between_slices("{{100->200},{200->100}}", "ONE_TO_ONE"),
            Collective("collective-permute", 2, 1, 2048, True),
        ),
    ],
)
def test_forms_of_the_compiler_for_tpu(text, expected):
    assert collectives(TPU_HEADER + text, 1) == (expected,)


def test_flops_beside_a_spread_collective_count_once():
    assert dot_flops(TPU_HEADER + TPU_CHAIN, 1) == 2 * 8 * 8 * 8


@pytest.mark.parametrize("batch", [2, 6, 1000])
def test_positions_of_a_batch_of_products(batch):
    """As a convolution its stride is one less than the dilation of its input: each output meets one element."""
    assert products._valid_positions(batch, batch, batch, batch - 1, 0, batch, 1) == batch


@pytest.mark.parametrize("padding", [-2, 0, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("spread", [1, 3])
def test_positions_against_enumeration(padding, stride, dilation, spread):
    left, kernel, out = 5, 4, 9
    met = [o * stride - padding + k * spread for k in range(kernel) for o in range(out)]
    expected = sum(m % dilation == 0 and 0 <= m // dilation < left for m in met)
    assert products._valid_positions(left, kernel, out, stride, padding, dilation, spread) == expected


def tpu_text(topology, config, function, *shapes_and_axes):
    mesh = topology_mesh(parse_topology(*topology), config)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes)))
        for shape, axes in shapes_and_axes
    ]
    return compiled(functools.partial(function, mesh), *arguments).as_text()


# Smaller gradients the compiler sums as a whole before it cuts them.
LAYERS, ROWS, WIDTH, HIDDEN = 6, 1024, 1024, 4096


def descent(mesh, x, w1, w2):
    """A step down the gradient of a stack of two-matrix layers, which are computed again on the way back."""

    def layer(h, weights):
        h = h + jax.nn.silu(h @ weights[0]) @ weights[1]
        return lax.with_sharding_constraint(h, NamedSharding(mesh, P(("data", "fsdp")))), None

    def loss(w1, w2):
        return (lax.scan(jax.checkpoint(layer), x, (w1, w2))[0].astype(jnp.float32) ** 2).mean()

    return jax.tree.map(jnp.subtract, (w1, w2), jax.grad(loss, argnums=(0, 1))(w1, w2))


@needs_libtpu
@pytest.mark.parametrize(
    "topology",
    [("v5e:2x2",), *(pytest.param(other, marks=pytest.mark.slow) for other in (("tpu7x:2x2x1",), ("v5e:2x2", 2)))],
    ids=str,
)
def test_tpu_descent(topology):
    config = MeshConfig(data=-1, fsdp=2, tensor=2)
    text = tpu_text(
        topology,
        config,
        descent,
        ((ROWS, WIDTH), (("data", "fsdp"),)),
        ((LAYERS, WIDTH, HIDDEN), (None, "fsdp", "tensor")),
        ((LAYERS, HIDDEN, WIDTH), (None, "tensor", "fsdp")),
    )
    found = {(each.kind, each.group_size, each.between_slices): each for each in collectives(text, 10_000)}
    shard = WIDTH * HIDDEN * 2 // 4  # bytes of a matrix on a device
    # Each matrix is gathered on the way there and, with computing again, on the way back.
    gathered = found["all-gather", 2, False]
    assert (gathered.count, gathered.bytes) == (4 * LAYERS, 4 * LAYERS * shard)
    data = parse_topology(*topology).num_devices // 4
    if topology[0] == "v5e:2x2":  # gradients are cut again, their rows padded to whole tiles
        scattered = found["reduce-scatter", 2, False]
        assert scattered.count == 2 * LAYERS
        assert 2 * LAYERS * shard <= scattered.bytes < 1.1 * 2 * LAYERS * shard
    if len(topology) == 2:  # then summed between the slices, beside the scalar mean
        summed = found["all-reduce", 2, True]
        assert 2 * LAYERS * shard <= summed.bytes < 1.1 * 2 * LAYERS * shard
    # There: 2 products, back: one of them again and 4.
    assert dot_flops(text, 10_000) == 7 * LAYERS * 2 * ROWS * WIDTH * HIDDEN / (4 * data)


def decode(mesh, x, w):
    """A loop of at most 100 steps that ends once all rows are done."""

    def step(state):
        i, h, done = state
        h = jnp.tanh(h @ w)
        return i + 1, h, done | (h.sum(-1) > 5)

    def goes_on(state):
        return (state[0] < 100) & ~state[2].all()

    return lax.while_loop(goes_on, step, (0, x, jnp.zeros(x.shape[0], bool)))[1]


def every_kind(mesh, x):
    """Of [2048, 1024] bfloat16 on each device, 4 MiB."""

    def function(x):
        return (
            lax.psum(x, "fsdp"),
            lax.all_gather(x, "fsdp", tiled=True),
            lax.psum_scatter(x, "fsdp", tiled=True),
            lax.all_to_all(x, "fsdp", 0, 1, tiled=True),
            lax.ppermute(x, "fsdp", ring(mesh, "fsdp")),
        )

    return on_mesh(mesh, function, out=(P(), *[P("fsdp")] * 4))(x)


@needs_libtpu
def test_tpu_writes_every_kind():
    text = tpu_text(("v5e:2x2",), MeshConfig(1, 2, 2), every_kind, ((4096, 1024), ("fsdp",)))
    mib = 2**20
    assert collectives(text, 1) == (
        Collective("all-gather", 2, 1, 4 * mib),
        Collective("all-reduce", 2, 1, 4 * mib),
        Collective("collective-permute", 2, 1, 4 * mib),
        Collective("all-to-all", 2, 1, 2 * mib),
        Collective("reduce-scatter", 2, 1, 2 * mib),
    )


@needs_libtpu
def test_tpu_decode():
    text = tpu_text(
        ("v5e:4x4",), MeshConfig(1, 4, 4), decode, ((512, 1024), ("fsdp",)), ((1024, 1024), ("fsdp", "tensor"))
    )
    found = {each.kind: each for each in collectives(text, 10_000)}
    assert found["all-gather"].count == 2 * 100  # the matrix, and what tensor parallelism cut
    assert found["all-reduce"].count == 100 + 101  # sums of rows; the condition runs once more than the body
    assert dot_flops(text, 10_000) == 100 * 2 * 512 * 1024 * 1024 / 16


@needs_libtpu
@pytest.mark.parametrize(
    ("equation", "left", "right", "flops"),
    [
        ("bthgk,bshk->bhgts", (4, 32, 3, 2, 64), (4, 48, 3, 64), 2 * 4 * 3 * 2 * 32 * 48 * 64),
        ("btd,dhgk->bthgk", (4, 32, 128), (128, 3, 2, 64), 2 * 4 * 32 * 128 * 3 * 2 * 64),
        ("btd,btf->df", (4, 32, 128), (4, 32, 64), 2 * 4 * 32 * 128 * 64),
        ("bij,bjk->bik", (300, 16, 32), (300, 32, 8), 2 * 300 * 16 * 32 * 8),
    ],
)
def test_tpu_products_are_convolutions(equation, left, right, flops):
    text = tpu_text(("v5e:1x1",), MeshConfig(), lambda _, a, b: jnp.einsum(equation, a, b), (left, ()), (right, ()))
    assert "convolution(" in text
    assert dot_flops(text, 1) == flops
