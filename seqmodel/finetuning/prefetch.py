"""The next thing is made while the last one is used.

One thread: decoding and reading disks leave Python's lock alone.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def prefetched(load: Callable[..., Any], items: Sequence[tuple[int, ...]]) -> Iterator[Iterator[Any]]:
    """An iterator over `load(*item)` in order; what `load` raises comes out where its result would have."""
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
