"""Sets of problems: every form they come in, and rows that are not as described."""

import builtins
import json
import threading

import pyarrow
import pytest
from pyarrow import parquet

from polyepo_jax.errors import GradeFailure
from polyepo_jax.tasks import Dataset
from polyepo_jax.tasks.dataset import name_of, records
from polyepo_jax.tasks.rows import load


def write(path, text):
    path.write_text(text, "utf-8", newline="")
    return str(path)


def read(source):
    return [(record.problem, record.answer) for record in records(source)]


def one_of_one(problem, response):
    """A verifier that is a plain function."""
    return 1.0


class NoVowels:
    """A verifier that cannot use answers with vowels, and keeps what it was asked."""

    concurrency = 2

    def __init__(self, failure=None):
        self.asked, self.failure = [], failure

    def check_reference(self, answer):
        self.asked.append(answer)
        if self.failure:
            raise self.failure
        return "it has vowels" if set("aeiou") & set(answer) else None


def test_json_numbers_are_kept_as_spelled(tmp_path):
    text = '{"q": "a", "a": 0.10}\n\n{"q": "b\u2028", "a": 1' + "0" * 5000 + '}\r\n{"q": "c", "a": -3}'
    dataset = Dataset("mine", path=write(tmp_path / "train.jsonl", text), problem="q", answer="a")
    assert read(dataset) == [("a", "0.10"), ("b\u2028", "1" + "0" * 5000), ("c", "-3")]
    assert {type(answer) for _, answer in read(dataset)} == {str}


def test_json_is_lines_or_one_list(tmp_path):
    rows = [{"problem": "[a]", "answer": "1"}, {"problem": "b", "answer": 2}]
    lines = "\n".join(map(json.dumps, rows))
    expected = [("[a]", "1"), ("b", "2")]
    assert read(write(tmp_path / "lines.json", lines)) == expected
    assert read(write(tmp_path / "lines.jsonl", lines)) == expected
    assert read(write(tmp_path / "list.json", "\n " + json.dumps(rows, indent=1))) == expected
    with pytest.raises(ValueError, match=r"no_list\.jsonl, line 1: expected an object"):
        read(write(tmp_path / "no_list.jsonl", json.dumps(rows)))
    with pytest.raises(ValueError, match=r"list\.json, item 1: expected an object of 'problem' and 'answer', got '3'"):
        read(write(tmp_path / "list.json", '[{"problem": "a", "answer": 1}, 3]'))


def test_parquet_is_a_file_or_a_directory_in_the_order_of_names(tmp_path):
    table = pyarrow.table({"q": ["a", "b"], "answer": [27.0, None], "solution": [[1], [2]]})
    parquet.write_table(table, tmp_path / "train-00001.parquet")
    parquet.write_table(pyarrow.table({"q": ["c"], "answer": [10**15 + 0.5]}), tmp_path / "train-00000.parquet")
    (tmp_path / "README.md").write_text("not a table")
    one = Dataset("mine", path=str(tmp_path / "train-00001.parquet"), problem="q")
    assert read(one) == [("a", "27.0"), ("b", "")]
    every = Dataset("mine", path=str(tmp_path), problem="q")
    assert read(every) == [("c", "1000000000000000.5"), ("a", "27.0"), ("b", "")]


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ([1, -20], ["1", "-20"]),
        ([1e22, 1e-7], ["10000000000000000000000.0", "0.0000001"]),
        ([float("nan"), 0.5], ["", "0.5"]),
        (["1/2", None], ["1/2", ""]),
    ],
)
def test_answers_of_a_table_become_text(tmp_path, answers, texts):
    parquet.write_table(pyarrow.table({"problem": ["a", "b"], "answer": answers}), tmp_path / "t.parquet")
    assert [answer for _, answer in read(str(tmp_path / "t.parquet"))] == texts


def test_a_function_yields_problems():
    def sums():
        yield from ({"problem": f"{i} + 1", "answer": i + 1} for i in range(2))

    assert name_of(sums) == "sums"
    assert read(sums) == [("0 + 1", "1"), ("1 + 1", "2")]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([("a", "1")], r"mine\(\), item 0: expected an object of 'problem' and 'answer', got \"\('a', '1'\)\""),
        ([{"problem": "a", "answer": "1"}, {"question": "b"}], r"mine\(\), item 1: no field 'problem'; there are 'que"),
        (None, r"mine\(\) failed: TypeError"),
    ],
)
def test_what_a_function_must_not_yield(items, message):
    def mine():
        return items

    with pytest.raises(ValueError, match=message):
        read(mine)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 3: not valid JSON"),
        ('{"problem": "a", "answer": NaN}', r"line 3: not valid JSON \(NaN"),
        ("[" * 100_000, r"line 3: not valid JSON"),
        ("[1]", r"line 3: expected an object of 'problem' and 'answer', got \"\['1'\]\""),
        (
            '{"problem": "a", "solution": "1"}',
            r"line 3: no field 'answer'; there are 'problem', 'solution': name the right one by Dataset\('train', ..., "
            r"answer=...\)",
        ),
        ("{}", r"line 3: no field 'problem'; there are none: .*problem=...\)"),
        ('{"problem": 5, "answer": "1"}', r"line 3: 'problem' must be a text, got '5'"),
        ('{"problem": ["a"], "answer": "1"}', r"line 3: 'problem' must be a text, got \['a'\]"),
        ('{"problem": "a", "answer": true}', r"line 3: 'answer' must be a number or a text, got True"),
        ('{"problem": "a", "answer": [["1"]]}', r"line 3: 'answer' must be a number or a text, got \['1'\]"),
        ('{"problem": "a\\ud800", "answer": "1"}', r"line 3: a lone surrogate"),
        ('{"problem": "a", "answer": "\\udfff"}', r"line 3: a lone surrogate"),
    ],
)
def test_rows_that_are_not_as_described_are_refused_by_line(tmp_path, line, message):
    path = write(tmp_path / "train.jsonl", f'{{"problem": "x", "answer": "1"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_sets_that_cannot_be_had_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.jsonl: cannot be read .*expected JSON lines in UTF-8"):
        read(str(tmp_path / "absent.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"binary\.jsonl: cannot be read"):
        read(str(tmp_path / "binary.jsonl"))
    (tmp_path / "bad.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match=r"bad\.parquet: cannot be read .*expected a parquet file") as caught:
        read(str(tmp_path / "bad.parquet"))
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: there is no \.parquet file in this directory"):
        read(str(tmp_path / "empty"))
    parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["1"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: no field 'problem'; there are 'question', 'answer': name"):
        read(str(tmp_path / "t.parquet"))
    with pytest.raises(ValueError, match=r"dataset 'mine' is nowhere: give its path, or hub"):
        Dataset("mine")


def test_the_final_answer_is_extracted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"problem": "a", "answer": "so #### 3"}\n{"problem": "b", "answer": 5}')
    dataset = Dataset("mine", path=path, extract=lambda text: text.rpartition("# ")[2])
    assert read(dataset) == [("a", "3"), ("b", "5")]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: extract failed on '5' \(IndexError"):
        read(Dataset("mine", path=path, extract=lambda text: text.split("####")[1]))
    with pytest.raises(ValueError, match=r"line 1: extract must return a text \(empty for none\), got 9 of 'so ####"):
        read(Dataset("mine", path=path, extract=len))


# --- the hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The directory of a set as it would be on the hub, which `datasets` reads without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    directory = tmp_path / "published"
    directory.mkdir()
    table = pyarrow.table({"question": ["a", "b"], "answer": [1, 2], "year": [2025, 2025]})
    parquet.write_table(table, directory / "train-00000-of-00001.parquet")
    parquet.write_table(table.slice(1), directory / "test-00000-of-00001.parquet")
    return directory


def test_a_set_of_the_hub_is_read_by_its_split(hub):
    dataset = Dataset("mine", hub=str(hub), split="train", problem="question")
    assert read(dataset) == [("a", "1"), ("b", "2")]
    assert read(Dataset("mine", hub=str(hub), problem="question")) == [("b", "2")]
    with pytest.raises(ValueError, match=r"published: no field 'problem'; there are 'question', 'answer', 'year'"):
        read(Dataset("mine", hub=str(hub)))


def test_a_set_of_the_hub_may_hold_messages_and_structs(hub):
    (hub.parent / "chat").mkdir()
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "reward": {"truth": "1"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), hub.parent / "chat" / "test-00000-of-00001.parquet")
    dataset = Dataset("mine", hub=str(hub.parent / "chat"), problem="prompt", answer="reward.truth")
    assert [tuple(record)[1:] for record in records(dataset)] == [("u", "1", (("system", "s"),), "")]


@pytest.mark.parametrize("where", [{"split": "validation"}, {"subset": "none"}, {"hub": "nobody/no_such_set"}])
def test_a_set_that_the_hub_does_not_give_says_what_to_do(hub, where):
    dataset = Dataset("mine", **{"hub": str(hub), **where})
    with pytest.raises(
        ValueError, match=r"^mine: .* cannot be had from the hub .*or give the path of a local"
    ) as caught:
        read(dataset)
    assert "\n" not in str(caught.value)


def test_a_report_of_many_lines_is_cut_to_the_first(hub, monkeypatch):
    def fails(*arguments, **options):
        raise ConnectionError("no network\nwhile fetching\n")

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(ValueError, match=r"cannot be had from the hub \(no network\): see"):
        read(Dataset("mine", hub="someone/set"))


def test_a_path_wins_over_the_hub(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"problem": "a", "answer": "3"}')
    assert read(Dataset("mine", hub="nobody/no_such_set", path=path)) == [("a", "3")]


def test_without_the_package_the_hub_says_how_to_get_it(monkeypatch):
    found = builtins.__import__

    def without_datasets(name, *arguments):
        if name == "datasets":
            raise ImportError(name)
        return found(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(ValueError, match=r"^mine: .*someone/set.* pip install -e '\.\[hub\]', or give the path"):
        read(Dataset("mine", hub="someone/set"))


# --- what is left out ---


def lines(rows):
    return "".join(json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in rows)


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    rows = [
        *[("a  b", "1"), ("c", "vowel"), ("a b\n", "3"), (" ", "4"), (None, "4"), ("d", " $ $."), ("e", None)],
        *[("c", "2"), ("f", "xyz"), ("g", "other"), ("h", "vowel"), ("", "")],
    ]
    found = load(write(tmp_path / "mine.jsonl", lines(rows)), NoVowels())
    assert [tuple(row[:3]) for row in found.kept] == [(0, "a  b", "1"), (7, "c", "2"), (8, "f", "xyz")]
    assert str(found) == (
        "mine: 12 rows; left out: 1 repeated, 3 with an empty problem, 2 with an empty answer, "
        "3 whose answer the verifier cannot use (row 1: it has vowels)"
    )
    assert str(load(write(tmp_path / "one.jsonl", lines([("a", "1")])), one_of_one)) == "one: 1 row"
    many = [("a", "1"), *([("a", "1")] * 1199)]
    assert (
        str(load(write(tmp_path / "many.jsonl", lines(many)), one_of_one))
        == "many: 1,200 rows; left out: 1,199 repeated"
    )


def test_a_long_reason_is_cut(tmp_path):
    class Verbose:
        def check_reference(self, answer):
            return "no" * 1000

    found = load(write(tmp_path / "mine.jsonl", lines([("a", "1"), ("b", "x")])), Verbose())
    assert str(found).endswith(f"(row 1: {'no' * 80})")


def test_only_doubtful_answers_are_checked_and_once(tmp_path):
    rows = [("a", "1"), ("b", "\\frac{1}{2}"), ("c", "xyz"), ("d", "xyz"), ("e", "0"), ("f", ""), ("g", "10,000")]
    verifier = NoVowels()
    path = write(tmp_path / "mine.jsonl", lines(rows))
    assert len(load(path, verifier).kept) == 6
    assert verifier.asked == ["xyz"]
    load(path, verifier)
    assert verifier.asked == ["xyz"]


def test_as_many_answers_are_checked_at_a_time_as_the_verifier_takes(tmp_path):
    class Together:
        concurrency = 2

        def __init__(self):
            self.both = threading.Barrier(2, timeout=60)

        def check_reference(self, answer):
            self.both.wait()  # for the other one

    path = write(tmp_path / "mine.jsonl", lines([("a", "x"), ("b", "y"), ("c", "z"), ("d", "w")]))
    assert len(load(path, Together()).kept) == 4


def test_a_path_is_of_the_working_directory_it_is_read_in(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "mine.jsonl", lines([(name, "1")]))
        monkeypatch.chdir(tmp_path / name)
        assert [row.problem for row in load("mine.jsonl", one_of_one).kept] == [name]


def test_a_check_that_fails_on_our_side_leaves_nothing_out(tmp_path):
    path = write(tmp_path / "mine.jsonl", lines([("a", "xyz")]))
    with pytest.raises(ValueError, match=r"mine: the verifier could not check its answers \(no worker\): try again"):
        load(path, NoVowels(GradeFailure("worker_start", "no worker")))


def test_a_set_without_a_usable_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.jsonl: there is no problem in it"):
        load(write(tmp_path / "empty.jsonl", "\n"), one_of_one)
    with pytest.raises(ValueError, match=r"mine\.jsonl: none of its problems can be used \(mine: 2 rows; left out: 2 "):
        load(write(tmp_path / "mine.jsonl", lines([("a", ""), ("b", "")])), one_of_one)


def test_problems_of_another_set_are_left_out(tmp_path):
    train = load(write(tmp_path / "train.jsonl", lines([(f"p {i}", "1") for i in range(6)])), one_of_one)
    held = load(write(tmp_path / "aime.jsonl", lines([("p\t 2", "9"), ("p 4 ", "1"), ("p 40", "1")])), one_of_one)
    left = train.without(held)
    assert [row.id for row in left.kept] == [0, 1, 3, 5]
    assert str(left) == "train: 6 rows; left out: 2 also in aime"
    assert str(train) == "train: 6 rows"
