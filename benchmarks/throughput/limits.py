"""What the machine can do now: python -m benchmarks.throughput.limits"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np


def main() -> None:
    """Prints products and copies a second, the best of several."""
    size = 1024
    x = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    products, copies = [], []
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    for _ in range(8):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        products.append(2 * size**3 / (time.perf_counter() - started))
        started = time.perf_counter()
        np.copyto(target, source)
        copies.append(2 * source.nbytes / (time.perf_counter() - started))
    print(json.dumps({"flops": float(np.median(products)), "bytes": float(np.median(copies))}))


if __name__ == "__main__":
    main()
