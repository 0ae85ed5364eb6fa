"""A function in a process of its own, and the memory it took at most."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

STATUS = Path("/proc/self/status")


def in_fresh_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[Result, float]:
    """Call a function of a module in a new process.

    Returns:
        Its result, and the process's peak memory in MiB, importing torch and all included.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        result = process.submit(function, *args, **kwargs).result()
        return result, process.submit(peak_mib).result()


def peak_mib() -> float:
    """Most memory that this process has had in RAM so far."""
    if STATUS.exists():
        # Linux hands `ru_maxrss` down from the parent; this figure is the process's own.
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
