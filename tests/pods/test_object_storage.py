"""Run directories at a URL; `file:` stands for object storage."""

import fcntl
import json
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from polyepo_jax import convert, evaluate, report
from polyepo_jax.errors import InputError
from polyepo_jax.evaluation import results
from polyepo_jax.pods import object_storage
from polyepo_jax.train import main as train
from tests.pod import ROOT
from tests.tiny import metrics_of

CONFIG = str(ROOT / "tests" / "pod_config.py")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(directory):
    return {p.relative_to(directory).as_posix(): p.read_text() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("gs://bucket/runs/one", "gs://bucket/runs/one"),
        ("gs://bucket/runs/one/", "gs://bucket/runs/one"),
        (Path("gs://bucket/runs/one"), "gs://bucket/runs/one"),
        (Path("file:///mnt/bucket/one"), "file:///mnt/bucket/one"),
        ("runs/gs:/one", None),
        ("gs", None),
        (Path("/runs/one"), None),
    ],
)
def test_what_is_a_url(given, url):
    assert object_storage.url_of(given) == url


def test_a_path_is_its_own_working_copy_and_home(tmp_path):
    assert object_storage.working_copy(tmp_path) == tmp_path
    assert str(object_storage.home(tmp_path)) == str(tmp_path)
    assert object_storage.name_of(tmp_path) == str(tmp_path)
    object_storage.Pusher(tmp_path).push()
    assert list(tmp_path.iterdir()) == []


def test_a_working_copy_holds_what_is_at_the_url_but_checkpoints(tmp_path):
    there = tmp_path / "bucket" / "one"
    for name in ("config.json", "tensorboard/events", "checkpoints/3/params/data", "manifests/3.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(name)
    copy = object_storage.working_copy(Path(f"file://{there}"))
    assert copy.name == "one"
    assert object_storage.name_of(copy) == f"file://{there}"
    assert str(object_storage.home(copy)) == str(there)
    held = contents(copy)
    assert {name for name in held if not name.startswith(".")} == {"config.json", "tensorboard/events"}

    (copy / "of_another_life.jsonl").write_text("what was never copied is no part of the run")
    (there / "config.json").write_text("newer")
    assert object_storage.working_copy(Path(f"file://{there}")) == copy
    assert contents(copy)["config.json"] == "newer"
    assert not (copy / "of_another_life.jsonl").exists()


def test_what_a_run_on_this_machine_writes_is_left_alone(tmp_path):
    there = tmp_path / "bucket" / "one"
    there.mkdir(parents=True)
    copy = object_storage.working_copy(Path(f"file://{there}"))
    (copy / "metrics.jsonl").write_text("newer than there")
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert object_storage.working_copy(Path(f"file://{there}")) == copy
    assert (copy / "metrics.jsonl").read_text() == "newer than there"


def test_what_has_changed_is_copied(tmp_path, monkeypatch):
    there = tmp_path / "bucket" / "one"
    copy = object_storage.working_copy(Path(f"file://{there}"))
    (copy / "metrics.jsonl").write_text("one\n")
    (copy / "config.json").write_text("{}")
    (copy / "judge_cache.1.sqlite").write_text("open in another process")
    pusher = object_storage.Pusher(copy)
    pusher.push()
    assert contents(there) == {"metrics.jsonl": "one\n", "config.json": "{}"}
    (there / "config.json").write_text("only what has changed is copied")
    (copy / "metrics.jsonl").write_text("one\ntwo\n")
    pusher.push()
    assert contents(there) == {"metrics.jsonl": "one\ntwo\n", "config.json": "only what has changed is copied"}


class Bucket(MemoryFileSystem):
    """Object storage: a folder is there as long as it holds something."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def mkdir(self, path, create_parents=True, **options):
        pass

    makedirs = mkdir


def test_object_storage_is_spoken_to_as_it_wants(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Bucket)
    url = "gs://bucket/runs/one"
    copy = object_storage.working_copy(Path(url))
    (copy / "tensorboard").mkdir()
    for name in ("metrics.jsonl", "tensorboard/events"):
        (copy / name).write_text(name)
    object_storage.Pusher(copy).push()
    (object_storage.home(copy) / "checkpoints" / "3").mkdir(parents=True)
    (object_storage.home(copy) / "checkpoints" / "3" / "data").write_text("")
    assert set(Bucket.store) == {
        f"/bucket/runs/one/{name}" for name in ("metrics.jsonl", "tensorboard/events", "checkpoints/3/data")
    }
    assert object_storage.files_below(object_storage.home(copy)).keys() == {
        "metrics.jsonl",
        "tensorboard/events",
        "checkpoints/3/data",
    }
    shutil.rmtree(copy)
    assert object_storage.working_copy(Path(url)) == copy
    assert (copy / "tensorboard" / "events").read_text() == "tensorboard/events"
    assert not (copy / "checkpoints").exists()


def test_storage_that_cannot_be_used_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        train(["--config", CONFIG, "--run-dir", f"file://{tmp_path}/file/one"])

    def no_package(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(object_storage, "_open", no_package)
    with pytest.raises(InputError, match=r"gs://bucket/one cannot be read: gs:// needs the package gcsfs: pip install"):
        object_storage.working_copy(Path("gs://bucket/one"))


@pytest.mark.slow
def test_a_run_at_a_url_goes_on_from_another_machine(tmp_path, monkeypatch, capsys):
    plain, there = tmp_path / "plain", tmp_path / "bucket" / "one"
    train(["--config", CONFIG, "--run-dir", str(plain)])
    url = f"file://{there}"
    train(["--config", CONFIG, "--run-dir", url, "--max-steps", "4"])
    assert f"done: step 4, in {url}" in capsys.readouterr().err
    assert not list(tmp_path.glob("cache/**/checkpoints"))

    monkeypatch.setenv("POLYEPO_CACHE", str(tmp_path / "another_machine"))
    train(["--config", CONFIG, "--run-dir", url])
    assert {p.name for p in there.iterdir()} == {p.name for p in plain.iterdir()} - {".lock"}
    assert metrics_of(there) == metrics_of(plain)
    assert (there / "samples.jsonl").read_text() == (plain / "samples.jsonl").read_text()

    evaluate.main(["--run-dir", url])
    assert json.loads((there / "eval.json").read_text())["checkpoint_step"] == 6
    assert (there / "eval_samples.jsonl").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(results, "_LARGE", 1)
        evaluate.main(["--run-dir", url])
    assert {p.name for p in there.glob("eval_samples*")} == {"eval_samples.jsonl.gz"}, "the other one is no more"
    convert.main(["hf-export", url, "--out", str(tmp_path / "hf")])
    assert (tmp_path / "hf" / "config.json").is_file()
    with pytest.raises(InputError, match="give --out"):
        convert.main(["hf-export", url])
    report.main([url, "--out", str(tmp_path / "report")])
    assert (tmp_path / "report" / "report.html").is_file()

    shutil.rmtree(tmp_path / "another_machine")
    train(["--config", CONFIG, "--run-dir", str(tmp_path / "next"), "--init.run-dir", url, "--max-steps", "1"])
    assert len(metrics_of(tmp_path / "next")) == 1
