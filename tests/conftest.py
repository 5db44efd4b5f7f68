"""Strict JAX for all tests, on eight fake CPU devices."""

import os
import tempfile

from tests.compilations import QUICKLY

# Read when the backend starts: before any test. Commands in processes of their own (test_commands.py) are compiled as
# those of users are. The last word counts: what is in the environment already may ask for optimized code, not for other
# devices.
os.environ["XLA_FLAGS"] = f"{QUICKLY} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# Commands keep what they compile: here, not in the user's cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="polyepo-tests-"))

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation time counts as test time on the first example, so deadlines would be noise.
hypothesis.settings.register_profile("default", deadline=None, max_examples=30, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session")
def shared_compilations(tmp_path_factory):
    """Processes that tests start compile the same programs: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compilations")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield
