"""What commands do before they start."""

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
