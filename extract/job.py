"""The extraction job: decoder processes, network threads and one writer, none of which waits for another's end.

    decoder processes --(products)--> this thread --(batches)--> lanes --(rows)--> writer

Between them are bounded queues. The decoder processes are started before torch is imported and the networks are loaded,
since both take about a second.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache.errors import UserError
from ..cache.writer import StreamWriter
from .allocator import keep_freed_memory
from .clips import Clip
from .config import ExtractConfig, decode_settings
from .plan import Plan, make_plan
from .pool import DecoderPool
from .report import ExtractReport, Progress, Tally

if TYPE_CHECKING:
    from .networks import Network


def extract(
    clips: Iterable[Clip],
    cache: Path,
    config: ExtractConfig,
    progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Extract the features that a cache lacks.

    Interrupted in whatever way and called again, it ends in the same cache, bit by bit (on the same machine).

    Args:
        clips: All clips of the dataset; gone through twice, so that a long list need not be in memory.
        cache: The cache's directory; made if need be.
        config: Settings.
        progress: Called after each clip, and about twice a second while none gets ready.

    Raises:
        UserError: If the settings, the clips, the weights and the cache do not go together.
        MachineError: If the disk or the memory is full.
        KeyboardInterrupt: As it came, after what was finished has been written.
    """
    started = time.monotonic()
    show = progress or (lambda _: None)
    plan = make_plan(
        clips,
        cache,
        config.streams,
        retry_failed=config.retry_failed,
        listed=lambda count: show(Progress(count, 0, 0, 0, time.monotonic() - started)),
    )
    if plan.todo and cache.is_dir() and not os.access(cache, os.W_OK):  # before hours of work have nowhere to go
        raise UserError(f"the cache cannot be written; --cache {cache}; mend its permissions, or name another folder")
    tally = Tally(plan, started)
    if config.engine == "local":
        _run_here(plan, cache, config, tally, show)
    else:  # even if there is nothing to do: an actor refuses a cache of another spec
        from .cluster import run_cluster

        run_cluster(plan.tasks(), cache, config, config.address, tally, show)
    return tally.report()


def _run_here(
    plan: Plan, cache: Path, config: ExtractConfig, tally: Tally, progress: Callable[[Progress], None]
) -> None:
    """Run the job on this machine."""
    with DecoderPool(min(config.workers or cores(), plan.todo), config.timeout_seconds) as pool:
        from .line import run_line

        lanes = load_lanes(config)
        # Made even if there is nothing to do: they refuse a cache of another spec.
        writers = open_writers(cache, lanes[0], config)
        if plan.todo:
            settings = decode_settings(config, lanes[0])
            run_line(pool.results(plan.tasks(), settings), lanes, writers, tally, progress)


def load_lanes(config: ExtractConfig) -> list[Mapping[str, "Network"]]:
    """Load the networks onto the job's devices.

    Returns:
        For each thread that is to run networks, these by stream: two threads a GPU, or one a core of the CPU.

    Raises:
        UserError: If a device, a name, a file or the size of the images does not fit.
    """
    from .networks import find_devices, load_networks

    devices = find_devices(config.device)
    on_cpu = devices[0].type == "cpu"
    if on_cpu:
        keep_freed_memory()
    count = cores() if on_cpu else 2
    return [networks for device in devices for networks in [load_networks(config, device)] * count]


def open_writers(cache: Path, networks: Mapping[str, "Network"], config: ExtractConfig) -> dict[str, StreamWriter]:
    """Open the streams of a cache for writing.

    Raises:
        UserError: If a stream exists with another spec; a flow stream may be another backend's that agrees with the
            job's up to rounding, unless the job is strict: then its spec stands.
    """
    from .spec import settled_spec

    return {stream: StreamWriter(cache, settled_spec(cache, stream, net, config)) for stream, net in networks.items()}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
