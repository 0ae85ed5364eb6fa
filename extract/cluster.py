"""Extraction on many GPUs and many machines: Ray starts processes there and notices when they die.

cluster.py        the way into a cluster
cluster_job.py    deals chunks of clips to actors, on the machine where the command was given
cluster_actor.py  what an actor does with them: one device, decoders, lanes and writers of its own
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..cache.errors import UserError
from .config import ExtractConfig
from .report import Progress, Tally
from .worker import Task

CONNECT_SECONDS = 3.0
"""Time for a cluster's first answer."""
PATIENCE_SECONDS = 60.0
"""Time without a machine that has room for an actor, after which a job is given up."""
STORE_BYTES = 100_000_000
"""Memory that a cluster started here sets aside for objects; only lists of clips and of failures pass through it."""

# Read by Ray when it is imported, or when it starts a cluster.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody without being asked for
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # Ray's messages about lost processes do not belong on the standard output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that this will be the default
}

# The first bytes of an HTTP/2 connection, on which gRPC is built: the preface and an empty SETTINGS frame.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEADER_BYTES = 9
_SETTINGS = 4


def run_cluster(
    tasks: Iterator[Task],
    cache: Path,
    config: ExtractConfig,
    address: str | None,
    tally: Tally,
    progress: Callable[[Progress], None],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Extract clips on a Ray cluster: an actor on each GPU, or one on each machine if there are no GPUs.

    Actors pull clips as they get ready and write segments of their own into the cache, which all machines share. The
    clips of an actor that is lost are dealt again; an actor in its place starts as soon as there is room for it.

    Args:
        tasks: Clips with streams to be extracted.
        cache: The cache's directory, on a file system that all machines have under the same name, as for the clips.
        config: Settings; "auto" as a device takes GPUs if the cluster has any.
        address: "host:port", "auto" for the cluster that runs on this machine, "local" for one that is started here and
            ends with the job. None takes RAY_ADDRESS, or "local".
        tally: Told of every clip, once its rows are on disk.
        progress: Called about twice a second.
        patience_seconds: Time without a machine that has room for an actor, after which the job is given up.

    Raises:
        UserError: If Ray is not installed or does not answer, or as `extract`.
        MachineError: If no machine is left, or as `extract`.
    """
    with _connected(address or os.environ.get("RAY_ADDRESS") or "local"):
        from .cluster_job import ClusterJob

        ClusterJob(tasks, cache, config, tally, progress, patience_seconds).run()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster for a while; a connection that the caller's program has made already is used and kept.

    Raises:
        UserError: If that does not succeed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("Ray is not installed; --engine ray; run `pip install 'amfir[ray]'` on all machines") from None
    if ray.is_initialized():
        yield
        return
    if address not in ("local", "auto"):
        _require_answer(address)
    new: dict[str, Any] = {"object_store_memory": STORE_BYTES, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **new)
    except (Exception, SystemExit) as error:  # Ray has no class of its own for it, and ends the process in some cases
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"cannot connect to Ray ({cause}); address {address!r}; see `ray status` there") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Check that a gRPC server answers, since Ray itself tries for two minutes.

    Raises:
        UserError: If none does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"{address!r} is no Ray address; --address or RAY_ADDRESS; give HOST:PORT, auto or local")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.settimeout(CONNECT_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_GREETING)
                answer = connection.recv(_HEADER_BYTES, socket.MSG_WAITALL)
                if len(answer) < _HEADER_BYTES or answer[3] != _SETTINGS:
                    raise OSError("something else than Ray answers")
    except (OSError, OverflowError) as error:
        cause = " ".join(str(error).split())
        mend = "start it there with `ray start --head`, or give the address that this printed"
        raise UserError(f"no Ray cluster answers ({cause}); address {address!r}; {mend}") from error
