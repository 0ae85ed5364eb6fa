"""Clips as the heads of a model embed them, for what works on vectors: generalised episodes, confusable classes."""

import torch
from torch import Tensor

from ..cache.errors import UserError
from .generalised import Space
from .heads.base import PrototypeHead
from .model import Branch, Features, Model

ENCODED_AT_ONCE = 512
"""Clips that go through a head together."""


def has_prototypes(model: Model) -> bool:
    """Whether all heads compare queries with mean embeddings of the classes."""
    return all(isinstance(model.head(name), PrototypeHead) for name in model.modalities)


def embed_clips(model: Model, features: Features, clips: Tensor) -> Space:
    """Embed view 0 of some clips by every branch.

    Args:
        model: In evaluation mode.
        features: Of all clips.
        clips: Indices [n].

    Raises:
        UserError: If a head has no vector prototypes, or the features are not the model's.
    """
    model.check(features)
    for name in model.modalities:
        if not isinstance(model.head(name), PrototypeHead):
            raise UserError(
                f"head {model.branch(name).spec.head!r} has no vector prototypes; --generalised puts those of base and "
                "novel classes together; give a run whose head has some, such as amfir or protonet"
            )
    heads = {name: head for name in model.modalities if isinstance(head := model.head(name), PrototypeHead)}
    return Space(
        {name: _embed(model.branch(name), features, clips) for name in heads},
        {name: model.temperatures[name] * head.scale for name, head in heads.items()},
        {name: head.distance for name, head in heads.items()},
    )


@torch.no_grad()
def _embed(branch: Branch, features: Features, clips: Tensor) -> Tensor:
    parts = [branch.head.encode(branch.join(features, rows))[0].cpu() for rows in torch.split(clips, ENCODED_AT_ONCE)]
    return torch.cat(parts)
