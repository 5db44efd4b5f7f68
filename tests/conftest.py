"""Strict JAX for all tests, on eight fake CPU devices."""

import os

# One variable decides the number of CPU devices, and it is read when the backend starts: before any test.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation time counts as test time on the first example, so deadlines would be noise.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.load_profile("default")
