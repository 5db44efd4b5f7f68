"""What compiled functions need to know of a config, and the streams of its random numbers."""

import dataclasses
import zlib

import jax

from polyepo_jax.config.sections import Config, RunConfig
from polyepo_jax.model import ModelConfig
from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.sampling import GenerationSpec, Sampling, abstract_rollouts
from polyepo_jax.sharding import Mesh, row_sharding
from polyepo_jax.training.rollouts import DrawSpec
from polyepo_jax.training.samples import SamplesSpec
from polyepo_jax.training.update import UpdateSpec
from polyepo_jax.types import Rollouts


def stream(seed: int, name: str) -> jax.Array:
    """The root key of one independent stream of random numbers.

    A step's key is fold_in(root, step), and fold_in(key, i) is the i-th key of split(key): streams that shared a
    root would share keys.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def sampled_model(config: Config) -> ModelConfig:
    """The model as rollouts compute it."""
    return dataclasses.replace(config.model, dtype=config.sampling.dtype or config.model.dtype)


def generation_spec(config: Config, tokenizer: Tokenizer | None = None) -> GenerationSpec:
    """What each step samples; with the task's tokenizer, unless another is given."""
    tokenizer = config.task.tokenizer if tokenizer is None else tokenizer
    return GenerationSpec(
        model=sampled_model(config),
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        sampling=config.sampler(),
        gather_weights=config.sampling.gather_weights,
    )


def update_spec(config: Config) -> UpdateSpec:
    """What each step updates."""
    algorithm = config.algorithm
    mini_batch, skip = algorithm.mini_batch_size, algorithm.skip_zero_advantage
    if skip is None:
        rows = (mini_batch or config.prompts_per_step) * config.num_generations
        skip = (algorithm.micro_batch_size or rows) < rows and not algorithm.loss.needs_reference
    return UpdateSpec(
        model=config.model,
        loss=algorithm.loss,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        prompt_length=config.max_prompt_length,
        sampling=config.sampler(),
        num_iterations=algorithm.num_iterations,
        mini_batch_rows=None if mini_batch is None else mini_batch * config.num_generations,
        micro_batch_rows=algorithm.micro_batch_size,
        skip_zero_advantage=skip,
        stale=algorithm.staleness > 0,
    )


def keeps_reference(config: RunConfig) -> bool:
    """Whether the initial parameters stay on the devices: the loss or kl/start compares with them."""
    return isinstance(config, Config) and (
        config.algorithm.loss.needs_reference or config.logging.kl_interval_steps > 0
    )


def evaluation_spec(config: RunConfig, num_samples: int, sampling: Sampling) -> GenerationSpec:
    """How held-out problems are sampled."""
    return GenerationSpec(
        model=config.model,
        num_generations=num_samples,
        max_completion_length=config.max_completion_length,
        stop_ids=config.task.tokenizer.stop_ids,
        pad_id=config.task.tokenizer.pad_id,
        sampling=sampling,
        gather_weights=config.sampling.gather_weights if isinstance(config, Config) else True,
    )


def draw_spec(config: Config, mesh: Mesh) -> DrawSpec:
    """How each step draws its prompts."""
    return DrawSpec(
        generation=generation_spec(config),
        max_rows=config.sampling.max_rows,
        tokenizer=config.task.tokenizer,
        advantage=config.algorithm.advantage,
        mesh=mesh,
        samples=SamplesSpec(config.logging.samples_prompts, config.logging.samples_bytes),
    )


def rollouts_on(config: Config, mesh: Mesh) -> Rollouts:
    """Shapes, dtypes and places of a step's rollouts."""
    place = row_sharding(mesh, config.prompts_per_step)
    sizes = config.prompts_per_step, config.num_generations, config.max_completion_length
    abstract = abstract_rollouts(sampled_model(config), *sizes)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)


def num_updates(config: RunConfig) -> int:
    """Optimizer updates of a whole run."""
    if not isinstance(config, Config):
        return config.max_steps
    mini_batches = config.prompts_per_step // (config.algorithm.mini_batch_size or config.prompts_per_step)
    return config.max_steps * config.algorithm.num_iterations * mini_batches
