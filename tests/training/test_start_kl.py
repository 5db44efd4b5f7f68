"""How far the policy is from its start: against a full forward pass, on meshes, and in runs that it must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.config import AlgorithmConfig, LoggingConfig
from polyepo_jax.errors import InputError
from polyepo_jax.model import forward, init, logical_axes
from polyepo_jax.runs import restoring
from polyepo_jax.sampling import Sampling
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings, shard_rows
from polyepo_jax.training.start_kl import kl_to_start
from tests.commands.test_train import assert_same_run, params_of, run
from tests.tiny import metrics_of, rl_config, sft_config
from tests.training.test_update import MODEL, PROMPT, ROWS, SPEC, make_batch


def by_hand(model, sampling, params, start_params, batch, rows):
    """The mean over all sampled tokens of the rows, one by one."""
    log_ratios = []

    @jax.jit
    def logprobs_of(p):
        logits, _ = forward(model, p, batch.tokens_BT, mask_BT=batch.mask_BT)
        return jax.nn.log_softmax(jax.vmap(jax.vmap(sampling.transform))(logits))

    policy, start = (np.asarray(logprobs_of(p)) for p in (params, start_params))
    for row in rows:
        for t in range(PROMPT, batch.tokens_BT.shape[1]):
            if batch.mask_BT[row, t]:
                token = int(batch.tokens_BT[row, t])
                log_ratios.append(start[row, t - 1, token] - policy[row, t - 1, token])
    d = np.clip(log_ratios, -20, 20)
    return np.mean(np.exp(d) - d - 1)


@pytest.mark.parametrize(
    ("micro_batch_rows", "mini_batch_rows", "axes", "sampling"),
    [
        (None, None, None, Sampling()),
        (2, None, None, Sampling(temperature=0.7)),
        (None, 4, (2, 2, 2), Sampling()),
        (4, 8, (1, 4, 2), Sampling()),
    ],
)
def test_it_is_the_formula_on_a_full_forward(micro_batch_rows, mini_batch_rows, axes, sampling):
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, dtype="float64", param_dtype="float64", num_hidden_layers=1)
        params, start_params = (jax.jit(init, static_argnums=0)(model, jax.random.key(i)) for i in range(2))
        batch = make_batch(np.float64)
        # Rows whose tokens are not trained, as where truncated ones are masked, were sampled all the same.
        batch = dataclasses.replace(batch, loss_mask_BT=batch.loss_mask_BT.at[jnp.array([0, 4])].set(False))
        spec = dataclasses.replace(
            SPEC, model=model, sampling=sampling, micro_batch_rows=micro_batch_rows, mini_batch_rows=mini_batch_rows
        )
        count = micro_batch_rows or mini_batch_rows or ROWS
        expected = by_hand(model, sampling, params, start_params, batch, range(0, ROWS, ROWS // count))
        assert expected > 1e-3
        if axes is None:
            actual = kl_to_start(spec, params, start_params, batch)
        else:
            mesh = make_mesh(MeshConfig(*axes))
            shardings = param_shardings(mesh, logical_axes(model))
            placed = (jax.device_put(p, shardings) for p in (params, start_params))
            with jax.set_mesh(mesh):
                actual = kl_to_start(spec, *placed, shard_rows(mesh, batch))
        assert float(actual) == pytest.approx(expected, rel=1e-10)
        assert float(kl_to_start(spec, params, params, batch)) == 0
        nothing = dataclasses.replace(batch, mask_BT=jnp.zeros_like(batch.mask_BT))
        assert np.isnan(float(kl_to_start(spec, params, start_params, nothing)))


def measured(config, interval):
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, kl_interval_steps=interval))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that measures nothing, with micro-batches and masked truncated generations."""
    algorithm = AlgorithmConfig(SetAdvantage(Polychromic(2)), truncated="mask", micro_batch_size=8)
    config = rl_config(max_steps=4, algorithm=algorithm)
    directory = tmp_path_factory.mktemp("runs") / "plain"
    run(config, directory)
    return config, directory


def test_it_changes_nothing_in_training_and_goes_on(plain, tmp_path):
    config, directory = plain
    run(measured(config, 2), tmp_path / "whole")
    lines = metrics_of(tmp_path / "whole")
    assert [line.pop("kl/start", 0) > 0 for line in lines] == [False, True, False, True]
    assert lines == metrics_of(directory)
    assert (tmp_path / "whole" / "samples.jsonl").read_text() == (directory / "samples.jsonl").read_text()
    before, after = params_of(directory, config), params_of(tmp_path / "whole", config)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    # In two parts, the first of which does not yet keep the initial policy.
    run(dataclasses.replace(config, max_steps=1), tmp_path / "parts")
    run(measured(dataclasses.replace(config, max_steps=3), 2), tmp_path / "parts")
    run(measured(config, 2), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", config)


def test_what_the_run_started_from_is_gone(plain, tmp_path, monkeypatch):
    config, _ = plain
    run(dataclasses.replace(config, max_steps=1), tmp_path)

    def gone(*arguments):
        raise InputError("runs/warm_start is not a run directory")

    monkeypatch.setattr(restoring, "make_initial", gone)
    with pytest.raises(InputError, match=r"kl/start compares.*runs/warm_start is not.*--logging.kl-interval-steps 0"):
        run(measured(config, 1), tmp_path)
    run(dataclasses.replace(config, max_steps=1), tmp_path)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="kl_interval_steps must be at least 0"):
        LoggingConfig(kl_interval_steps=-1)
    with pytest.raises(ValueError, match="is of runs that sample"):
        sft_config(logging=LoggingConfig(kl_interval_steps=1))
