"""What commands do before they start."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from polyepo_jax.shared_by_commands.start import keep_compilations


@pytest.mark.parametrize("told", [None, "elsewhere"])
def test_compilations_are_kept_where_jax_is_not_told_otherwise(tmp_path, monkeypatch, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", told)
        keep_compilations()
        expected = told or str(tmp_path / "polyepo_jax" / "compilations")
        assert jax.config.jax_compilation_cache_dir == expected
        # A cache that cannot be made is none.
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compilations()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


PAGE_FAULTS = """
import resource

import jax
import jax.numpy as jnp

from polyepo_jax.shared_by_commands.start import keep_memory

keep_memory()
program = jax.jit(lambda x: (jnp.sin(x)[::-1] @ jnp.ones((1000, 1))).sum())
x = jnp.ones((10_000, 1000))
faults = []
for _ in range(32):  # of the first, some take memory before others have given theirs back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no mallopt")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="there are few page faults")
@pytest.mark.parametrize(("setting", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_memory_is_kept_on_a_cpu_unless_the_environment_says_how(setting, kept):
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = ours | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | setting
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A temporary of 40 MB has 10,000 pages.
    assert (int(done.stdout) < 100) == kept
