"""Freed memory is kept: a large block that is taken again costs no page faults."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, threading
import numpy as np
from amfir.extract.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def work():
    for _ in range(3):
        [np.ones(1 << 20) for _ in range(6)]  # 8 MiB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [np.ones(1 << 20) for _ in range(6)]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_a_thread_frees_is_taken_again_without_page_faults() -> None:
    assert faults("kept") < faults("returned") / 4
