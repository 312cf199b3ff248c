"""Values that are made once and kept up to a size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from callipper_db.web.cache import Cache


def test_threads_that_ask_at_once_make_a_value_once() -> None:
    cache: Cache[object] = Cache(room=10)
    together, others_wait = Barrier(8), Event()
    made: list[object] = []

    def make() -> object:
        others_wait.wait(10)
        made.append(object())
        return made[-1]

    def ask(number: int) -> object:
        together.wait(10)
        if number == 0:
            others_wait.set()
        return cache.of("key", make)

    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(ask, range(8)))
    assert len(made) == 1 and set(values) == {made[0]}


class Announced(str):
    """A key that says when it is looked up, which the cache does under its lock."""

    def __new__(cls, text: str, looked_up: Event) -> Announced:
        key = super().__new__(cls, text)
        key.looked_up = looked_up
        return key

    looked_up: Event

    def __hash__(self) -> int:
        self.looked_up.set()
        return super().__hash__()


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    cache: Cache[int] = Cache(room=10)
    started, other_is_there = Event(), Event()

    def fail() -> int:
        started.set()
        assert other_is_there.wait(10)
        raise TimeoutError("too slow")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.of, "key", fail)
        assert started.wait(10)
        other = threads.submit(cache.of, Announced("key", other_is_there), lambda: 2)
        for each in (first, other):
            with pytest.raises(TimeoutError, match="too slow"):
                each.result(10)
    assert cache.of("key", lambda: 1) == 1


def test_what_was_not_used_for_longest_gives_way() -> None:
    cache: Cache[str] = Cache(room=10, size=len)
    asked: list[str] = []

    def ask(key: str, value: str) -> str:
        return cache.of(key, lambda: asked.append(key) or value)  # type: ignore[func-returns-value]

    ask("a", "aaaa")
    ask("b", "bbbb")
    ask("a", "aaaa")
    ask("c", "cccc")  # 12 of 10: b goes
    assert asked == ["a", "b", "c"]
    ask("a", "aaaa")
    ask("b", "bbbb")
    assert asked == ["a", "b", "c", "b"]
    assert ask("huge", "h" * 11) == "h" * 11, "it is answered, but not kept"
    ask("huge", "h" * 11)
    assert asked[-2:] == ["huge", "huge"]
