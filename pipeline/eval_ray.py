"""Blocks of an evaluation on a Ray cluster: `amfir eval --engine ray`.

Each actor gets the job, with all clips encoded, through Ray's object store, and then numbers of blocks.
"""

import io
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import MachineError
from ..extract.cluster import _connected as connected
from ..meta.evaluate import Engine
from .eval_processes import AHEAD, require_workers, write_job

Part = TypeVar("Part")


def on_ray(workers: int | None, address: str | None) -> Engine:
    """An engine of so many actors, a core each.

    Args:
        workers: Actors at most; None: as many as the cluster has cores, and never more.
        address: "host:port", "auto" or "local"; None takes RAY_ADDRESS, or "local".

    Raises:
        UserError: If the number is no number of processes; when it runs, if Ray is not installed or does not answer.
    """
    require_workers(1 if workers is None else workers)

    def run(job: Callable[[int], Part], num_blocks: int, take: Callable[[Part], None]) -> None:
        with connected(address or os.environ.get("RAY_ADDRESS") or "local"):
            _run(job, workers, num_blocks, take)

    return run


def _run(job: Callable[[int], Part], workers: int | None, num_blocks: int, take: Callable[[Part], None]) -> None:
    import ray

    sent = ray.put(_pack(job))
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    actor_class: Any = ray.remote(num_cpus=1)(Counter)
    actors = [actor_class.remote(sent) for _ in range(max(1, min(workers or cores, cores, num_blocks)))]
    waiting: deque[Any] = deque()
    try:
        for block in range(num_blocks):
            waiting.append(actors[block % len(actors)].count.remote(block))
            if len(waiting) >= AHEAD * len(actors):
                take(ray.get(waiting.popleft()))
        while waiting:
            take(ray.get(waiting.popleft()))
    except ray.exceptions.RayActorError as error:
        cause = " ".join(str(error).split())[:200]
        raise MachineError(f"a process of the evaluation was lost ({cause}); Ray; run the command again") from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _pack(job: Callable[[int], Any]) -> NDArray[np.uint8]:
    with TemporaryDirectory(prefix="amfir-eval-") as folder:
        path = Path(folder) / "job"
        write_job(path, job)
        return np.fromfile(path, np.uint8)


class Counter:
    """An actor: counts blocks.

    Args:
        packed: The job's file, uint8 [bytes].
    """

    def __init__(self, packed: NDArray[np.uint8]) -> None:
        import torch

        torch.set_num_threads(1)
        self._job: Callable[[int], Any] = torch.load(io.BytesIO(packed.tobytes()), weights_only=False)

    def count(self, block: int) -> Any:
        """Counts of a block."""
        return self._job(block)
