"""Nearest prototypes among very many: one index for all modalities and every query's own weights."""

from .index import PrototypeIndex
from .neighbours import Neighbours
from .posterior import Certainties

__all__ = ["Certainties", "Neighbours", "PrototypeIndex"]
