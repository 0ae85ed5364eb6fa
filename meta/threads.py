"""One torch thread for the second stage's small operations; large work is divided by hand."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_outside: list[int] = []
"""Torch's threads before each `one_thread` that has not ended."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: a second gains little here, on a busy machine waits up to 50 times, and may change bits."""
    _outside.append(torch.get_num_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_outside.pop())


def map_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], on as many threads as torch had outside of `one_thread`; else on one.

    An item's operations stay on one thread: no operation waits for another's, and no bit depends on their number.

    Args:
        function: Large enough for a thread to be worth it. Whether gradients are recorded is for it to say.
        items: In any number.
    """
    threads = min(_outside[0] if _outside else 1, len(items))
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
