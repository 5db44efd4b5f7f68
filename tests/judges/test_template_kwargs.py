"""Arguments for a judge's chat template: sent, rendered, kept in configs, and part of what an answer depends on."""

import dataclasses
import json

import pytest

from polyepo_jax.config import Config
from polyepo_jax.config.files import from_json, load, override, to_json
from polyepo_jax.errors import InputError
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import HTTPJudge, MeshJudge, Surroundings
from polyepo_jax.judges.cache import cache_key
from polyepo_jax.runs import run_directory
from tests.judges.server import JudgeServer
from tests.judges.test_http import CLUSTERS, PROBLEM, RESPONSES, judge_of, rule
from tests.tiny import rl_config
from tests.tiny_hf import write_tokenizer

QUIET = {"enable_thinking": False}


def test_they_are_sent_as_they_are_and_nothing_is_sent_where_there_are_none():
    kwargs = {**QUIET, "style": ["short", {"of": None}]}
    with JudgeServer(rule) as server:
        for settings in ({"chat_template_kwargs": kwargs}, {}):
            with judge_of(server, **settings).open(Surroundings()) as live:
                assert live.cluster(PROBLEM, RESPONSES).ids == CLUSTERS
    assert server.requests[0]["chat_template_kwargs"] == kwargs
    assert "chat_template_kwargs" not in server.requests[1]


def test_without_them_the_identity_is_what_it_was():
    """As of the first caches: an answer of theirs still counts."""
    identity = HTTPJudge("m").identity()
    assert list(identity) == [
        *("model", "temperature", "max_tokens", "sampling_seed", "shuffle_seed", "structured_output", "rubric")
    ]
    identity["rubric"] = "as it is worded"
    assert cache_key(identity, "P", ["a"]) == "2248c62a78b7058662f3e3212187cfd6c33eaa9ceb94990a478aa4be437f362b"
    with_them = HTTPJudge("m", chat_template_kwargs=QUIET).identity()
    assert with_them["chat_template_kwargs"] == QUIET


def test_configs_hold_them(tmp_path):
    judge = JudgeConfig(HTTPJudge("m", chat_template_kwargs={**QUIET, "a": [1, {"b": None}]}))
    config = rl_config(judge=judge)
    hash(config.judge)
    value = json.loads(json.dumps(to_json(config)))
    assert from_json(value, Config) == config
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert load(tmp_path / "config.json", Config) == config
    changed = override(config, ["--judge.clusterer.chat-template-kwargs.enable-thinking", "True"], "p")
    assert changed.judge.clusterer.chat_template_kwargs == {"enable_thinking": True, "a": [1, {"b": None}]}
    plain = rl_config(judge=JudgeConfig(HTTPJudge("m")))
    set_anew = override(plain, ["--judge.clusterer.chat-template-kwargs", "enable_thinking", "False"], "p")
    assert set_anew.judge.clusterer.chat_template_kwargs == QUIET
    value["judge"]["clusterer"]["chat_template_kwargs"] = ["enable_thinking"]
    with pytest.raises(InputError, match=r"judge\.clusterer\.chat_template_kwargs: expected"):
        from_json(value, Config)


@pytest.mark.parametrize("kwargs", [{"class": "builtins:dict"}, {"function": "os:getcwd"}])
def test_they_are_data_whatever_they_are_called(kwargs):
    config = rl_config(judge=JudgeConfig(HTTPJudge("m", chat_template_kwargs=kwargs)))
    assert from_json(to_json(config), Config) == config


def test_a_run_of_before_goes_on_and_thinking_may_be_turned_off_on_the_way(tmp_path):
    config = rl_config(judge=JudgeConfig(HTTPJudge("m")))
    old = to_json(config)
    del old["judge"]["clusterer"]["chat_template_kwargs"]
    assert run_directory.compare(tmp_path, old, config) == []
    quiet = dataclasses.replace(config, judge=JudgeConfig(HTTPJudge("m", chat_template_kwargs=QUIET)))
    [line] = run_directory.compare(tmp_path, old, quiet)
    assert line == "judge.clusterer.chat_template_kwargs.enable_thinking: None -> False"


def test_the_template_of_a_judge_on_the_mesh_is_told(tmp_path):
    write_tokenizer(tmp_path)
    plain = MeshJudge(str(tmp_path)).tokenizer
    quiet = MeshJudge(str(tmp_path), chat_template_kwargs=QUIET).tokenizer
    assert quiet.encode_prompt("Hi.") == [*plain.encode_prompt("Hi."), *plain.encode("<think>\n\n</think>\n\n")]
    assert plain != quiet
    assert len({plain: 1, quiet: 2}) == 2
    assert MeshJudge(str(tmp_path), chat_template_kwargs={"messages": []}).tokenizer.encode_prompt(
        "Hi."
    ) == plain.encode_prompt("Hi.")


def test_they_need_a_template():
    with pytest.raises(ValueError, match="chat_template_kwargs must be empty with chat = False"):
        MeshJudge("judge", chat=False, chat_template_kwargs=QUIET)
