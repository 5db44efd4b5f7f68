"""Mathematics: its splits and their ids, what is left out of training, and verifiers of one's own."""

import dataclasses
import json

import pytest

from polyepo_jax.config import Config
from polyepo_jax.config.files import from_json, load, override, to_json
from polyepo_jax.errors import InputError
from polyepo_jax.model.tokenizer import HFTokenizer
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.tasks import Dataset, Math, Problem, Task
from polyepo_jax.tasks.benchmarks import AIME_2025, GSM8K, POLARIS_53K
from polyepo_jax.tasks.math import FIRST_TEST_ID
from polyepo_jax.types import DEGENERATE
from tests.tiny import rl_config
from tests.tiny_hf import write_tokenizer


def ends_as_the_reference(problem, response):
    """A verifier that is a plain function."""
    return float(response.endswith(problem.reference))


@dataclasses.dataclass(frozen=True)
class AnyCase:
    """A verifier that knows equality, and counts."""

    reward: float = 1.0
    concurrency = 3
    faults = ("shouted",)
    failures = ("lost",)

    def __call__(self, problem, response):
        return Verdict(self.reward, fault="shouted" if response.isupper() else "")

    def equal(self, one, other):
        return one.lower() == other.lower()

    def check_reference(self, reference):
        return None if reference.isascii() else "it is not ASCII"


def sums():
    """Problems that a function yields."""
    return ({"problem": f"{i} + 1 = ?", "answer": i + 1} for i in range(20))


def write(path, rows):
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in rows), "utf-8")
    return str(path)


@pytest.fixture
def task(tmp_path):
    """Twenty training problems and five for testing."""
    train = write(tmp_path / "train.jsonl", [(f"{i} + 1 = ?", str(i + 1)) for i in range(20)])
    test = write(tmp_path / "held.out.jsonl", [(f"{i} + 2 = ?", i + 2) for i in range(5)])
    return Math(train, str(tmp_path / "model"), test, num_validation=4, verifier=ends_as_the_reference)


def ids(task, split):
    return [problem.id for problem in task.problems(split)]


def test_splits_are_disjoint_and_numbered_by_row(task):
    train, validation, test = (task.problems(split) for split in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [16, 4, 5]
    assert sorted(p.id for p in (*train, *validation)) == list(range(20))
    assert [p.id for p in train] == sorted(p.id for p in train)
    assert [p.id for p in test] == [FIRST_TEST_ID + i for i in range(5)]
    assert max(p.id for p in test) < 2**31
    for p in (*train, *validation):
        assert p == Problem(p.id, f"{p.id} + 1 = ?{task.instruction}", str(p.id + 1))
    assert test[1].reference == "3"
    assert "\\boxed{}" in test[1].prompt
    alone = dataclasses.replace(task, tokenizer_dir="elsewhere", test=None)
    assert alone.problems("validation") == validation
    assert alone.problems("test") == ()
    assert len(dataclasses.replace(alone, num_validation=0).problems("train")) == 20
    assert dataclasses.replace(alone, num_validation=8).problems("validation")[:4] == validation


def test_what_is_left_out_moves_nothing_else(task, tmp_path):
    rows = [(f"{i} + 1 = ?", str(i + 1) if i not in (3, 11) else "") for i in range(20)]
    path = write(tmp_path / "gaps.jsonl", [*rows, ("0 + 1  = ?", "1")])
    whole = Math(path, "m", num_validation=6, verifier=ends_as_the_reference)
    assert sorted(ids(whole, "train") + ids(whole, "validation")) == [i for i in range(20) if i not in (3, 11)]
    held = ids(whole, "validation")
    benchmark = write(tmp_path / "aime.jsonl", [(f"{i} + 1  = ?", "1") for i in (held[0], 7, 30)])
    less = dataclasses.replace(whole, benchmarks=(benchmark,))
    gone = {held[0], 7}
    assert sorted(ids(less, "train") + ids(less, "validation")) == [i for i in range(20) if i not in gone | {3, 11}]
    assert [i for i in held if i not in gone] == ids(less, "validation")[: len(set(held) - gone)]
    assert len(ids(less, "validation")) == 6


def test_training_problems_that_are_held_out_are_left_out_and_said(task, tmp_path):
    test = write(tmp_path / "held.jsonl", [("3  + 1 = ?", "4"), ("x", ""), ("y", "1"), ("y", "2")])
    aime = write(tmp_path / "aime.jsonl", [(f"{i} + 1 = ?", "1") for i in (3, 5, 6)])
    leaking = dataclasses.replace(task, test=test, benchmarks=(aime,), num_validation=0)
    assert ids(leaking, "train") == [i for i in range(20) if i not in (3, 5, 6)]
    assert ids(leaking, "test") == [FIRST_TEST_ID, FIRST_TEST_ID + 2]
    assert len(leaking.benchmark_tasks[0].problems("test")) == 3
    assert leaking.notes == (
        "train: 20 rows; left out: 1 also in held, 2 also in aime",
        "held: 4 rows; left out: 1 repeated, 1 with an empty answer",
        "aime: 3 rows",
    )
    assert task.notes == ("train: 20 rows", "held.out: 5 rows")


def test_each_benchmark_is_a_task_that_reads_nothing_else(task, tmp_path):
    aime = Dataset("aime", path=write(tmp_path / "a.jsonl", [("x", "1"), ("y", "2")]))
    own = dataclasses.replace(task, train=str(tmp_path / "absent.jsonl"), benchmarks=(aime, sums))
    first, second = own.benchmark_tasks
    assert [first.name, second.name] == ["math/aime", "math/sums"]
    assert [problem.reference for problem in first.problems("test")] == ["1", "2"]
    assert len(second.problems("test")) == 20
    assert first.benchmark_tasks == task.benchmark_tasks == ()
    assert (first.tokenizer, first.verifier, first.instruction) == (own.tokenizer, own.verifier, own.instruction)
    with pytest.raises(ValueError, match=r"absent\.jsonl: cannot be read"):
        own.problems("train")


def test_names_say_what_is_held_out(task):
    assert task.name == "math/held.out"
    assert Math("a.jsonl", "m").name == "math/validation"
    assert Math("a.jsonl", "m", test=AIME_2025).name == "math/aime_2025"


def test_a_function_can_be_the_set():
    assert len(Math(sums, "m", num_validation=3, verifier=ends_as_the_reference).problems("train")) == 17


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "a.jsonl"},
        {"train": POLARIS_53K, "test": GSM8K, "benchmarks": (AIME_2025, "b.jsonl"), "verifier": MathVerifier()},
        {"train": sums, "benchmarks": (sums,), "verifier": ends_as_the_reference},
        {"train": "a.jsonl", "verifier": AnyCase(0.5)},
    ],
)
def test_nothing_is_read_before_use_and_configs_hold_the_fields(tmp_path, fields):
    task = Math(tokenizer_dir=str(tmp_path / "absent"), chat=False, **fields)
    assert task.tokenizer == HFTokenizer(str(tmp_path / "absent"), chat=False)
    again = from_json(json.loads(json.dumps(to_json(task))), Task)
    assert again == task
    assert hash(again) == hash(task)


def test_fields_of_sets_and_verifiers_are_set_on_the_command_line():
    task = Math(POLARIS_53K, "m", test=GSM8K, benchmarks=(AIME_2025, Dataset("b", "x/y")), verifier=AnyCase())
    arguments = ["--task.train.path", "a.parquet", "--task.benchmarks.1.answer", "final", "--task.verifier.reward=0.5"]
    changed = override(rl_config(task=task), arguments, "program").task
    assert changed.train == dataclasses.replace(POLARIS_53K, path="a.parquet")
    assert changed.test == GSM8K
    assert changed.benchmarks == (AIME_2025, Dataset("b", "x/y", answer="final"))
    assert changed.verifier == AnyCase(0.5)


def test_a_list_in_a_config_file_is_as_good_as_a_tuple(tmp_path):
    (tmp_path / "config.py").write_text(
        "from tests.tiny import rl_config\nfrom polyepo_jax.tasks import Math\n"
        "def get_config(): return rl_config(task=Math('a.jsonl', 'm', benchmarks=['b.jsonl', 'c.jsonl']))\n"
    )
    assert load(tmp_path / "config.py", Config).task.benchmarks == ("b.jsonl", "c.jsonl")
    (tmp_path / "wrong.py").write_text(
        "from tests.tiny import rl_config\nfrom polyepo_jax.tasks import Math\n"
        "def get_config(): return rl_config(task=Math('a.jsonl', 'm', benchmarks=('b/a.jsonl', 'c/a.jsonl')))\n"
    )
    with pytest.raises(InputError, match=r"two held-out sets are called 'a': name them apart"):
        load(tmp_path / "wrong.py", Config)


def test_prompts_are_turns_of_the_chat_template(task):
    tokenizer = write_tokenizer(task.tokenizer_dir)
    problem = task.problems("test")[0]
    turn = f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert task.tokenizer.encode_prompt(problem.prompt) == tokenizer.encode(turn).ids


# --- verifying and clustering ---

PROBLEM = Problem(0, "", "2")


def test_a_function_can_be_the_verifier(task):
    assert task.verify(PROBLEM, "so it is 2") == 1
    assert task.verify(PROBLEM, "so it is 3") == 0
    assert (task.verify_concurrency, task.verify_faults, task.verify_failures) == (1, (), ())


def test_a_verifier_says_what_can_go_wrong_and_what_it_cannot_use(tmp_path):
    path = write(tmp_path / "train.jsonl", [("a", "x"), ("b", "é"), ("c", "3")])
    task = Math(path, "m", verifier=AnyCase(0.5))
    assert task.verify(PROBLEM, "LOUD") == Verdict(0.5, "shouted")
    assert (task.verify_concurrency, task.verify_faults, task.verify_failures) == (3, ("shouted",), ("lost",))
    assert ids(task, "train") == [0, 2]
    assert task.notes == ("train: 3 rows; left out: 1 whose answer the verifier cannot use (row 1: it is not ASCII)",)


def test_the_default_verifier_compares_final_answers():
    task = Math("a.jsonl", "m")
    assert task.verifier == MathVerifier()
    assert task.verify(PROBLEM, "so \\boxed{2.0}") == Verdict(1.0)
    assert task.verify(PROBLEM, "so \\boxed{3}").reward == 0
    assert task.verify_concurrency >= 1
    assert "no_answer" in task.verify_faults


TEXTS = ["\\boxed{1/2}", "none", "\\boxed{x}", "so \\boxed{0.5}", "\\boxed{2}", "\\boxed{ X }", "\\boxed{"]


def test_clusters_are_final_answers(task):
    assert task.cluster(PROBLEM, TEXTS) == [0, DEGENERATE, 1, 0, 2, 3, DEGENERATE]
    assert task.cluster(PROBLEM, []) == []


def test_clusters_are_what_the_verifier_holds_for_equal(task):
    either = dataclasses.replace(task, verifier=AnyCase())
    assert either.cluster(PROBLEM, TEXTS) == [0, DEGENERATE, 1, 0, 2, 1, DEGENERATE]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_validation": -1}, "num_validation must be at least 0, got -1"),
        ({"verifier": "strict"}, r"verifier must be called as \(problem, response\), got 'strict'"),
        ({"train": None}, "a set must be a Dataset, a path or a function that yields problems, got None"),
        ({"benchmarks": (3,)}, "a set must be .* got 3"),
        ({"test": AIME_2025, "benchmarks": (AIME_2025,)}, "two held-out sets are called 'aime_2025': name them apart"),
    ],
)
def test_unusable_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Math(**{"train": "a.jsonl", "tokenizer_dir": "m", **fields})


def test_validation_must_leave_something_to_train_on(task):
    with pytest.raises(ValueError, match="num_validation = 20 leaves none of the 20 problems of train to train on"):
        dataclasses.replace(task, num_validation=20).problems("validation")
