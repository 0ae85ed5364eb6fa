"""The extraction job: decoder processes, network threads and one writer, none of which waits for another's end.

    decoder processes --(images)--> this thread --(batches)--> lanes --(rows)--> writer

Between them are bounded queues. The decoder processes are started before torch is imported and the networks are loaded,
since both take about a second.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..cache import StreamWriter
from .clips import Clip
from .config import ExtractConfig, decode_settings, stream_spec
from .plan import make_plan
from .pool import DecoderPool
from .report import ExtractReport, Progress, Tally


def extract(
    clips: Iterable[Clip],
    cache: Path,
    config: ExtractConfig,
    progress: Callable[[Progress], None] | None = None,
) -> ExtractReport:
    """Extract the features that a cache lacks.

    Interrupted in whatever way and called again, it ends in the same cache, bit by bit (on the same machine).

    Args:
        clips: All clips of the dataset.
        cache: The cache's directory; made if need be.
        config: Settings.
        progress: Called after each clip, and about twice a second while none gets ready.

    Raises:
        UserError: If the settings, the clips, the weights and the cache do not go together.
        MachineError: If the disk or the memory is full.
        KeyboardInterrupt: As it came, after what was finished has been written.
    """
    started = time.monotonic()
    plan = make_plan(clips, cache, config.streams, retry_failed=config.retry_failed)
    tally = Tally(plan, started)
    workers = (config.workers or cores()) if plan.tasks else 0
    with DecoderPool(min(workers, len(plan.tasks)), config.timeout_seconds) as pool:
        from .line import run_line
        from .networks import load_networks

        networks = load_networks(config)
        specs = {stream: stream_spec(stream, network.backbone, config) for stream, network in networks.items()}
        # Made even if there is nothing to do: they refuse a cache of another spec.
        writers = {stream: StreamWriter(cache, spec) for stream, spec in specs.items()}
        if plan.tasks:
            settings = decode_settings(config, {stream: network.side for stream, network in networks.items()})
            on_cpu = networks[config.streams[0]].backbone.device.type == "cpu"
            results = pool.results(plan.tasks, settings)
            run_line(results, networks, cores() if on_cpu else 1, writers, tally, progress or (lambda _: None))
    return tally.report()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
