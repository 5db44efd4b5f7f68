"""The cache of judge replies: on disk at once, shared, and clear about damage."""

import concurrent.futures
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from polyepo_jax.judges.cache import ReplyCache, cache_key, of_process, siblings

PUT = """
import os, pathlib, sys
from polyepo_jax.judges.cache import ReplyCache
cache = ReplyCache(pathlib.Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}{i}", (0, i, -1))
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


def test_keys_depend_on_all_content_and_on_its_order():
    keys = {
        cache_key({"model": "m"}, "p", ["a", "b"]),
        cache_key({"model": "n"}, "p", ["a", "b"]),
        cache_key({"model": "m"}, "q", ["a", "b"]),
        cache_key({"model": "m"}, "p", ["b", "a"]),
        cache_key({"model": "m"}, "p", ["a", "b", ""]),
        cache_key({"model": "m"}, "p", ["ab"]),
        cache_key({"model": "m"}, "p", ["a", "b\ud800"]),
    }
    assert len(keys) == 7
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})


@pytest.mark.parametrize("on_disk", [True, False])
def test_answers_are_found_again(path, on_disk):
    cache = ReplyCache(path if on_disk else None)
    assert cache.get("k") is None
    cache.put("k", (0, 1, -1))
    cache.put("k", (0, 0, 0))  # of two answers to one question the first stays
    assert cache.get("k") == (0, 1, -1)
    cache.close()
    assert path.exists() == on_disk


def test_killed_processes_lose_nothing(path):
    """Two at a time, one file."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", PUT, str(path), name, "50"], env=environment) for name in "ab"]
    assert [process.wait(timeout=120) for process in processes] == [-9, -9]
    cache = ReplyCache(path)
    assert all(cache.get(f"{name}{i}") == (0, i, -1) for name in "ab" for i in range(50))
    cache.close()


def test_threads_share_a_cache(path):
    cache = ReplyCache(path)

    def work(i):
        cache.put(f"k{i % 20}", (i % 20,))
        return cache.get(f"k{i % 20}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(200))) == [(i % 20,) for i in range(200)]
    cache.close()


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path):
    for i in range(40):
        together = threading.Barrier(8)

        def open_and_close(path, together=together):
            together.wait(timeout=60)
            ReplyCache(path).close()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(open_and_close, [tmp_path / f"{i}.sqlite"] * 8))


def test_other_content_is_refused(path):
    path.write_text("this is no database, however long it goes on" * 100)
    with pytest.raises(ValueError, match=r"cache\.sqlite: no cache.*delete it"):
        ReplyCache(path)


def test_a_torn_file_is_refused(path):
    cache = ReplyCache(path)
    for i in range(500):
        cache.put(cache_key(i), range(8))
    cache.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cache\.sqlite: no cache.*delete it"):
        ReplyCache(path)


def test_a_damaged_page_is_refused(path):
    cache = ReplyCache(path)
    for i in range(500):
        cache.put(cache_key(i), range(8))
    cache.close()
    content = bytearray(path.read_bytes())
    content[8192:12_288] = b"\x55" * 4096
    path.write_bytes(content)
    with pytest.raises(ValueError, match="delete it"):
        ReplyCache(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened"):
        ReplyCache(tmp_path / "nowhere" / "cache.sqlite")
    with pytest.raises(ValueError, match="cannot be opened"):
        ReplyCache(tmp_path)


def test_a_closed_cache_does_not_pretend(path):
    cache = ReplyCache(path)
    cache.close()
    with pytest.raises(sqlite3.Error):
        cache.get("k")


def test_each_process_has_a_file_and_all_answers_that_were_there(path):
    first, second = ReplyCache(of_process(path, 0), one_host=False), ReplyCache(of_process(path, 1), one_host=False)
    first.put("a", (0,))
    second.put("a", (1,))
    second.put("b", (2,))
    first.close()
    second.close()
    (path.parent / "cache.notes.sqlite").write_text("not one of them")
    assert siblings(path) == [path, path.with_name("cache.1.sqlite")]
    alone = ReplyCache(path, others=siblings(path)[1:])
    assert alone.get("a") == (0,)  # its own answer stays
    assert alone.get("b") == (2,)
    alone.close()
    third = ReplyCache(of_process(path, 2), others=siblings(path))
    assert third.get("b") == (2,)
    third.close()


def test_a_file_that_another_process_is_just_making_is_passed_over(path):
    of_process(path, 1).touch()
    cache = ReplyCache(path, others=[of_process(path, 1)])
    assert cache.get("a") is None
    cache.close()
