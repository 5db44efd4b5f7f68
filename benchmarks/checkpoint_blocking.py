"""How long a save holds up the step loop: python benchmarks/checkpoint_blocking.py [ROWS]

Updates a model of 100M parameters on ROWS rows of 256 tokens (32 if not given), and saves after some of the updates.
Prints how long `save` blocks as a share of an update, which is less than a step (nothing is sampled here); how much
longer the next update takes beside the writing; and how long the writing itself takes.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import ModelConfig, init
from polyepo_jax.runs.checkpoints import Checkpoints
from polyepo_jax.sharding import MeshConfig, make_mesh, shard_rows
from polyepo_jax.training.update import OptimizerConfig, UpdateSpec, init_state, state_shardings, train_step
from polyepo_jax.types import Batch

LENGTH, PROMPT_LENGTH, MICRO_BATCH, REPEATS = 256, 56, 8, 3
MODEL = ModelConfig(
    vocab_size=16384,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=10,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
)


def main() -> None:
    """Measures both kinds of steps in turn."""
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    spec = UpdateSpec(
        MODEL, PolicyLoss(), OptimizerConfig(), 1e-6, prompt_length=PROMPT_LENGTH, micro_batch_rows=MICRO_BATCH
    )
    mesh = make_mesh(MeshConfig())
    shape = num_rows, LENGTH
    tokens = np.random.default_rng(0).integers(1, MODEL.vocab_size, shape, np.int32)
    trained = np.broadcast_to(np.arange(LENGTH) >= PROMPT_LENGTH, shape)
    zeros = np.zeros(shape, np.float32)
    rows = Batch(tokens, np.ones(shape, bool), trained, zeros, zeros, np.ones(num_rows, np.float32))  # type: ignore[arg-type]
    make = jax.jit(lambda key: init_state(spec, init(MODEL, key)), out_shardings=state_shardings(spec, mesh))
    directory = Path(tempfile.mkdtemp(prefix="checkpoint_blocking"))
    with jax.set_mesh(mesh):
        state, batch = make(jax.random.key(0)), shard_rows(mesh, rows)

        def update() -> float:
            nonlocal state
            started = time.perf_counter()
            state, stats = train_step(spec, state, batch)
            jax.block_until_ready((state, stats))
            return time.perf_counter() - started

        num_params = sum(x.size for x in jax.tree.leaves(state.params))
        num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
        update()  # compiles
        checkpoints = Checkpoints(directory, max_to_keep=1)
        alone, blocked, beside, written = [], [], [], []
        for _ in range(REPEATS):
            alone.append(update())
            started = time.perf_counter()
            checkpoints.save(state, {})
            blocked.append(time.perf_counter() - started)
            beside.append(update())
            checkpoints.wait()
            written.append(time.perf_counter() - started)
        checkpoints.close()
    shutil.rmtree(directory)
    step_s, save_s = statistics.median(alone), statistics.median(blocked)
    device = f"{jax.device_count()} {jax.devices()[0].platform}"
    print(
        f"{num_params / 1e6:.0f}M parameters, {num_bytes / 2**30:.2f} GiB of state, {num_rows} rows of {LENGTH} tokens "
        f"on {device}: an update takes {step_s:.2f} s; a save blocks {save_s:.3f} s ({min(blocked):.3f} to "
        f"{max(blocked):.3f}), {save_s / step_s:.1%} of it; the next update takes "
        f"{statistics.median(beside) / step_s:.2f} times as long, and all is written and sealed after at most "
        f"{max(written):.1f} s"
    )


if __name__ == "__main__":
    main()
