"""What one GPU or TPU does with this code: python -m benchmarks.accelerator --json FILE

Under six minutes on one device; no files are needed, for weights are random. It measures the device's own limits (a
large product of bfloat16, a large copy), compares the platform's attention with the reference, samples and updates
models of the shapes of Qwen3-1.7B and 4B, and puts each figure beside the limit and beside what `plan` says of memory.

Every measurement is a process of its own, so that its peak memory is its own; what would begin after --seconds is left
out, and said to be.

  --models NAME ...   qwen3_1p7b, qwen3_4b, tiny; the first two if not given, tiny on a CPU
  --rows N ...        rows that are sampled at a time; 64 and 256 if not given
  --seconds N         340 if not given
  --json FILE         all figures
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GENERATIONS, PROMPT_LENGTH, COMPLETION_LENGTH = 16, 128, 512
UPDATE_PROMPTS, MICRO_ROWS = 2, 16


def shapes() -> dict[str, Any]:
    """The models."""
    from polyepo_jax.model import ModelConfig

    qwen3 = ModelConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        dtype="bfloat16",
        remat="full",
    )
    return {
        "qwen3_1p7b": qwen3,
        "qwen3_4b": dataclasses.replace(
            qwen3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
        ),
        "tiny": dataclasses.replace(
            qwen3,
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
        ),
    }


def config_of(name: str, rows: int, scale: int) -> Any:
    """A run of that model, whose rollouts and updates are measured."""
    from polyepo_jax.config import AlgorithmConfig, Config, Polychromic, Polynomial, SamplingConfig, SetAdvantage

    return Config(
        task=Polynomial(),
        model=shapes()[name],
        max_steps=1,
        learning_rate=1e-6,
        prompts_per_step=rows // GENERATIONS,
        num_generations=GENERATIONS,
        max_prompt_length=PROMPT_LENGTH // scale,
        max_completion_length=COMPLETION_LENGTH // scale,
        sampling=SamplingConfig(max_rows=rows),
        algorithm=AlgorithmConfig(SetAdvantage(Polychromic(8)), micro_batch_size=MICRO_ROWS, skip_zero_advantage=False),
    )


def seconds_of(run: Any, repeats: int = 3) -> float:
    """The least time of several runs, after one that is not timed."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def limits(scale: int) -> dict[str, Any]:
    """Products and bytes a second, of ten in a row."""
    import jax
    import jax.numpy as jnp

    size, shape = 8192 // scale, (2**30 // scale**2,)
    x, y = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    product = jax.jit(lambda x, y: jax.lax.fori_loop(0, 10, lambda _, x: x @ y * jnp.bfloat16(size**-0.5), x))
    copied = jax.random.normal(jax.random.key(2), shape, jnp.bfloat16)
    negate = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, x: -x, x), donate_argnums=0)

    def copy() -> None:
        nonlocal copied
        copied = negate(copied).block_until_ready()

    return {
        "matmul_flops": 10 * 2 * size**3 / seconds_of(lambda: product(x, y).block_until_ready()),
        "copy_bytes": 10 * 2 * copied.nbytes / seconds_of(copy),
    }


def kernels(scale: int) -> dict[str, Any]:
    """The largest differences of the platform's attention from the reference in float32, relative to its largest value:
    of what is attended to, of the gradient of the queries, and of what a decode step attends to."""
    import jax
    import jax.numpy as jnp

    from polyepo_jax.model import Ring
    from polyepo_jax.model.attention import attend, kernel_of, self_attend
    from polyepo_jax.model.decode_attention import attend_to, attend_to_ring, attends_in_triton

    length, heads = 1024 // scale, 8
    model = dataclasses.replace(shapes()["tiny"], head_dim=128)
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (2, length, heads, 128), jnp.bfloat16)
    key, value = (jax.random.normal(k, (2, length, 2, 128), jnp.bfloat16) for k in keys[1:3])
    weights = jax.random.normal(keys[3], query.shape)
    mask = jnp.arange(length)[None] >= jnp.array([[0], [length // 3]])

    def reference(query, key, value):
        wide = [x.astype(jnp.float32) for x in (query, key, value)]
        causal = jnp.tri(length, dtype=bool)[None] & mask[:, None]
        return jnp.where(mask[:, :, None, None], attend(wide[0], wide[1], wide[2], causal), 0)

    def kernel(query, key, value):
        attended = self_attend(kernel_of(model), query, key, value, mask)
        return jnp.where(mask[:, :, None, None], attended, 0).astype(jnp.float32)

    # A decode step: rings that have gone round, of rows of all lengths.
    by_row = 16, 2, length, 128
    ring_keys, ring_values = (jax.random.normal(k, by_row, jnp.bfloat16) for k in keys[1:3])
    lengths = jnp.linspace(0, length, by_row[0]).astype(jnp.int32)
    ring = Ring((ring_keys,), (ring_values,), lengths, jnp.asarray(length + length // 3, jnp.int32))
    token = jax.random.normal(keys[0], (by_row[0], heads, 128), jnp.bfloat16)

    def decode_reference(token, keys, values):
        wide = [x.astype(jnp.float32) for x in (token.reshape(by_row[0], 2, heads // 2, 128), keys, values)]
        found = attend_to(wide[0], wide[1], wide[2], ring.mask_BC())
        return found.attended / found.total[..., None]

    def decode_kernel(token, keys, values):
        found = attend_to_ring(attends_in_triton(model), token, ring, keys, values)
        return found.attended / found.total[..., None]

    def difference(expected, found, *arrays):
        expected, found = (jax.jit(f)(*arrays) for f in (expected, found))
        return float(jnp.max(jnp.abs(expected - found)) / jnp.max(jnp.abs(expected)))

    def gradient_of(f):
        return jax.grad(lambda query, key, value: jnp.sum(f(query, key, value) * weights))

    # Products of the reference in float32, which is not every platform's default.
    with jax.default_matmul_precision("float32"):
        return {
            "kernel": kernel_of(model),
            "forward": difference(reference, kernel, query, key, value),
            "gradient": difference(gradient_of(reference), gradient_of(kernel), query, key, value),
            "decode_kernel": "triton" if attends_in_triton(model) else "xla",
            "decode": difference(decode_reference, decode_kernel, token, ring_keys, ring_values),
        }


def peak() -> int | None:
    """Bytes that the device held at most, where it says so."""
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def decode(name: str, rows: int, scale: int) -> dict[str, Any]:
    """Rollouts of full length."""
    import jax
    import numpy as np

    from polyepo_jax.config.static_arguments import generation_spec
    from polyepo_jax.model import init
    from polyepo_jax.planning.advice import peak_bytes
    from polyepo_jax.planning.estimate import shape_of
    from polyepo_jax.planning.rollout_estimate import decode_work, ring_bytes, ring_bytes_read
    from polyepo_jax.sampling import Rollout
    from polyepo_jax.sharding import MeshConfig, make_mesh
    from polyepo_jax.types import Prompts

    config = config_of(name, rows, scale)
    model = dataclasses.replace(config.model, param_dtype=config.model.dtype)
    config = dataclasses.replace(config, model=model)
    spec = dataclasses.replace(generation_spec(config), stop_ids=())
    params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
    shape = config.prompts_per_step, config.max_prompt_length
    tokens: Any = np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)
    mask: Any = np.ones(shape, bool)
    ids: Any = np.arange(shape[0], dtype=np.int32)
    prompts = Prompts(tokens, mask, ids)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])

    def run():
        rollout = Rollout(spec, params, prompts, jax.random.key(1), mesh, rows)
        for _ in rollout.finished():
            pass

    seconds, platform = seconds_of(run, 2), jax.default_backend()
    counted, steps = shape_of(config, (1, 1, 1), platform), config.max_completion_length
    # What must be read: weights, prompts, and of the ring the rows' own tokens, half of it on the average.
    read = decode_work(config, counted).hbm_bytes - ring_bytes_read(config, counted)
    must = read + ring_bytes(config, counted) / 2
    return {
        "tokens_per_s": rows * steps / seconds,
        "bytes_per_s": must * steps / seconds,
        "peak_bytes": peak(),
        "planned_bytes": peak_bytes(config, (1, 1, 1), platform)[1] - _optimizer_bytes(config, platform),
    }


def _optimizer_bytes(config: Any, platform: str) -> int:
    """What a plan counts beside a rollout, and a rollout alone does not hold."""
    from polyepo_jax.planning.estimate import shape_of
    from polyepo_jax.planning.rollout_estimate import rollout_memory

    return rollout_memory(config, shape_of(config, (1, 1, 1), platform)).optimizer


def update(name: str, rows: int, scale: int) -> dict[str, Any]:
    """Updates of rows of full length."""
    import jax
    import jax.numpy as jnp

    from polyepo_jax.config.static_arguments import update_spec
    from polyepo_jax.model import init
    from polyepo_jax.planning.advice import peak_bytes
    from polyepo_jax.planning.estimate import shape_of, update_work
    from polyepo_jax.training.update import init_state, train_step
    from polyepo_jax.types import Batch

    config = config_of(name, rows, scale)
    spec = update_spec(config)
    params = jax.jit(init, static_argnums=0)(config.model, jax.random.key(0))
    state = jax.jit(lambda p: init_state(spec, p), donate_argnums=0)(params)
    shape = rows, config.max_prompt_length + config.max_completion_length
    trained = jnp.broadcast_to(jnp.arange(shape[1]) >= config.max_prompt_length, shape)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, config.model.vocab_size, jnp.int32)
    logprobs = jnp.where(trained, -jnp.log(float(config.model.vocab_size)), 0)
    batch = Batch(tokens, jnp.ones(shape, bool), trained, logprobs, logprobs, jnp.ones(rows))

    def run():
        nonlocal state
        state, stats = train_step(spec, state, batch)
        stats["loss"].block_until_ready()

    seconds, platform = seconds_of(run, 2), jax.default_backend()
    return {
        "tokens_per_s": rows * shape[1] / seconds,
        "flops_per_s": update_work(config, shape_of(config, (1, 1, 1), platform)).flops / seconds,
        "peak_bytes": peak(),
        "planned_bytes": peak_bytes(config, (1, 1, 1), platform)[0],
    }


def worker(what: str, arguments: list[str]) -> None:
    """One measurement, printed as JSON."""
    import jax

    scale = 1 if jax.default_backend() != "cpu" else 8
    if what in ("limits", "kernels"):
        result = {"limits": limits, "kernels": kernels}[what](scale)
    else:
        result = {"decode": decode, "update": update}[what](arguments[0], int(arguments[1]), scale)
    device = jax.devices()[0]
    print(json.dumps(result | {"platform": device.platform, "device": device.device_kind, "jax": jax.__version__}))


def measure(*arguments: str) -> dict[str, Any]:
    """What a worker says; an "error" where it fails, as where the memory does not suffice."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--worker", *arguments]
    # Memory is taken as it is needed, so that the peak is what was needed.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        return {"error": said[-1] if said else f"status {done.returncode}"}
    return json.loads(lines[-1])


def shares(result: dict[str, Any], limit: dict[str, Any]) -> dict[str, Any]:
    """The result with its shares of the device's limits, and the planned peak's ratio to the measured one."""
    if "error" in result or "error" in limit:
        return result
    more = {}
    for rate, of in (("bytes_per_s", "copy_bytes"), ("flops_per_s", "matmul_flops")):
        if rate in result:
            more[f"share_of_{of}"] = result[rate] / limit[of]
    if result["peak_bytes"]:
        more["planned_to_measured"] = result["planned_bytes"] / result["peak_bytes"]
    return result | more


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(shapes()))
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--seconds", type=float, default=340)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    results: dict[str, Any] = {"limits": measure("limits"), "kernels": measure("kernels")}
    models = options.models or (["tiny"] if results["limits"].get("platform") == "cpu" else ["qwen3_1p7b", "qwen3_4b"])
    jobs = [("decode", model, rows) for model in models for rows in options.rows]
    jobs[1:1] = [("update", models[0], UPDATE_PROMPTS * GENERATIONS)]
    jobs += [("update", model, UPDATE_PROMPTS * GENERATIONS) for model in models[1:]]
    for what, model, rows in jobs:
        name = f"{what} {model} {rows}"
        if time.perf_counter() - started > options.seconds:
            results[name] = {"error": f"left out: {options.seconds:.0f} s were over"}
        else:
            results[name] = shares(measure(what, model, str(rows)), results["limits"])
        print(name, json.dumps(results[name]), file=sys.stderr)
    results["seconds"] = time.perf_counter() - started
    results["date"] = time.strftime("%Y-%m-%d")
    text = json.dumps(results, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
