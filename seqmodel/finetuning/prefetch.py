"""Prefetching: a background thread loads the next item while the current one is in use.

One thread is enough: decoding and disk reads release Python's global lock.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def prefetched(load: Callable[..., Any], items: Sequence[tuple[int, ...]]) -> Iterator[Iterator[Any]]:
    """An iterator over `load(*item)` in order; an exception of `load` is raised in place of its result."""
    with ThreadPoolExecutor(1, thread_name_prefix="clips") as pool:

        def results() -> Iterator[Any]:
            waiting: list[Future[Any]] = []
            for item in items:
                waiting.append(pool.submit(load, *item))
                if len(waiting) > 1:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

        try:
            yield results()
        finally:
            pool.shutdown(cancel_futures=True)
