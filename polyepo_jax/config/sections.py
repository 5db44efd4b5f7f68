"""The config of a run, composed of dataclasses that live beside the code they configure.

Top level are the words that people override daily; the rest is nested by concern.
"""

import dataclasses
import inspect
import math
from typing import TYPE_CHECKING, Any, Literal

from polyepo_jax.evaluation import MAX_SAMPLES
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import ModelConfig, ModelNumerics
from polyepo_jax.model.config import Dtype
from polyepo_jax.sampling import Sampling
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.sharding import MeshConfig
from polyepo_jax.training.samples import LEAST_ROW_BYTES
from polyepo_jax.training.update import OptimizerConfig

# A config in a file may leave the shape to a directory that it names; once a command has read both, it is there
# (runs/model_shape.py), and all but those two go by that.
if TYPE_CHECKING:
    Model = ModelConfig
else:
    Model = ModelConfig | ModelNumerics


def _check_number(config: Any, name: str, minimum: int) -> None:
    value = getattr(config, name)
    if not isinstance(value, (int, float)) or not value >= minimum or not math.isfinite(value):
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def _takes_arguments(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where the first parameters come from.

    Attributes:
      run_dir: run directory whose newest checkpoint is taken, once it has reached its max_steps.
      step: another checkpoint of it, also of an unfinished run.
      model_dir: model in Hugging Face's format, or as `convert hf-import` writes it, to start from instead. With
        neither, parameters are initialised at random.
      adapter_dir: directory in PEFT's format, as `convert hf-export` writes it, with adapters to the model in model_dir
        that `model.lora` starts from; without it these are new, and change nothing yet.
    """

    run_dir: str | None = None
    step: int | None = None
    model_dir: str | None = None
    adapter_dir: str | None = None

    def __post_init__(self):
        if self.run_dir is not None and self.model_dir is not None:
            raise ValueError(
                f"init.run_dir ({self.run_dir}) and init.model_dir ({self.model_dir}) exclude each other: set one"
            )
        if self.step is not None and self.run_dir is None:
            raise ValueError(f"init.step ({self.step}) is a checkpoint of init.run_dir, which is not set")
        if self.adapter_dir is not None and self.model_dir is None:
            raise ValueError(
                f"init.adapter_dir ({self.adapter_dir}) has adapters to a model: set init.model_dir to where that is"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Sampling on held-out problems.

    Attributes:
      num_samples: generations of each problem.
      num_prompts: problems of the test split, in their order; None for all.
      num_validation_prompts: problems of the validation split, for evaluation during training; None for all.
      max_rows: generations sampled at a time; during training no more than sampling.max_rows.
    """

    num_samples: int = 64
    num_prompts: int | None = None
    num_validation_prompts: int | None = None
    max_rows: int = 1024

    def __post_init__(self):
        for name in ("num_samples", "num_prompts", "num_validation_prompts", "max_rows"):
            if getattr(self, name) is not None:
                _check_number(self, name, 1)
        if self.num_samples > MAX_SAMPLES:
            raise ValueError(f"num_samples must be at most {MAX_SAMPLES}, got {self.num_samples}")


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go beside metrics.jsonl, and which generations are kept in samples.jsonl.

    Attributes:
      tensorboard: write event files to the run directory.
      wandb_project: also log to this Weights & Biases project (extra `wandb`).
      samples_interval_steps: every so many steps, generations go to samples.jsonl.
      samples_prompts: prompts of such a step whose generations are kept, all of each; 0 for none.
      samples_bytes: that a step adds to samples.jsonl at most. The middle of long texts is left out, and where there
        are so many generations that a row had less than 512 bytes, fewer prompts are kept.
      kl_interval_steps: every so many steps, kl/start says how far the policy has gone from the initial one, of which
        the devices then keep the parameters too; 0 for never. Of set-RL runs.
      slow_step_factor: a step, save or evaluation that takes so many times the median of those before it, and 10 s at
        least, is reported with the stacks of every process; 0 for never.
    """

    tensorboard: bool = True
    wandb_project: str | None = None
    samples_interval_steps: int = 1
    samples_prompts: int = 4
    samples_bytes: int = 65_536
    kl_interval_steps: int = 0
    slow_step_factor: float = 10.0

    def __post_init__(self):
        _check_number(self, "samples_interval_steps", 1)
        _check_number(self, "samples_prompts", 0)
        _check_number(self, "samples_bytes", LEAST_ROW_BYTES)
        _check_number(self, "kl_interval_steps", 0)
        _check_number(self, "slow_step_factor", 0)
        if 0 < self.slow_step_factor <= 1:
            raise ValueError(f"slow_step_factor must be above 1, or 0 for never, got {self.slow_step_factor}")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Truncation of the sampled distribution, of which the trainer's logprobs are too; and how it is done.

    Attributes:
      top_k: keeps this many most likely tokens; 0 keeps all.
      top_p: keeps the fewest most likely tokens whose probability reaches this; 1 keeps all.
      max_rows: generations sampled at a time: one that ends makes room for the next. It bounds the key/value cache and
        changes no token; `python -m polyepo_jax.plan` says what fits.
      gather_weights: hold a copy of the weights in the model's dtype, not cut over `mesh.fsdp`, during a rollout;
        without it every layer is fetched anew for every token.
      dtype: of rollouts, None for the model's: bfloat16 halves the cache and what a token reads, where training is in
        float32. `logprobs/sampler_gap` says how far the two are apart, and `algorithm.loss.importance_cap` corrects for
        it. Evaluations are in the model's own.
    """

    top_k: int = 0
    top_p: float = 1.0
    max_rows: int = 1024
    gather_weights: bool = True
    dtype: Dtype | None = None

    def __post_init__(self):
        _check_number(self, "max_rows", 1)


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """How grades become an update.

    Attributes:
      advantage: a dataclass that maps a group's rewards and clusters to advantages: SetAdvantage, GRPO, GRPODiv,
        LeaveOneOut, MaxRL or your own (docs/objectives.md).
      loss: the clipped policy gradient.
      truncated: completions cut at max_completion_length have reward 0; "zero_reward" trains on them like on any
        other, "mask" leaves their tokens out of the loss.
      num_iterations: passes over the batch of a step.
      mini_batch_size: prompts of an optimizer update; None for all of the step.
      micro_batch_size: generations of full length whose activations are held at a time; None for all of the mini-batch.
        Shorter ones share their room, and there are fewer micro-batches.
      skip_zero_advantage: leave generations without any advantage out of the update; loss and gradient stay what they
        were. None for where that can be: micro-batches are smaller than the mini-batch, and the loss has no KL term.
      max_prompt_batches: where groups lack signal (every advantage 0), draw up to so many batches of prompts in a
        step, until prompts_per_step groups carry some (dynamic sampling, DAPO, arXiv:2503.14476); 1 draws one, and
        trains on it as it is. Groups that are surplus or without signal are dropped and counted.
      staleness: k: rollouts of a step are sampled before the updates of the k steps before it, so that a judge has k
        steps' time for them (docs/judges.md). The loss clips the ratio to the policy that sampled; with
        `loss.importance_cap` it weighs by that ratio instead. 0 samples, grades and updates one after the other.
    """

    advantage: Any = SetAdvantage(Polychromic())
    loss: PolicyLoss = PolicyLoss()
    truncated: Literal["zero_reward", "mask"] = "zero_reward"
    num_iterations: int = 1
    mini_batch_size: int | None = None
    micro_batch_size: int | None = None
    skip_zero_advantage: bool | None = None
    max_prompt_batches: int = 1
    staleness: int = 0

    def __post_init__(self):
        _check_number(self, "num_iterations", 1)
        _check_number(self, "max_prompt_batches", 1)
        _check_number(self, "staleness", 0)
        if self.staleness and self.max_prompt_batches > 1:
            raise ValueError(
                f"staleness ({self.staleness}) needs max_prompt_batches = 1, got {self.max_prompt_batches}: which "
                "prompts dynamic sampling draws next depends on grades that are not there yet"
            )
        for name in ("mini_batch_size", "micro_batch_size"):
            if getattr(self, name) is not None:
                _check_number(self, name, 1)
        if not dataclasses.is_dataclass(type(self.advantage)) or not _takes_arguments(self.advantage, 4):
            raise ValueError(
                "advantage must be a dataclass called as (key, rewards_N, clusters_N, valid_N), like "
                f"SetAdvantage(objective), got {self.advantage!r}"
            )
        try:
            hash(self.advantage)
        except TypeError as error:
            raise ValueError(
                f"advantage must be hashable, for it is a key of compiled functions, got {self.advantage!r} ({error}): "
                "declare it and its parts as @dataclass(frozen=True), with tuples in place of lists"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has.

    Attributes:
      task: the domain, a dataclass as of polyepo_jax.tasks.
      model: the model's shape, and how it is computed. A ModelNumerics says the latter alone: the shape is that of
        init.model_dir, of the run in init.run_dir, or else of the directory of the task's tokenizer.
      seed: of initialisation, data order and sampling.
      max_steps: batches to train on.
      save_interval_steps: steps between checkpoints; the last step is always saved.
      eval_interval_steps: steps between evaluations on the validation split; 0 for none.
      max_to_keep: newest checkpoints that are kept.
      on_save_failure: what becomes of the run where a checkpoint cannot be written, on a full disk for one. "stop": it
        ends with the error; "continue": it says so, goes on, and tries again at the next save; only the last
        checkpoint, or that of a run that is told to stop, has to be written. Older ones stay in either case.
      prompts_per_step: P, distinct prompts of a step.
      max_prompt_length: tokens of a prompt at most.
      long_prompts: what happens to longer ones; they are never cut.
      max_completion_length: tokens of a completion at most, end token included.
      temperature: of sampling; evaluation samples at the same.
      learning_rate: at its peak.
      max_nonfinite_updates: updates in a row that may be skipped for a NaN or infinite loss or gradient before
        the run stops.
    """

    task: Any
    model: Model = ModelNumerics()  # type: ignore[assignment]
    max_steps: int
    prompts_per_step: int
    max_prompt_length: int
    max_completion_length: int
    learning_rate: float
    seed: int = 0
    save_interval_steps: int = 100
    eval_interval_steps: int = 0
    max_to_keep: int = 2
    on_save_failure: Literal["stop", "continue"] = "stop"
    long_prompts: Literal["refuse", "drop"] = "refuse"
    temperature: float = 1.0
    max_nonfinite_updates: int = 10
    init: InitConfig = InitConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self):
        for name in (
            "max_steps",
            "save_interval_steps",
            "max_to_keep",
            "prompts_per_step",
            "max_prompt_length",
            "max_completion_length",
            "max_nonfinite_updates",
        ):
            _check_number(self, name, 1)
        for name in ("seed", "eval_interval_steps", "learning_rate"):
            _check_number(self, name, 0)
        if self.seed >= 2**31:
            raise ValueError(f"seed must be below 2^31, got {self.seed}")
        lacking = [n for n in ("name", "tokenizer", "problems", "verify", "cluster") if not hasattr(self.task, n)]
        if lacking or not dataclasses.is_dataclass(type(self.task)):
            raise ValueError(
                f"task must be a dataclass as of polyepo_jax.tasks, got {self.task!r}"
                + (f" without {', '.join(lacking)}" if lacking else "")
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be greater than 0 in training, got {self.temperature}: greedy samples have no "
                "gradient (evaluate takes --temperature 0)"
            )
        if self.model.lora is not None and self.init.model_dir is None and self.init.run_dir is None:
            raise ValueError(
                "model.lora trains adapters to a model: set init.model_dir, or init.run_dir, to where that is (random "
                "parameters, which no checkpoint would hold, are not the same bits on every machine)"
            )
        if self.init.adapter_dir is not None and self.model.lora is None:
            raise ValueError(
                f"init.adapter_dir ({self.init.adapter_dir}) needs model.lora: set it to a LoRA with the rank, "
                "alpha and targets of the adapters"
            )
        length = self.max_prompt_length + self.max_completion_length
        if isinstance(self.model, ModelConfig) and length > self.model.max_position_embeddings:
            raise ValueError(
                f"max_prompt_length + max_completion_length ({length} tokens) exceed model.max_position_embeddings "
                f"({self.model.max_position_embeddings}), the positions that the model was made for"
            )

    def sampler(self) -> Sampling:
        """The distribution that is sampled, in evaluation too."""
        return Sampling(self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A set-RL run.

    Attributes:
      num_generations: N, generations of each prompt.
      sampling: truncation of the sampled distribution.
      algorithm: advantages, loss and batching of the update.
      judge: who clusters the generations by strategy, where not the task itself.
    """

    num_generations: int
    sampling: SamplingConfig = SamplingConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    judge: JudgeConfig = JudgeConfig()

    def __post_init__(self):
        super().__post_init__()
        _check_number(self, "num_generations", 2)
        self.sampler()
        check = getattr(self.algorithm.advantage, "check", None)
        if check is not None:
            check(self.num_generations)
        if self.algorithm.staleness >= self.max_steps:
            raise ValueError(
                f"algorithm.staleness ({self.algorithm.staleness}) must be less than max_steps ({self.max_steps}): all "
                "rollouts would be sampled before the first update"
            )
        prompts = self.algorithm.mini_batch_size or self.prompts_per_step
        if self.prompts_per_step % prompts:
            raise ValueError(
                f"algorithm.mini_batch_size ({prompts} prompts) must divide prompts_per_step ({self.prompts_per_step})"
            )
        rows = prompts * self.num_generations
        micro_rows = self.algorithm.micro_batch_size or rows
        if rows % micro_rows:
            raise ValueError(
                f"algorithm.micro_batch_size ({micro_rows} generations) must divide a mini-batch's {rows} generations"
            )
        if self.algorithm.skip_zero_advantage and micro_rows == rows:
            raise ValueError(
                "algorithm.skip_zero_advantage saves nothing in a single micro-batch: "
                f"set algorithm.micro_batch_size to less than a mini-batch's {rows} "
                "generations"
            )
        if self.algorithm.skip_zero_advantage and self.algorithm.loss.needs_reference:
            raise ValueError(
                "algorithm.skip_zero_advantage needs algorithm.loss.beta = 0, got "
                f"{self.algorithm.loss.beta}: the KL term trains every generation, whatever its advantage"
            )

    def sampler(self) -> Sampling:
        """The distribution that is sampled and trained, and sampled in evaluation."""
        return Sampling(self.temperature, self.sampling.top_k, self.sampling.top_p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(RunConfig):
    """A supervised warm start on a task's demonstrations, one of each prompt.

    Attributes:
      micro_batch_size: rows whose activations are held at a time; None for all.
    """

    micro_batch_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.micro_batch_size is not None:
            _check_number(self, "micro_batch_size", 1)
        rows = self.micro_batch_size or self.prompts_per_step
        if self.prompts_per_step % rows:
            raise ValueError(f"micro_batch_size ({rows}) must divide prompts_per_step ({self.prompts_per_step})")
        if self.logging.kl_interval_steps:
            raise ValueError(
                f"logging.kl_interval_steps ({self.logging.kl_interval_steps}) is of runs that sample: leave it at 0"
            )
        if not hasattr(self.task, "demonstrate"):
            raise ValueError(f"task {type(self.task).__name__} has no demonstrations (a method `demonstrate`)")
