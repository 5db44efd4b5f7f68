"""A judge on the run's own devices: a second model, sampled by our own sampler, so that a pod needs no server."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_letters
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges.judge import Clusters, Surroundings
from polyepo_jax.judges.rubric import (
    RENDER_FAILURES,
    REPLY_FAILURES,
    Rendered,
    Rubric,
    in_original_order,
    is_unclosed_thought,
    parse_reply,
    shuffled,
)
from polyepo_jax.judges.template_kwargs import TemplateKwargs, check_template_kwargs, or_no_thought
from polyepo_jax.model import ModelConfig, init, load_hf, logical_axes
from polyepo_jax.model.hf import read_config
from polyepo_jax.model.tokenizer import HFTokenizer
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import (
    GenerationSpec,
    LabelSpec,
    Sampling,
    choose_labels,
    generate,
    in_waves,
    prompts_per_wave,
)
from polyepo_jax.sharding import BATCH_AXES, Mesh, MeshConfig, check_divides, copy_to_all, make_mesh
from polyepo_jax.types import Array, Problem, Prompts

_DEGENERATE_LABEL = "0"
_SEPARATOR = "\n"  # of labels
# Follows the rubric, which asks for JSON.
_LABELS_INSTRUCTION = """

This time, do not write JSON and do not explain. Write {num} lines, one for each response from 1 to {num}, in this \
order. A line holds nothing but the label of the response's cluster: the first cluster that comes up is called \
{labels}, in this order; a response for which you would give the number of degenerate responses is called {degenerate}.
"""


@dataclasses.dataclass(frozen=True)
class MeshJudge:
    """A language model of `load_hf` on the run's mesh, as a config value.

    It judges once all of a step's rollouts are there: it needs the devices that sample them.

    Attributes:
      model_dir: the judge's directory in Hugging Face's format, with its tokenizer.
      reply: "json" has it write what the rubric asks for, as over HTTP, which may fail; "ids" has it write one label a
        response, of those allowed, after one prefill: always valid, quick, and without a chain of thought.
      rubric: by what it clusters.
      chat: the prompt is a turn of its chat template; False for a model without one.
      chat_template_kwargs: what that template is told beside the prompt, e.g. {"enable_thinking": False}.
      max_prompt_length: tokens of a prompt at most; the responses are shortened until they fit.
      max_completion_length: tokens of a reply at most, with "json".
      max_rows: prompts judged at a time; it bounds the key/value cache.
      dtype: of the judge's weights.
      temperature: of its sampling; 0 takes the most likely token.
      sampling_seed: for a temperature above 0.
      shuffle_seed: of the order in which it sees the responses.
    """

    model_dir: str
    reply: Literal["ids", "json"] = "ids"
    rubric: Rubric = Rubric()
    chat: bool = True
    max_prompt_length: int = 16_384
    max_completion_length: int = 2_048
    max_rows: int = 8
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    temperature: float = 0.0
    sampling_seed: int = 0
    shuffle_seed: int = 0
    chat_template_kwargs: TemplateKwargs = dataclasses.field(default_factory=dict, hash=False)

    counted: ClassVar[tuple[str, ...]] = ("shortened",)
    failures: ClassVar[tuple[str, ...]] = (*RENDER_FAILURES, *REPLY_FAILURES, "cut_off", "no_labels")

    def __post_init__(self):
        Sampling(self.temperature)
        for name in ("max_prompt_length", "max_completion_length", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_template_kwargs(self.chat_template_kwargs)
        if self.chat_template_kwargs and not self.chat:
            raise ValueError("chat_template_kwargs must be empty with chat = False, which leaves the chat template out")

    @property
    def tokenizer(self) -> HFTokenizer:
        return HFTokenizer(self.model_dir, self.chat, self.chat_template_kwargs)

    def fitted(self, num_responses: int) -> "MeshJudge":
        """The same with lengths for which its model has positions; a reply in JSON gets a quarter of them at most.

        Raises:
          ValueError: the model or its tokenizer is not there.
        """
        positions = read_config(Path(self.model_dir)).max_position_embeddings
        judge = dataclasses.replace(self, max_completion_length=max(1, min(self.max_completion_length, positions // 4)))
        room = max(1, positions - judge.reply_length(num_responses))
        return dataclasses.replace(judge, max_prompt_length=min(self.max_prompt_length, room))

    def reply_length(self, num_responses: int) -> int:
        """Tokens of a reply at most."""
        if self.reply == "json":
            return self.max_completion_length
        return num_responses * (1 + len(self.tokenizer.encode(_SEPARATOR)))

    def check(self, num_responses: int) -> None:
        """Raises ValueError unless the model, its tokenizer and the rubric are there and fit each other."""
        self.rubric.check(num_responses)
        config, vocab_size = read_config(Path(self.model_dir)), self.tokenizer.vocab_size
        if vocab_size > config.vocab_size:
            raise ValueError(
                f"{self.model_dir}: the tokenizer has ids up to {vocab_size - 1}, the model {config.vocab_size} "
                "embeddings: get both from one model"
            )
        length, names = self.max_prompt_length, "max_prompt_length"
        if self.reply == "json":
            length, names = length + self.max_completion_length, "max_prompt_length and max_completion_length"
        if length > config.max_position_embeddings:
            raise ValueError(
                f"{self.model_dir} was made for {config.max_position_embeddings} positions, and {length} may be needed"
                f": lower {names}"
            )
        if self.reply == "ids":
            try:
                labels_of(self.tokenizer, num_responses)
            except GradeFailure as failure:
                raise ValueError(str(failure)) from failure

    @contextlib.contextmanager
    def open(self, where: Surroundings) -> Iterator["_JudgeOnMesh"]:
        """Loads the model.

        Raises:
          ValueError: the model cannot be read or is not finite, or the mesh does not divide it.
        """
        mesh = make_mesh(MeshConfig()) if where.mesh is None else where.mesh
        config = read_config(Path(self.model_dir))
        check_divides(mesh, jax.eval_shape(lambda: init(config, jax.random.key(0))), logical_axes(config))
        config, params = load_hf(self.model_dir, dtype=self.dtype, mesh=mesh)
        yield _JudgeOnMesh(self, mesh, config, params)


@dataclasses.dataclass(frozen=True)
class _Question:
    """A prompt for the judge, and where its k-th response, `order[k]`, stands in the group."""

    problem: Problem
    ids: list[int]
    order: tuple[int, ...]
    num_shortened: int


@dataclasses.dataclass(frozen=True)
class _JudgeOnMesh:
    settings: MeshJudge
    mesh: Mesh
    model: ModelConfig
    params: Any

    def cluster_batch(
        self, problems: Sequence[Problem], responses_PN: Sequence[Sequence[str]]
    ) -> list[Clusters | GradeFailure]:
        """As of `polyepo_jax.judges.judge.Judge`."""
        results: list[Any] = [self._ask(*group) for group in zip(problems, responses_PN, strict=True)]
        by_size: dict[int, list[int]] = {}
        for p, result in enumerate(results):
            if isinstance(result, _Question):
                by_size.setdefault(len(result.order), []).append(p)
        answer = self._choose if self.settings.reply == "ids" else self._write
        for chosen in by_size.values():
            for p, result in zip(chosen, answer([results[p] for p in chosen]), strict=True):
                results[p] = result
        return results

    def _ask(self, problem: Problem, responses: Sequence[str]) -> _Question | GradeFailure:
        """The prompt, its responses shortened until it has no more tokens than it may have."""
        settings, rubric = self.settings, self.settings.rubric
        order = shuffled(settings.shuffle_seed, problem.prompt, responses)
        room = settings.max_prompt_length
        try:
            while True:
                rendered = rubric.render(problem.prompt, responses, order)
                ids = self._encode(rendered, len(responses))
                if len(ids) <= room:
                    return _Question(problem, ids, order, rendered.num_shortened)
                fitting = min(len(rendered.text), rubric.max_characters) * room / len(ids)
                rubric = dataclasses.replace(rubric, max_characters=max(int(0.98 * fitting), 1))
        except GradeFailure as failure:
            if rubric is settings.rubric:
                return failure
            # It was shortened to the tokens: they are what there is too little of, not characters.
            full = room + settings.reply_length(len(responses)) >= self.model.max_position_embeddings
            advice = "take a model of more positions, a shorter rubric or fewer responses"
            return GradeFailure(
                failure.kind,
                f"the rubric and a problem of {len(problem.prompt)} characters leave too few of {room} tokens for "
                f"{len(responses)} responses: {advice if full else 'raise max_prompt_length'}",
            )

    def _encode(self, rendered: Rendered, num_responses: int) -> list[int]:
        if self.settings.reply == "json":
            return self.settings.tokenizer.encode_prompt(rendered.text)
        labels = " ".join(labels_of(self.settings.tokenizer, num_responses))
        instruction = _LABELS_INSTRUCTION.format(num=num_responses, labels=labels, degenerate=_DEGENERATE_LABEL)
        return self.settings.tokenizer.encode_prompt(rendered.text + instruction)

    def _prompts(self, questions: Sequence[_Question]) -> Prompts:
        """Left-padded to a power of two (fewer compilations), or to the longest that may come."""
        longest = max(len(question.ids) for question in questions)
        length = min(2 ** math.ceil(math.log2(longest)), self.settings.max_prompt_length)
        tokens_PT = np.full((len(questions), length), self.settings.tokenizer.pad_id, np.int32)
        mask_PT = np.zeros(tokens_PT.shape, bool)
        for row, question in enumerate(questions):
            tokens_PT[row, length - len(question.ids) :] = question.ids
            mask_PT[row, length - len(question.ids) :] = True
        ids_P = np.array([question.problem.id for question in questions], np.int32)
        return Prompts(tokens_PT, mask_PT, ids_P)  # type: ignore[arg-type]  # NumPy until it is placed on devices

    @property
    def _key(self) -> Array:
        return copy_to_all(self.mesh, jax.random.key(self.settings.sampling_seed))

    @property
    def _max_rows(self) -> int:
        """At least a row for each device that the rows are cut over: fewer would leave some without."""
        return max(self.settings.max_rows, self._num_shards)

    @property
    def _num_shards(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def _choose(self, questions: Sequence[_Question]) -> list[Clusters | GradeFailure]:
        tokenizer = self.settings.tokenizer
        labels = labels_of(tokenizer, len(questions[0].order))
        spec = LabelSpec(
            model=self.model,
            num_items=len(labels),
            label_ids=tuple(tokenizer.encode(label)[0] for label in labels),
            degenerate_id=tokenizer.encode(_DEGENERATE_LABEL)[0],
            separator_ids=tuple(tokenizer.encode(_SEPARATOR)),
            sampling=Sampling(self.settings.temperature),
        )
        size = prompts_per_wave(len(questions), 1, self._max_rows, self._num_shards)
        key = self._key
        waves = in_waves(
            lambda prompts: choose_labels(spec, self.params, prompts, key), self._prompts(questions), self.mesh, size
        )
        ids_PN = np.concatenate([collectives.to_host(wave) for wave in waves])
        return [_clusters(question, row.tolist()) for question, row in zip(questions, ids_PN, strict=True)]

    def _write(self, questions: Sequence[_Question]) -> list[Clusters | GradeFailure]:
        tokenizer = self.settings.tokenizer
        spec = GenerationSpec(
            model=self.model,
            num_generations=1,
            max_completion_length=self.settings.max_completion_length,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            sampling=Sampling(self.settings.temperature),
        )
        prompts = self._prompts(questions)
        replies = collectives.to_host(generate(spec, self.params, prompts, self._key, self.mesh, self._max_rows))
        rows = zip(questions, replies.tokens_PNT, replies.completion_mask_PNT, replies.truncated_PN, strict=True)
        return [
            self._read(question, tokenizer.decode(tokens_NT[0][mask_NT[0]].tolist()), bool(truncated_N[0]))
            for question, tokens_NT, mask_NT, truncated_N in rows
        ]

    def _read(self, question: _Question, text: str, truncated: bool) -> Clusters | GradeFailure:
        counts = {"shortened": question.num_shortened}
        if truncated:  # what looks like a reply was a draft, or was to be replaced
            return GradeFailure(
                "thought_only" if is_unclosed_thought(text) else "cut_off",
                f"the judge's reply did not end within {self.settings.max_completion_length} tokens: raise "
                f"max_completion_length{or_no_thought(self.settings.chat_template_kwargs)}",
                counts,
            )
        try:
            return _clusters(question, parse_reply(text, len(question.order), self.settings.rubric.degenerate_id))
        except GradeFailure as failure:
            return GradeFailure(failure.kind, str(failure), counts)


def _clusters(question: _Question, ids: Sequence[int]) -> Clusters:
    return Clusters(in_original_order(ids, question.order), {"shortened": question.num_shortened})


@functools.lru_cache(maxsize=64)
def labels_of(tokenizer: HFTokenizer, count: int) -> tuple[str, ...]:
    """The first `count` texts of one or two letters that are one token each.

    Raises:
      GradeFailure: there are fewer.
    """
    candidates = [*ascii_letters, *(first + second for first in ascii_letters for second in ascii_letters)]
    found = [text for text in candidates if len(tokenizer.encode(text)) == 1]
    if len(found) < count or len(tokenizer.encode(_DEGENERATE_LABEL)) != 1:
        raise GradeFailure(
            "no_labels",
            f"{tokenizer.directory}: its tokenizer has {len(found)} labels of one token, fewer than the {count} "
            "responses of a group: use reply = 'json'",
        )
    return tuple(found[:count])
