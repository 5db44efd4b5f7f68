"""The command `audit_judge`: what it says of judges whose faults are known."""

import dataclasses
import json
import re

import jax
import pytest

from polyepo_jax.audit_judge import agreement, describe, main
from polyepo_jax.errors import InputError, RunError, run_command
from polyepo_jax.evaluation import adjusted_rand_index
from polyepo_jax.model import init, save_hf
from polyepo_jax.shared_by_commands import saved_responses
from tests.judges.server import JudgeServer, always, shown_responses
from tests.judges.test_mesh import MODEL
from tests.tiny_hf import write_tokenizer

CONFIG = """
import dataclasses
import zlib
from polyepo_jax.grading import JudgeConfig
from tests.tiny import EasyPolynomial, rl_config

@dataclasses.dataclass(frozen=True)
class Ended(EasyPolynomial):
    def verify(self, problem, response):
        raise OSError("an audit asks for no rewards")

    def cluster(self, problem, responses):  # final answers: the last letter
        return [ord(response[-1]) - ord("b") for response in responses]

def content(problem, responses):
    return [ord(response[0]) - ord("b") for response in responses]  # "a" is degenerate

def position(problem, responses):
    return [index // 2 for index in range(len(responses))]

def sometimes(problem, responses):
    if "lost" in problem.prompt:
        raise OSError("no\\njudge")
    return content(problem, responses)

def never(problem, responses):
    raise OSError("no judge")

@dataclasses.dataclass(frozen=True)
class Seeded:
    sampling_seed: int = 5

    def cluster(self, problem, responses):
        with open("seeds.txt", "a") as file:
            file.write(f"{{self.sampling_seed}} ")
        return [zlib.crc32(f"{{self.sampling_seed}}{{response}}".encode()) % 3 for response in responses]

def get_config():
    return rl_config(task=Ended(), judge={judge})
"""
EIGHT = ["bx", "by", "cx", "cy", "dx", "dy", "ex", "ey"]


def row(*responses, **others):
    return {"problem": "What is it?", "answer": "1", "responses": list(responses), **others}


@pytest.fixture
def audited(tmp_path, capsys, monkeypatch):
    """Audits a judge on rows: audit.json, and what is printed."""
    monkeypatch.chdir(tmp_path)

    def run(judge, rows, *arguments):
        (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if judge is not None:
            (tmp_path / "config.py").write_text(CONFIG.format(judge=judge))
            arguments = ["--config", "config.py", *arguments]
        main(["responses.jsonl", *arguments])
        return json.loads((tmp_path / "audit.json").read_text()), capsys.readouterr()

    return run


def test_a_judge_of_content_agrees_with_itself_and_is_described_by_hand_counts(audited):
    rows = [row("bx", "by", "ax", "cx"), row("bx", "bx", "ba", "cy", "ay"), row("ax")]
    audit, printed = audited("JudgeConfig(content)", rows, "--orders", "3")
    assert audit == {
        "num_problems": 3,
        "across_orders": {"num_repeats": 3, "adjusted_rand_index": 1.0, "always_the_same_frac": 1.0},
        "across_seeds": None,
        # Three times over: clusters {bx, by}, {cx}, {bx, bx, ba}, {cy}; degenerate ax, ay, ax.
        "degenerate_frac": 3 / 10,
        "clusters_a_problem": 4 / 3,
        "cluster_sizes": {"1": 6, "2": 3, "3": 3},
        "mixed_answers_frac": 2 / 4,
        "mixed_answers_frac_of_shared": 1.0,
        "counts": {},
    }
    assert re.search(r"across orders *│ 3 *│ 1\.000 *│ 100\.0% *│\n│ across seeds *│ *│ no seed", printed.out)
    assert "degenerate 30.0%, clusters a problem 1.33\n" in printed.out
    assert "mix final answers 50.0%, of those of several responses 100.0%\n" in printed.out
    assert "by number of responses: 6 of 1, 3 of 2, 3 of 3\n" in printed.out
    assert not printed.err


def test_a_judge_of_positions_does_not_agree_with_itself(audited):
    audit, printed = audited("JudgeConfig(position)", [row(*EIGHT) for _ in range(10)])
    found = audit["across_orders"]
    assert found["num_repeats"] == 4
    assert -0.2 < found["adjusted_rand_index"] < 0.3  # of random pairs
    assert found["always_the_same_frac"] == 0
    assert f"│ {found['adjusted_rand_index']:.3f} " in printed.out
    assert audit["cluster_sizes"] == {"2": 4 * 40}


def test_a_judge_of_its_seed_differs_across_seeds_only(audited, tmp_path):
    audit, printed = audited("JudgeConfig(Seeded())", [row(*EIGHT) for _ in range(4)], "--orders", "2", "--seeds", "3")
    assert audit["across_orders"] == {"num_repeats": 2, "adjusted_rand_index": 1.0, "always_the_same_frac": 1.0}
    assert audit["across_seeds"]["num_repeats"] == 3
    assert audit["across_seeds"]["adjusted_rand_index"] < 0.9
    assert audit["across_seeds"]["always_the_same_frac"] == 0
    assert sorted((tmp_path / "seeds.txt").read_text().split()) == ["5"] * 8 + ["6"] * 4 + ["7"] * 4
    assert f"│ {audit['across_seeds']['adjusted_rand_index']:.3f} " in printed.out


def test_one_seed_is_no_comparison(audited):
    audit, _ = audited("JudgeConfig(Seeded())", [row(*EIGHT)], "--seeds", "1")
    assert audit["across_seeds"] is None


@pytest.mark.parametrize("on_failure", ["drop", "answers", "stop"])
def test_failures_are_left_out_and_counted_and_never_made_up(audited, on_failure):
    rows = [row("bx", "cx"), row("bx", "bx", "bx", problem="It is lost."), row("ax", "by")]
    audit, printed = audited(f"JudgeConfig(sometimes, on_failure={on_failure!r})", rows)
    assert audit["counts"] == {"judge/failures/exception": 4}
    assert audit["cluster_sizes"] == {"1": 4 * 3}
    assert audit["degenerate_frac"] == 1 / 4
    assert audit["across_orders"]["adjusted_rand_index"] == 1
    assert "judge/failures/exception 4" in printed.out
    assert printed.err == "4 grading calls failed, the first: clustering problem 2: OSError: no judge\n"


def test_a_judge_that_never_succeeds_is_a_failure_that_says_why(audited, tmp_path):
    with pytest.raises(RunError, match=r"clustered no problem: 4 grading calls failed, the first: .*OSError: no judge"):
        audited("JudgeConfig(never)", [row("bx", "cx")])
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["across_orders"] is audit["degenerate_frac"] is audit["mixed_answers_frac"] is None


def test_a_judge_that_fails_too_often_is_not_asked_on(audited, tmp_path):
    with pytest.raises(RunError, match=r"3 of the last 3 judge calls failed.*OSError: no judge; nothing was written"):
        audited("JudgeConfig(never, failure_window=3)", [row("bx", "cx")])
    assert not (tmp_path / "audit.json").exists()


def test_lone_responses_say_nothing_of_agreement(audited):
    audit, printed = audited("JudgeConfig(content)", [row("bx"), row("cx")])
    assert audit["across_orders"] is None
    assert audit["clusters_a_problem"] == 1
    assert "nothing to compare" in printed.out


def test_agreement_is_the_mean_over_pairs_and_problems():
    first, second, third = [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 2]
    found = agreement([[first, first, None, first], [second, first, third, None], [third, [4, 4, 2, 2], None, None]])
    indices = [adjusted_rand_index(*pair) for pair in ((first, second), (first, third), (second, third))]
    assert len(set(indices)) == 3
    assert found["adjusted_rand_index"] == pytest.approx((sum(indices) / 3 + 1) / 2)
    assert found["always_the_same_frac"] == 1 / 2
    assert found["num_repeats"] == 3


def test_responses_without_an_answer_are_a_kind_of_answer():
    description = describe([[[0, 0, 1, 1, -1]]], [[-1, -1, -1, 0, 5]])
    assert description["mixed_answers_frac"] == 1 / 2
    assert description["cluster_sizes"] == {"2": 2}


def boxes(*answers):
    return [f"way {number} \\boxed{{{answer}}}" for number, answer in enumerate(answers)]


def test_a_served_judge_that_goes_by_position_is_found_out_whatever_order_it_is_shown(audited, tmp_path):
    rows = [row(*boxes(*range(6)))]
    by_position = {}

    def rule(response):
        return by_position[response]

    def plan(number, request):
        by_position.update({text: index // 2 for index, text in enumerate(shown_responses(request))})

    config = "JudgeConfig(HTTPJudge('m', transport=Transport({url!r}, max_concurrency=1), temperature=1.0))"
    with JudgeServer(rule, plan) as server:
        imports = "\nfrom polyepo_jax.judges import HTTPJudge, Transport\n"
        (tmp_path / "served.py").write_text(imports + CONFIG.format(judge=config.format(url=server.url)))
        audit, printed = audited(None, rows, "--config", "served.py", "--seeds", "2")
        assert len(server.requests) == 4 + 1
        assert {request["seed"] for request in server.requests} == {0, 1}
        again, _ = audited(None, rows, "--config", "served.py", "--seeds", "2")
        assert len(server.requests) == 5
    assert audit["across_orders"]["adjusted_rand_index"] < 0.9
    assert audit["across_seeds"]["num_repeats"] == 2
    assert again["counts"] == {"judge/cached": 5, "judge/calls": 5}
    assert "judge/attempts 5, judge/calls 5" in printed.out
    assert again["across_orders"] == audit["across_orders"]


def test_seeds_that_change_nothing_are_not_tried(audited, tmp_path):
    with JudgeServer(lambda response: response[:5]) as server:
        options = "--judge-url", server.url, "--judge-model", "m"
        audit, _ = audited(None, [row(*boxes(*range(3)))], *options, "--orders", "2")
        assert audit["across_seeds"] is None
        audit, _ = audited(None, [row(*boxes(*range(3)))], *options, "--orders", "2", "--judge-temperature", "0.5")
    assert audit["across_seeds"]["num_repeats"] == 4
    assert {(request["seed"], request["temperature"]) for request in server.requests} == {
        (0, 0.0),
        *((seed, 0.5) for seed in range(4)),
    }


def test_a_server_that_refuses_is_a_failure_in_one_line(audited, capsys):
    with JudgeServer(lambda response: 0, always(404)) as server:
        arguments = ["--judge-url", server.url, "--judge-model", "m"]
        with pytest.raises(RunError, match=r"clustered no problem: .*HTTP 404"):
            audited(None, [row(*boxes(1, 2))], *arguments)
    assert not capsys.readouterr().out


@pytest.fixture
def on_the_mesh(audited, tmp_path):
    """Audits a model that knows nothing, of so many positions, by a short rubric."""
    (tmp_path / "rubric.txt").write_text(
        "Sort:\n<<problem>>\n<<responses>>\n<<num_responses>>, else <<degenerate_id>>."
    )

    def run(positions, rows):
        config = dataclasses.replace(MODEL, max_position_embeddings=positions)
        save_hf(tmp_path / "judge", config, init(config, jax.random.key(0)))
        write_tokenizer(tmp_path / "judge")
        return audited(None, rows, "--judge-dir", "judge", "--rubric", "rubric.txt", "--orders", "2")

    return run


def test_a_judge_on_the_mesh_of_few_positions_is_audited_within_them(on_the_mesh):
    audit, printed = on_the_mesh(2_048, [row(*("x" * 6_000 for _ in range(4)))])
    assert audit["across_orders"]["num_repeats"] == 2
    assert audit["counts"] == {"judge/shortened": 2 * 4}
    assert not printed.err


def test_a_judge_on_the_mesh_without_room_is_a_failure_in_words_of_the_command(on_the_mesh):
    with pytest.raises(RunError, match="4 responses: take a model of more positions, a shorter rubric") as caught:
        on_the_mesh(500, [row(*("x" * 6_000 for _ in range(4)))])
    assert "max_" not in str(caught.value)


def test_settings_that_the_command_does_not_have_are_said_to_be_of_a_config(audited, monkeypatch):
    monkeypatch.setattr(saved_responses, "_RETRY_FOR_S", 0.0)
    with JudgeServer(lambda response: 0, always("cut_off")) as server, pytest.raises(RunError) as caught:
        audited(None, [row(*boxes(1, 2))], "--judge-url", server.url, "--judge-model", "m")
    assert "raise max_tokens" in str(caught.value)
    assert str(caught.value).endswith("(max_tokens and chat_template_kwargs can be set for the judge of a --config)")
    with (
        JudgeServer(lambda response: 0, always(404)) as server,
        pytest.raises(RunError, match=r"transport\.base_url and model right\? \(transport\.base_url is --judge-url\)$"),
    ):
        audited(None, [row(*boxes(1, 2))], "--judge-url", server.url, "--judge-model", "m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orders", "1"], "--orders must be at least 2"),
        (["--seeds", "0"], "--seeds at least 1, got 4, 0"),
        (["--out", "nowhere/audit.json"], "cannot be written"),
        (["--out", "responses.jsonl"], "is the file that is read"),
        (["--judge-url", "http://h/v1"], "--judge-model"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(audited, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        audited(None, [row("bx", "cx")], *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


def test_bad_rows_are_refused(tmp_path, capsys):
    (tmp_path / "responses.jsonl").write_text('{"problem": "p"}')
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [str(tmp_path / "responses.jsonl"), "--out", str(tmp_path / "audit.json")])
    assert stopped.value.code == 2
    assert "line 1: no field 'answer'" in capsys.readouterr().err
    assert not (tmp_path / "audit.json").exists()
