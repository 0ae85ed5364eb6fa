"""Clips as the heads of a model embed them, for what works on vectors: generalised episodes, hard classes, search."""

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


def prototype_heads(model: Model) -> dict[str, PrototypeHead]:
    """Branch -> its head.

    Raises:
        UserError: If a head has no vector prototypes.
    """
    heads: dict[str, PrototypeHead] = {}
    for name in model.modalities:
        head = model.head(name)
        if not isinstance(head, PrototypeHead):
            raise UserError(
                f"head {model.branch(name).spec.head!r} has no vector prototypes; --generalised puts those of base and "
                "novel classes together, amfir search compares clips with them; give a run whose head has some, such "
                "as amfir or protonet"
            )
        heads[name] = head
    return heads


def distance_factors(model: Model) -> dict[str, float]:
    """Branch -> tau, the factor of its distances; raises as `prototype_heads` does."""
    return {name: model.temperatures[name] * head.scale for name, head in prototype_heads(model).items()}


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
    heads = prototype_heads(model)
    return Space(
        {name: _embed(model.branch(name), features, clips) for name in heads},
        distance_factors(model),
        {name: head.distance for name, head in heads.items()},
    )


@torch.no_grad()
def _embed(branch: Branch, features: Features, clips: Tensor) -> Tensor:
    parts = [branch.head.encode(branch.join(features, rows))[0].cpu() for rows in torch.split(clips, ENCODED_AT_ONCE)]
    return torch.cat(parts)
