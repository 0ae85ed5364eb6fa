"""Which actors a Ray cluster gets: one on each GPU, or one on each machine if there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.errors import MachineError, UserError
from .config import ExtractConfig
from .worker import Task


@dataclass(frozen=True)
class Post:
    """What one actor takes of the cluster."""

    node: str
    """Ray's name of the machine; another one is as good once this is lost."""
    cpus: int
    """Cores."""
    gpus: int
    """0 or 1."""

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (" and a GPU" if self.gpus else "")


def find_posts(device: str, nodes: Sequence[Mapping[str, Any]]) -> list[Post]:
    """Divide a cluster among actors; the cores of a machine with GPUs go to these in equal parts.

    Args:
        device: "cpu"; "cuda"; "auto" takes the GPUs if there are any.
        nodes: The machines, as `ray.nodes` describes them.

    Raises:
        UserError: If there is no such device, or a single one is named.
        MachineError: If no machine has cores.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r} does not go with --engine ray; --device; use auto, cpu or cuda")
    machines = {
        str(node["NodeID"]): {name: int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU")}
        for node in nodes
        if node["Alive"]
    }
    posts = [Post(node, has["CPU"] // has["GPU"], 1) for node, has in machines.items() for _ in range(has["GPU"])]
    if device == "cuda" and not posts:
        raise UserError("the Ray cluster has no GPU; --device cuda; use auto or cpu")
    if device == "cpu" or not posts:
        posts = [Post(node, has["CPU"], 0) for node, has in machines.items() if has["CPU"]]
    if not posts:
        raise MachineError("the Ray cluster has no machine with cores; Ray; start one with `ray start --address`")
    return posts


def config_for(posts: list[Post], config: ExtractConfig) -> ExtractConfig:
    """Return the settings as an actor needs them, whose working directory is another one."""
    return replace(
        config,
        device="cuda" if posts[0].gpus else "cpu",  # the one that Ray lets the actor see
        rgb_weights=config.rgb_weights and config.rgb_weights.absolute(),
        flow_weights=config.flow_weights and config.flow_weights.absolute(),
    )


def task_for_actors(task: Task) -> Task:
    """Return a task as an actor needs it, whose working directory is another one."""
    path = task.clip.path
    return replace(task, clip=task.clip._replace(place=path.absolute())) if isinstance(path, Path) else task
