"""Values that are expensive to make, kept in memory up to a size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """The values used last, up to a total size. Threads that ask for the same key at once wait for one of them to make it."""

    def __init__(self, room: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self._room, self._size, self._used = room, size, 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, Future[V]] = {}
        self._lock = Lock()

    def of(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key. An error of `make` reaches all who wait for it, and is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.get(key)
            if is_first := making is None:
                making = self._making[key] = Future()
        return self._make(key, make, making) if is_first else making.result()

    def _make(self, key: Hashable, make: Callable[[], V], making: Future[V]) -> V:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            making.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, value)
        making.set_result(value)
        return value

    def _keep(self, key: Hashable, value: V) -> None:
        self._values[key] = value
        self._used += self._size(value)
        while self._used > self._room:
            _, gone = self._values.popitem(last=False)
            self._used -= self._size(gone)
