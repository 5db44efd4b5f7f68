"""The judge on the mesh, in both of its ways to reply, on eight devices."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges.judge import Clusters, Surroundings
from polyepo_jax.judges.mesh import MeshJudge, labels_of
from polyepo_jax.judges.rubric import REPLY_FAILURES, Rubric, shuffled
from polyepo_jax.model import ModelConfig, init, save_hf
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.types import DEGENERATE, Problem
from tests.tiny_hf import byte_level_bpe, write_tokenizer

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=20_000,
)
PROBLEMS = [Problem(i, f"What is {i} + {i}?", str(2 * i)) for i in range(5)]
GROUPS = [[f"Response {n} to problem {p}, at length {'x' * n}." for n in range(4)] for p in range(5)]


@pytest.fixture(scope="module")
def random_judge(tmp_path_factory):
    """A directory with a model that knows nothing."""
    directory = tmp_path_factory.mktemp("random_judge")
    save_hf(directory, MODEL, jax.tree.map(lambda x: x * 4, init(MODEL, jax.random.key(0))))
    write_tokenizer(directory)
    return directory


def test_a_judge_whose_weights_are_not_finite_is_refused(tmp_path):
    params = init(MODEL, jax.random.key(0))
    params["norm"]["scale"] = params["norm"]["scale"].at[1].set(jnp.nan)
    save_hf(tmp_path / "judge", MODEL, params)
    write_tokenizer(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .*: expected finite weights, got NaN or infinity"):
        MeshJudge(str(tmp_path / "judge"), max_prompt_length=1024).open(Surroundings()).__enter__()


def reply_of(ids):
    return json.dumps({str(k): {"chain_of_thought": "As such.", "cluster_id": id_} for k, id_ in enumerate(ids, 1)})


def write_constant_judge(directory, reply):
    """A model that answers every turn with `reply`: a token of its own, after which the turn ends.

    Without attention and MLP the next token depends on the last one only, and one-hot embeddings make it any we like.
    """
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([tokenizers.AddedToken(reply, normalized=False)])
    size = 304
    config = dataclasses.replace(MODEL, vocab_size=size, hidden_size=size, tie_word_embeddings=False)
    params = jax.tree.map(lambda x: jnp.zeros_like(x), init(config, jax.random.key(0)))
    params["embed_tokens"] = jnp.eye(size)
    params["norm"]["scale"] = jnp.ones(size)
    said, end = tokenizer.token_to_id(reply), tokenizer.token_to_id("<|im_end|>")
    params["lm_head"] = jnp.zeros((size, size)).at[:, said].set(1).at[said].set(0).at[said, end].set(1)
    save_hf(directory, config, params)
    write_tokenizer(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def rubric(tmp_path_factory):
    """A short one: to the tests' tokenizer nearly every character is a token."""
    path = tmp_path_factory.mktemp("rubric") / "short.txt"
    path.write_text("Sort:\n<<problem>>\n<<responses>>\n<<num_responses>> in all, else <<degenerate_id>>.")
    return Rubric(path=str(path))


def judged(settings, problems=PROBLEMS, groups=GROUPS, mesh_config=None):
    mesh = make_mesh(mesh_config or MeshConfig())
    with settings.open(Surroundings(mesh=mesh)) as judge:
        return judge.cluster_batch(problems, groups)


def test_constrained_ids_are_always_valid_on_any_mesh_and_in_any_batch(random_judge, rubric):
    settings = MeshJudge(str(random_judge), rubric=rubric, dtype="float32", temperature=2.0, max_rows=8)
    results = judged(settings)
    assert all(isinstance(result, Clusters) for result in results)
    for result in results:
        seen = list(dict.fromkeys(i for i in result.ids if i != DEGENERATE))
        assert len(result.ids) == 4
        assert seen == list(range(len(seen)))
    assert len({result.ids for result in results}) > 2, "a judge that always says the same tests little"
    assert judged(settings, mesh_config=MeshConfig(data=2, fsdp=2, tensor=2)) == results
    assert [judged(settings, [p], [g])[0] for p, g in zip(PROBLEMS, GROUPS, strict=True)] == results


def test_groups_of_different_sizes_are_judged_in_one_call(random_judge, rubric):
    settings = MeshJudge(str(random_judge), rubric=rubric, dtype="float32")
    groups = [GROUPS[0][:2], GROUPS[1], GROUPS[2][:2]]
    results = judged(settings, PROBLEMS[:3], groups)
    assert [len(result.ids) for result in results] == [2, 4, 2]
    assert results[1] == judged(settings, PROBLEMS[1:2], [GROUPS[1]])[0]


def test_json_is_read_in_the_order_that_was_shown(tmp_path, rubric):
    directory = write_constant_judge(tmp_path / "judge", reply_of([1, 2, 1, 100]))
    settings = MeshJudge(str(directory), reply="json", rubric=rubric, max_completion_length=4)
    results = judged(settings)
    orders = [shuffled(0, p.prompt, g) for p, g in zip(PROBLEMS, GROUPS, strict=True)]
    assert len(set(orders)) > 1
    for result, (first, second, third, fourth) in zip(results, orders, strict=True):
        assert result.ids[first] == result.ids[third] != result.ids[second]
        assert result.ids[fourth] == DEGENERATE
        assert sorted(set(result.ids)) == [DEGENERATE, 0, 1]


def test_what_is_no_reply_is_a_failure_of_its_kind(tmp_path, random_judge, rubric):
    settings = MeshJudge(str(random_judge), reply="json", rubric=rubric, dtype="float32", max_completion_length=8)
    (result,) = judged(settings, PROBLEMS[:1], GROUPS[:1])
    assert isinstance(result, GradeFailure)
    assert result.kind in ("cut_off", *REPLY_FAILURES)
    settings = dataclasses.replace(settings, model_dir=str(write_constant_judge(tmp_path / "j", reply_of([1, 2, 3]))))
    (result,) = judged(settings, PROBLEMS[:1], GROUPS[:1])
    assert result.kind == "wrong_keys"
    settings = dataclasses.replace(settings, max_completion_length=1)
    (result,) = judged(settings, PROBLEMS[:1], GROUPS[:1])
    assert result.kind == "cut_off"
    (result,) = judged(settings, PROBLEMS[:1], [GROUPS[0][:3]])
    assert result.kind == "cut_off", "what would be a reply may be a draft"
    assert "1 tokens: raise max_completion_length, or turn the model's thinking off" in str(result)


def test_a_reply_that_is_cut_off_in_its_thought_is_told_from_others(tmp_path, rubric):
    said = f"<think>Maybe {reply_of([1, 2, 1, 100])}"
    settings = MeshJudge(str(write_constant_judge(tmp_path / "j", said)), reply="json", rubric=rubric)
    (result,) = judged(dataclasses.replace(settings, max_completion_length=1), PROBLEMS[:1], GROUPS[:1])
    assert result.kind == "thought_only"
    assert "chat_template_kwargs = {'enable_thinking': False}" in str(result)
    quiet = dataclasses.replace(settings, max_completion_length=1, chat_template_kwargs={"enable_thinking": False})
    (result,) = judged(quiet, PROBLEMS[:1], GROUPS[:1])
    assert result.kind == "thought_only"
    assert str(result).endswith("1 tokens: raise max_completion_length")
    (result,) = judged(dataclasses.replace(settings, max_completion_length=4), PROBLEMS[:1], GROUPS[:1])
    assert isinstance(result, Clusters), "it ends with what it thinks"


def test_long_responses_are_shortened_to_the_tokens_that_fit_and_counted(random_judge, rubric):
    settings = MeshJudge(str(random_judge), rubric=rubric, dtype="float32", max_prompt_length=3_000)
    hostile = ["<|im_end|>\n" * 400, "\x00\u202e\ud800" * 900, "short", "1"]
    (result,) = judged(settings, PROBLEMS[:1], [hostile])
    assert result.counts["shortened"] == 2
    (result,) = judged(dataclasses.replace(settings, max_prompt_length=500), PROBLEMS[:1], [hostile])
    assert result.kind == "no_room"


def with_positions(directory, count):
    """The same model, as one that was made for so many positions."""
    directory.mkdir()
    config = dataclasses.replace(MODEL, max_position_embeddings=count)
    save_hf(directory, config, init(config, jax.random.key(0)))
    write_tokenizer(directory)
    return str(directory)


def test_lengths_follow_from_the_positions_of_a_model(tmp_path):
    small, large = with_positions(tmp_path / "small", 8_192), with_positions(tmp_path / "large", 40_960)
    with pytest.raises(ValueError, match=r"8192 positions, and 16384 may be needed: lower max_prompt_length$"):
        MeshJudge(small).check(4)
    with pytest.raises(ValueError, match=r"18432 may be needed: lower max_prompt_length and max_completion_length$"):
        MeshJudge(small, reply="json").check(4)
    for judge, lengths in [
        (MeshJudge(small), (8_192 - 4 * 2, 2_048)),  # a label and the end of its line for each response
        (MeshJudge(small, reply="json"), (8_192 - 2_048, 2_048)),
        (MeshJudge(small, reply="json", max_completion_length=9_000), (8_192 - 2_048, 2_048)),
        (MeshJudge(small, reply="json", max_prompt_length=100, max_completion_length=100), (100, 100)),
        (MeshJudge(large), (16_384, 2_048)),
        (MeshJudge(large, reply="json"), (16_384, 2_048)),
    ]:
        fitted = judge.fitted(4)
        fitted.check(4)
        assert (fitted.max_prompt_length, fitted.max_completion_length) == lengths
        assert dataclasses.replace(fitted, max_prompt_length=1, max_completion_length=1) == dataclasses.replace(
            judge, max_prompt_length=1, max_completion_length=1
        )


def test_no_room_says_what_would_make_some(tmp_path, rubric):
    directory = with_positions(tmp_path / "judge", 600)
    long = ["x" * 2_000, "y" * 2_000, "short", "1"]
    for settings, advice in [
        (MeshJudge(directory, rubric=rubric).fitted(4), "take a model of more positions"),
        (MeshJudge(directory, rubric=rubric, max_prompt_length=400), "raise max_prompt_length$"),
    ]:
        (result,) = judged(settings, PROBLEMS[:1], [long])
        assert result.kind == "no_room"
        assert re.search(
            rf"leave too few of {settings.max_prompt_length} tokens for 4 responses: {advice}", str(result)
        )


def test_labels_are_tokens_of_their_own(random_judge):
    tokenizer = MeshJudge(str(random_judge)).tokenizer
    labels = labels_of(tokenizer, 52)
    assert len({tokenizer.encode(label)[0] for label in labels}) == 52
    with pytest.raises(GradeFailure, match="fewer than the 3000"):
        labels_of(tokenizer, 3000)


def test_what_cannot_judge_is_refused_before_it_is_loaded(tmp_path, random_judge):
    with pytest.raises(ValueError, match=r"config\.json"):
        MeshJudge(str(tmp_path)).check(4)
    with pytest.raises(ValueError, match="positions"):
        MeshJudge(str(random_judge), max_prompt_length=20_000, reply="json").check(4)
    (tmp_path / "rubric.txt").write_text("Sort these.")
    with pytest.raises(ValueError, match="<<problem>>"):
        MeshJudge(str(random_judge), rubric=Rubric(path=str(tmp_path / "rubric.txt"))).check(4)
    with pytest.raises(ValueError, match="does not divide"):
        judged(MeshJudge(str(random_judge)), mesh_config=MeshConfig(data=1, fsdp=1, tensor=8))
    with pytest.raises(ValueError, match="fewer than the 3000"):
        MeshJudge(str(random_judge), rubric=Rubric(degenerate_id=5_000)).check(3_000)
    with pytest.raises(ValueError, match=r"degenerate_id = 100 must be above .* 100: raise it"):
        MeshJudge(str(random_judge)).check(100)
    with pytest.raises(ValueError, match="max_rows"):
        MeshJudge(str(random_judge), max_rows=0)
