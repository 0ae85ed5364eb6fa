"""A job on a Ray cluster, as the machine sees it where the command was given: chunks of clips are dealt to actors."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..cache import Failure, StreamSpec
from ..cache.errors import MachineError, UserError
from ..cache.files import file_errors
from .cluster_actor import ClusterActor
from .cluster_chunks import Chunk, give_up, lost, unwritten
from .cluster_posts import Post, config_for, find_posts, task_for_actors
from .config import ExtractConfig
from .report import Progress, Tally
from .worker import Task

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.5
STOP_SECONDS = 20.0
"""Time for the actors to write what is finished when the job ends."""
FIRST_CHUNK = 4
MAX_CHUNK = 256
CHUNK_SECONDS = 10.0
"""What a chunk should take: long against a call and the writing of a segment, short against what a lost actor costs."""
UNDER_WAY = 2
"""Chunks at an actor: while the last clips of one are waited for, there is the other."""
MAX_FAILED_STARTS = 3


@dataclass(eq=False)
class _Member:
    """An actor, as the job sees it."""

    post: Post
    handle: Any
    chunk_size: int
    """Clips of the next chunk."""
    host: str = ""
    """The machine that Ray has found for it, as soon as it has."""
    started: bool = False
    """Whether it takes chunks."""
    chunks: list[Chunk] = field(default_factory=list)
    """Those under way."""


@dataclass(frozen=True)
class _Call:
    """A call of an actor's method that has not returned."""

    member: _Member
    then: Callable[[Any], None]
    """Takes what it returns."""


class ClusterJob:
    """Deals clips to actors until all are done.

    Args:
        tasks: Clips with streams to be extracted.
        cache: The cache's directory, which all machines share.
        config: Settings.
        tally: Told of every clip, once its rows are on disk.
        progress: Called about twice a second.
        patience_seconds: Time without a machine that has room for an actor, after which the job is given up.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        cache: Path,
        config: ExtractConfig,
        tally: Tally,
        progress: Callable[[Progress], None],
        patience_seconds: float,
    ) -> None:
        posts = find_posts(config.device, ray.nodes())  # type: ignore[no-untyped-call]
        first = list(islice(tasks, len(posts)))
        self._tasks = chain(first, tasks)
        self._posts = posts[: max(1, len(first))]
        self._cache = cache.absolute()
        self._token = f"cache.json.{secrets.token_hex(4)}.tmp"  # if the job is killed, the cache sweeps that up
        self._config = config_for(self._posts, config)
        self._tally = tally
        self._progress = progress
        self._patience_seconds = patience_seconds
        self._placed_seconds = time.monotonic()
        self._failed_starts = 0
        self._more = True
        self._retries: deque[Chunk] = deque()
        self._members: list[_Member] = []
        self._calls: dict[Any, _Call] = {}
        self._specs: dict[str, StreamSpec] = {}

    def run(self) -> None:
        """Run the job; as `run_cluster`."""
        try:
            for post in self._posts:
                self._hire(post)
            while self._deal():
                self._listen()
                self._check_patience()
                self._progress(self._tally.progress())
            self._progress(self._tally.progress())
        finally:
            self._dismiss()

    def _hire(self, post: Post) -> None:
        """Ask Ray for an actor."""
        with file_errors(self._cache):
            self._cache.mkdir(parents=True, exist_ok=True)
            (self._cache / self._token).touch()
        options = {
            "num_cpus": post.cpus,
            "num_gpus": post.gpus,
            "max_concurrency": UNDER_WAY + 1,  # and `stop`
            "scheduling_strategy": NodeAffinitySchedulingStrategy(post.node, soft=True),
        }
        actor_class: Any = ray.remote(ClusterActor)
        handle = actor_class.options(**options).remote(self._cache, self._config, post.cpus, self._token)
        member = _Member(post, handle, FIRST_CHUNK)
        self._members.append(member)
        self._call(member, handle.place.remote(), lambda host: self._place(member, host))

    def _place(self, member: _Member, host: str) -> None:
        member.host = host
        self._call(member, member.handle.start.remote(), lambda specs: self._start(member, specs))

    def _start(self, member: _Member, specs: dict[str, StreamSpec]) -> None:
        member.started = True
        self._failed_starts = 0
        self._specs = specs

    def _call(self, member: _Member, reference: Any, then: Callable[[Any], None]) -> None:
        self._calls[reference] = _Call(member, then)

    def _deal(self) -> bool:
        """Give every actor clips that has room for them; returns whether the job goes on."""
        for member in self._members:
            while member.started and (chunk := self._chunk_for(member)):
                member.chunks.append(chunk)
                reference = member.handle.extract.remote(chunk.tasks)
                self._call(member, reference, self._finisher(member, chunk))
        # No job ends before an actor has compared the cache's specs with its own.
        return self._more or bool(self._retries) or not self._specs or any(member.chunks for member in self._members)

    def _chunk_for(self, member: _Member) -> Chunk | None:
        """Return what an actor is to do next, if anything."""
        if len(member.chunks) == UNDER_WAY or any(chunk.suspect for chunk in member.chunks):
            return None
        while self._retries and not member.chunks:
            if chunk := self._retry(self._retries.popleft()):
                return chunk
        if self._retries or not self._more:
            return None
        tasks = [task_for_actors(task) for task in islice(self._tasks, member.chunk_size)]
        self._more = bool(tasks)
        return Chunk(tasks) if tasks else None

    def _finisher(self, member: _Member, chunk: Chunk) -> Callable[[list[Failure]], None]:
        dealt = time.monotonic()

        def finish(failures: list[Failure]) -> None:
            member.chunks.remove(chunk)
            seconds = time.monotonic() - dealt
            if seconds < CHUNK_SECONDS / 2:
                member.chunk_size = min(2 * member.chunk_size, MAX_CHUNK)
            elif seconds > CHUNK_SECONDS * 2:
                member.chunk_size = max(member.chunk_size // 2, 1)
            for task in chunk.tasks:
                self._count(task, [failure for failure in failures if failure.clip_id == task.clip.id])

        return finish

    def _count(self, task: Task, failures: list[Failure]) -> None:
        if failures:
            self._tally.fail(failures, counted=task.standing)
        elif not task.standing:
            self._tally.complete()

    def _listen(self) -> None:
        """Take what the actors return, for half a second at most."""
        ready, _ = ray.wait(list(self._calls), timeout=HEARTBEAT_SECONDS)
        for reference in ready:
            call = self._calls.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as error:  # raised by the actor's own code
                if isinstance(error.cause, UserError | MachineError):
                    raise error.cause from None
                raise
            except RayError as error:  # the actor, its machine or the way there is lost
                self._lose(call.member, error)
            else:
                call.then(result)

    def _lose(self, member: _Member, error: RayError) -> None:
        """Put a new actor in the place of one that died; what it had under way is done again."""
        self._members.remove(member)
        self._calls = {reference: call for reference, call in self._calls.items() if call.member is not member}
        ray.kill(member.handle)  # it may only be out of reach
        for chunk in member.chunks:
            self._retries += lost(chunk)
        log.warning("lost an actor on %s; its clips are dealt again", member.host or "a machine of the cluster")
        self._failed_starts += not member.started
        if self._failed_starts == MAX_FAILED_STARTS * len(self._posts):
            cause = str(error).strip().split("\n")[-1].strip()[:200]
            mend = "install the same amfir and ray on all machines, and look into Ray's logs there"
            raise MachineError(f"the actors die before they are ready ({cause}); Ray; {mend}")
        self._hire(member.post)

    def _retry(self, suspect: Chunk) -> Chunk | None:
        """Return what is still to be done of a lost actor's chunk."""
        chunk = unwritten(suspect, self._cache)
        left = {task.clip.id for task in chunk.tasks}
        for task in suspect.tasks:
            if task.clip.id not in left:
                self._count(task, [])
        if chunk.tasks and chunk.deadly:
            self._count(chunk.tasks[0], [give_up(chunk.tasks[0], self._cache, self._specs)])
            return None
        return chunk if chunk.tasks else None

    def _check_patience(self) -> None:
        now = time.monotonic()
        if any(member.host for member in self._members):
            self._placed_seconds = now
        elif now - self._placed_seconds > self._patience_seconds:
            raise MachineError(
                f"no machine has had room for an actor ({self._posts[0]}) for {self._patience_seconds:g} s; "
                "Ray; start machines or end other jobs there, then run the same command again"
            )

    def _dismiss(self) -> None:
        """End the actors, after they have written what is finished."""
        stops = [member.handle.stop.remote() for member in self._members if member.started]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for member in self._members:
            ray.kill(member.handle)
        (self._cache / self._token).unlink(missing_ok=True)
