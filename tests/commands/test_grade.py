"""The command `grade`: saved generations in, the same rows with their grades out, or one line that says why not."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest

from polyepo_jax.errors import InputError, RunError, run_command
from polyepo_jax.grade import main
from tests.judges.server import JudgeServer, always
from tests.sets.reference import pass_at_k

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "math_responses.jsonl"

# Rewards are the number after "r", strategies the letter before it; what has "!" cannot be graded. Where rows have four
# responses each, the config's advantage is tried once for all tests.
CONFIG = """
import dataclasses
from polyepo_jax.config import AlgorithmConfig
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import HTTPJudge, Transport
from polyepo_jax.sets import Polychromic, SetAdvantage
from tests.tiny import EasyPolynomial, rl_config

@dataclasses.dataclass(frozen=True)
class Lettered(EasyPolynomial):
    def verify(self, problem, response):
        if "!" in response:
            raise OSError("the verifier's disk\\nis full " + response[:5])
        return float(response[2:]) if response[1:2] == "r" else 0.0

    def cluster(self, problem, responses):
        return [7 for response in responses]

def letters(problem, responses):
    if "lost" in problem.prompt:
        raise OSError("no judge")
    return [ord(response[0]) - ord("b") for response in responses]  # "a" is degenerate

def get_config():
    return rl_config(task=Lettered(), judge={judge}, algorithm=AlgorithmConfig(advantage=SetAdvantage({objective})))
"""


def write_config(directory, judge="JudgeConfig(letters)", objective="Polychromic(set_size=2)"):
    path = directory / "config.py"
    path.write_text(CONFIG.format(judge=judge, objective=objective))
    return str(path)


def row(*responses, **others):
    return {"problem": "What is it?", "answer": "1", "responses": list(responses), **others}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def boxes(*answers):
    return [f"So it is \\boxed{{{answer}}}." for answer in answers]


def enumerated(rewards, clusters, set_size):
    """The advantages over all sets, one set at a time: E[f | i] - E[f], with f the mean reward times diversity."""
    scores = {}
    for members in itertools.combinations(range(len(rewards)), set_size):
        num_strategies = len({clusters[i] for i in members} - {-1})
        scores[members] = sum(rewards[i] for i in members) / set_size * num_strategies / set_size
    mean = sum(scores.values()) / len(scores)
    with_i = [[score for members, score in scores.items() if i in members] for i in range(len(rewards))]
    return [sum(own) / len(own) - mean for own in with_i]


def table_of(text):
    """{k: (pass@k, majority@k)} as printed."""
    cells = [re.findall(r"[\d.]+", line) for line in text.splitlines() if line.startswith("│")]
    return {int(k): (float(passed), float(voted)) for k, passed, voted in cells}


@pytest.fixture
def graded(tmp_path, capsys):
    """Grades rows: what is written, and what is printed."""

    def run(rows, *arguments):
        source, out = write(tmp_path / "responses.jsonl", *rows), tmp_path / "graded.jsonl"
        before = source.read_bytes()
        main([str(source), "--out", str(out), *arguments])
        assert source.read_bytes() == before
        return read(out), capsys.readouterr()

    return run


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded responses are not here")
def test_recorded_responses_are_graded_as_they_were(tmp_path, capsys):
    main([str(RECORDED), "--out", str(tmp_path / "graded.jsonl")])
    before, after = read(RECORDED), read(tmp_path / "graded.jsonl")
    fields = ("rewards", "clusters", "valid", "advantages")
    assert [{k: v for k, v in row.items() if k not in fields} for row in after] == before
    assert all(len(row[field]) == 8 for row in after for field in fields)
    pairs = [pair for row in after for pair in zip(row["rewards"], row["recorded_scores"], strict=True)]
    assert len(pairs) == 400
    assert sum(reward == score for reward, score in pairs) >= 396
    assert all(valid for row in after for valid in row["valid"])
    with_signal = 0
    for row in after:
        expected = enumerated(row["rewards"], row["clusters"], 4)
        assert row["advantages"] == pytest.approx(expected, abs=2e-6)
        with_signal += max(map(abs, expected)) > 1e-6
    assert 5 < with_signal < 50
    table = table_of(text := capsys.readouterr().out)
    num_correct = [round(sum(row["rewards"])) for row in after]
    assert list(table) == [1, 2, 4, 8]
    for k, (passed, _) in table.items():
        assert passed == pytest.approx(sum(pass_at_k(8, c, k) for c in num_correct) / 50, abs=5.1e-4)
    assert table[1][1] == table[1][0]  # the vote of one
    assert f"signal {with_signal / 50:.1%}" in text


def test_rows_of_any_number_of_responses_are_weighed_by_their_own_sets(graded, tmp_path):
    rows = [
        row(*boxes(1, 2)),
        row(*boxes(1), id="lone"),
        row(*boxes(1, 3, "3.0"), note={"kept": [None, 1.5, "é"]}),
        row(*boxes(1, 2, 2, 3, 3, 3, 4), "no answer"),
    ]
    after, printed = graded(rows)
    assert [{k: v for k, v in r.items() if k in before} for r, before in zip(after, rows, strict=True)] == rows
    assert [r["clusters"] for r in after] == [[0, 1], [0], [0, 1, 1], [0, 1, 1, 2, 2, 2, 3, -1]]
    assert [r["rewards"] for r in after] == [[1, 0], [1], [1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert after.pop(1)["advantages"] == [0]
    for of_row, set_size in zip(after, (1, 2, 4), strict=True):
        expected = enumerated(of_row["rewards"], of_row["clusters"], set_size)
        assert of_row["advantages"] == pytest.approx(expected, abs=1e-6)
        assert max(expected) > 0.01
    # What all rows have: one response.
    assert table_of(printed.out) == {1: (pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 8) / 4, abs=5.1e-4),) * 2}
    assert "no_answer 1" in printed.out
    assert "4 problems" in printed.out
    assert "left out for a failure 0" in printed.out


def test_set_size_and_the_papers_indicator_are_taken(graded):
    rows = [row(*boxes(1, 1, 1, 2, 3))]
    (plain,), _ = graded(rows, "--set-size", "3")
    (paper,), _ = graded(rows, "--set-size", "3", "--require-distinct")
    assert plain["advantages"] == pytest.approx(enumerated([1, 1, 1, 0, 0], [0, 0, 0, 1, 2], 3), abs=1e-6)
    assert paper["advantages"] != plain["advantages"]


def test_a_failed_grade_is_invalid_and_weighs_nothing(graded, tmp_path):
    rows = [
        row("br1", "b!", "cr0.5", "ar1"),
        row("br1", "cr0", "dr1", "er0") | {"problem": "lost"},
        row("br1", "cr0", "br0", "br0"),
    ]
    after, printed = graded(rows, "--config", write_config(tmp_path))
    assert [r["valid"] for r in after] == [[True, False, True, True], [False] * 4, [True] * 4]
    assert after[0]["rewards"] == [1, 0, 0.5, 1]
    assert after[0]["clusters"] == [0, 0, 1, -1]
    weighed = enumerated([1, 0.5, 1], [0, 1, -1], 2)
    assert after[0]["advantages"] == pytest.approx([weighed[0], 0, *weighed[1:]], abs=1e-6)
    assert after[0]["advantages"][1] == 0
    assert after[1]["advantages"] == [0, 0, 0, 0]
    assert "left out for a failure 2" in printed.out
    assert "verifier/failures/exception 1" in printed.out
    assert "judge/failures/exception 1" in printed.out
    assert table_of(printed.out)[1][0] == pytest.approx(1 / 4)  # of the one row that is whole
    (warning,) = printed.err.splitlines()
    assert warning == "2 grading calls failed, the first: verifying problem 1: OSError: the verifier's disk is full b!"


def test_the_vote_is_of_the_tasks_answers_not_of_strategies(graded, tmp_path):
    rows = [row("br1", "cr0", "cr0", "dr1")]
    _, printed = graded(rows, "--config", write_config(tmp_path))
    assert table_of(printed.out)[4] == (1, 0.5)  # one answer: the vote is the mean; by strategies it would be 0


def test_where_nothing_could_be_graded_the_file_says_so_and_the_command_fails(tmp_path):
    source = write(tmp_path / "responses.jsonl", row("b!", "c!", "d!", "e!"))
    with pytest.raises(RunError, match=r"none .* 4 grading calls failed, the first: .*disk is full"):
        main([str(source), "--out", str(tmp_path / "graded.jsonl"), "--config", write_config(tmp_path)])
    (after,) = read(tmp_path / "graded.jsonl")
    assert after["valid"] == [False] * 4
    assert after["advantages"] == [0] * 4


def test_advantages_that_are_no_numbers_are_not_written(tmp_path):
    source = write(tmp_path / "responses.jsonl", row("br3e38", "cr3e38", "dr3e38", "er-3e38"))
    with pytest.raises(RunError, match="line 1: the advantages are not finite"):
        main([str(source), "--out", str(tmp_path / "graded.jsonl"), "--config", write_config(tmp_path)])
    assert not (tmp_path / "graded.jsonl").exists()


GOOD = json.dumps(row(*boxes(1, 2, 3)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "", "{not json"], r"line 3: not valid JSON"),
        ([GOOD, "[1]"], r"line 2: expected an object of 'problem', 'answer' and 'responses', got"),
        (['{"problem": "p", "responses": ["r"]}'], r"line 1: no field 'answer'; there are 'problem', 'responses'"),
        (['{"problem": "p", "answer": NaN, "responses": ["r"]}'], r"line 1: .*NaN is no JSON number"),
        (['{"problem": "p", "answer": "1", "responses": ["r"], "x": 1e999}'], r"line 1: .*1e999 is no JSON number"),
        (['{"problem": "p", "answer": true, "responses": ["r"]}'], r"'answer' a text or a number"),
        (['{"problem": 3, "answer": "1", "responses": ["r"]}'], r"'problem' must be a text"),
        *(
            ([f'{{"problem": "p", "answer": 1, "responses": {bad}}}'], r"'responses' must be a list of texts, at least")
            for bad in ('"text"', "[]", '["r", 1]', "null")
        ),
        (["[" * 100_000], r"line 1: not valid JSON"),
        (["", "  "], r"there is no row in it"),
        ([GOOD, json.dumps(row(*boxes(*range(1001))))], r"line 2: 1001 responses: at most 1000"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(tmp_path, capsys, lines, message):
    (tmp_path / "responses.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [str(tmp_path / "responses.jsonl"), "--out", str(tmp_path / "graded.jsonl")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: .*responses\.jsonl.*" + message, line)
    assert len(line) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["responses.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set-size", "2"], r"line 3: 2 responses: set_size must be .* got 2"),
        (["--set-size", "0"], r"set_size must be .* at least 1, got 0"),
        (["--out", "{dir}/responses.jsonl"], r"is the file that is read"),
        (["--out", "{dir}/link.jsonl"], r"is the file that is read"),
        (["--out", "{dir}/nowhere/graded.jsonl"], r"cannot be written: name a file in a directory that is there"),
        (["--out", "{dir}"], r"cannot be written"),
        (["--out", "{dir}/pipe"], r"cannot be written"),
        (["--judge-url", "http://localhost:1/v1"], r"--judge-url and --judge-model belong together"),
        (["--judge-model", "m"], r"--judge-url and --judge-model belong together"),
        (["--judge-url", "ftp://host", "--judge-model", "m"], r"base_url must begin with http"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--judge-dir", "d"], r"exclude each other"),
        (["--rubric", "mine.txt"], r"--rubric and --judge-key-env are for a judge"),
        (["--judge-url", "http://h/v1", "--judge-model", "m", "--rubric", "{dir}/none.txt"], r"none\.txt"),
        (["--judge-dir", "{dir}/no-model"], r"no-model"),
        (["--config", "{dir}/none.py"], r"none\.py does not exist"),
        (["--config", "{dir}/config.py", "--set-size", "2"], r"--set-size .* without --config"),
        (["--config", "{dir}/config.py", "--require-distinct"], r"--require-distinct .* without --config"),
        (["--config", "{dir}/config.py"], r"line 3: 2 responses: set_size must be .* got 2"),
        (["--sets", "2"], r"--sets"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(tmp_path, monkeypatch, arguments, message):
    path = write(tmp_path / "responses.jsonl", row(*boxes(1, 2, 3)), row(*boxes(1, 2)))
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # an empty line has a number too
    write_config(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        main([str(path), *(argument.replace("{dir}", str(tmp_path)) for argument in arguments)])
    assert "\n" not in str(refused.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert (tmp_path / "pipe").is_fifo()


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        main([str(tmp_path / "none.jsonl")])
    (tmp_path / "latin.jsonl").write_bytes(b'{"problem": "\xe9"}')
    with pytest.raises(InputError, match=r"expected JSON lines in UTF-8"):
        main([str(tmp_path / "latin.jsonl")])


def test_a_key_that_is_not_set_is_named_and_one_that_is_set_is_never_printed(tmp_path, monkeypatch, capsys):
    source = str(write(tmp_path / "responses.jsonl", row(*boxes(1, 2))))
    judge = ["--judge-model", "m", "--judge-key-env", "JUDGE_KEY", "--out", str(tmp_path / "graded.jsonl")]
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with JudgeServer(lambda response: 0, always(401)) as server:
        with pytest.raises(InputError, match="JUDGE_KEY is not set"):
            main([source, "--judge-url", server.url, *judge])
        assert not server.requests
        monkeypatch.setenv("JUDGE_KEY", "secret-key")
        with pytest.raises(RunError, match="is the key in the environment variable JUDGE_KEY right") as failed:
            main([source, "--judge-url", server.url, *judge])
        assert server.keys == ["Bearer secret-key"]
    assert "secret-key" not in str(failed.value) + "".join(capsys.readouterr())


def test_hostile_responses_are_graded_and_written_as_valid_lines(graded, tmp_path):
    hostile = [
        "\0\\boxed{\0}",
        "\ud800\\boxed{\udfff}",
        "\u2028\\boxed{1}\u2028\x1c\x85",
        "\\boxed{" * 10_000,
        "{" * 100_000 + "\\boxed{1}",
        "\\boxed{" + "7" * 100_000 + "}",
        "[bold]\\boxed{1}[/nonsense]",
        "",
    ]
    (after,), printed = graded([row(*hostile, id="\ud800")])
    assert after["responses"] == hostile
    assert after["id"] == "\ud800"
    assert after["rewards"] == [0, 0, 1, 0, 1, 0, 1, 0]
    assert after["valid"] == [True] * 8
    assert after["clusters"][2] == after["clusters"][4] == after["clusters"][6] != after["clusters"][0]
    assert after["clusters"][3] == after["clusters"][7] == -1
    assert table_of(printed.out)[1][0] == pytest.approx(3 / 8)


def test_an_older_file_is_replaced_whole_and_grades_in_the_input_are_too(graded, tmp_path):
    (tmp_path / "graded.jsonl").write_text("something longer\n" * 1000)
    first, _ = graded([row(*boxes(1, 2, 3), rewards="old", advantages=None)])
    assert first[0]["rewards"] == [1, 0, 0]
    assert len(first[0]["advantages"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graded.jsonl", "responses.jsonl"]


def first_word(response):
    return response.split()[0]


def test_a_served_judge_clusters_while_answers_vote_and_nothing_is_asked_twice(graded, tmp_path):
    responses = [f"{word} \\boxed{{{answer}}}" for word, answer in zip("aabbc", (1, 1, 2, 2, 2), strict=True)]
    rows = [row(*responses), row(*responses[::-1])]
    with JudgeServer(first_word) as server:
        arguments = ["--judge-url", server.url, "--judge-model", "m"]
        after, printed = graded(rows, *arguments)
        assert len(server.requests) == 2
        again, second = graded(rows, *arguments)
        assert len(server.requests) == 2
    assert again == after
    assert [r["clusters"] for r in after] == [[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]]
    assert [r["rewards"] for r in after] == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert after[0]["advantages"] == pytest.approx(enumerated([1, 1, 0, 0, 0], [0, 0, 1, 1, 2], 4), abs=1e-6)
    # By strategies, two of two would tie with one of one, and the vote of all five would be a half.
    assert table_of(printed.out)[5] == (1, 0)
    assert "distinct strategies 3.00" in printed.out
    assert "judge/cached 2" in second.out
    assert (tmp_path / "judge_cache.sqlite").exists()


def test_a_served_judge_that_always_fails_leaves_rows_that_say_so(tmp_path, capsys):
    source = write(tmp_path / "responses.jsonl", row(*boxes(1, 2)), row(*boxes(3, 1)))
    out = tmp_path / "graded.jsonl"
    with JudgeServer(first_word, always(404)) as server, pytest.raises(SystemExit) as stopped:
        run_command(main, [str(source), "--judge-url", server.url, "--judge-model", "m", "--out", str(out)])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: none of the responses could be graded.*2 grading calls failed.*HTTP 404.*base_url", line)
    assert [r["valid"] for r in read(out)] == [[False, False]] * 2
    # The server is mended: what it failed is asked again.
    with JudgeServer(first_word) as server:
        main([str(source), "--judge-url", server.url, "--judge-model", "m", "--out", str(out)])
    assert [r["valid"] for r in read(out)] == [[True, True]] * 2


def test_a_judge_that_fails_too_often_ends_the_command_and_what_was_answered_is_kept(tmp_path, capsys):
    rows = [row("br1", f"c{i}", "dr0", "er0") for i in range(12)]
    source, out = write(tmp_path / "responses.jsonl", *rows), tmp_path / "graded.jsonl"
    out.write_text("older\n")

    def config_of(server, name):
        transport = f"Transport({server.url!r}, max_concurrency=1)"
        judge = f"JudgeConfig(HTTPJudge('m', transport={transport}), failure_window=4)"
        (tmp_path / name).mkdir()
        return write_config(tmp_path / name, judge)

    with JudgeServer(first_word, lambda number, _: 404 if number >= 5 else None) as server:
        with pytest.raises(SystemExit) as stopped:
            run_command(main, [str(source), "--config", config_of(server, "broken"), "--out", str(out)])
        assert stopped.value.code == 1
        assert len(server.requests) == 8  # five answers, and the first window with more than half of failures
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: 3 of the last 4 judge calls failed.*HTTP 404.*nothing was written.*same command", line)
    assert out.read_text() == "older\n"
    with JudgeServer(first_word) as server:
        main([str(source), "--config", config_of(server, "mended"), "--out", str(out)])
        assert len(server.requests) == 12 - 5
    assert all(all(r["valid"]) for r in read(out))


def test_worked_references_are_read_and_what_holds_no_answer_is_no_zero(tmp_path, capsys):
    rows = [
        row(*boxes("7", "8"), answer="We add 3 and 4.\n#### 7"),
        row(*boxes("7", "8"), answer="The answer is 7."),
        row(*boxes("7", "8"), answer="We add 3 and then we are done"),
    ]
    out = tmp_path / "graded.jsonl"
    main([str(write(tmp_path / "rows.jsonl", *rows)), "--out", str(out)])
    graded = read(out)
    assert [line["rewards"] for line in graded[:2]] == [[1, 0]] * 2
    assert [line["valid"] for line in graded] == [[True] * 2, [True] * 2, [False] * 2]
    assert graded[0]["answer"] == rows[0]["answer"]
    assert (
        "1 of 3 references hold no answer to compare with (line 3: no single answer can be" in capsys.readouterr().err
    )


def test_numbers_are_compared_as_they_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        '{"problem": "p", "answer": 1e22, "responses": ["\\\\boxed{10000000000000000000000}", "\\\\boxed{3}"]}',
        '{"problem": "p", "answer": 0.0000001, "responses": ["\\\\boxed{1e-7}", "\\\\boxed{0}"]}',
        '{"problem": "p", "answer": 12345678901234567890123, "responses": ["\\\\boxed{12345678901234567890123}", "1"]}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    main(["in.jsonl"])
    rows = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["rewards"] for row in rows] == [[1, 0]] * 3
    assert rows[0]["answer"] == 1e22
