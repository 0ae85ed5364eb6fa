"""Methods by name: how heads are taught and how their views are fused."""

from dataclasses import dataclass, replace

from ..cache.errors import pick
from .objective import ObjectiveConfig


@dataclass(frozen=True)
class Method:
    """What sets one method apart from another on the same features and episodes."""

    name: str
    """A key of `METHODS`."""
    objective: ObjectiveConfig
    """How the modalities teach each other in meta-training."""
    fusion: str
    """How they are put together at test, a key of `active.FUSIONS`."""

    def with_objective(self, **changes: object) -> "Method":
        """The method with some settings of its objective changed: an ablation."""
        return replace(self, objective=replace(self.objective, **changes))  # type: ignore[arg-type]


METHODS: dict[str, Method] = {
    "protonet-lf": Method("protonet-lf", ObjectiveConfig(strategy="none"), "late"),
    "amfar": Method("amfar", ObjectiveConfig(criterion="certainty"), "ami"),
    "amfir": Method("amfir", ObjectiveConfig(criterion="free-energy"), "ami"),
}
"""`protonet-lf` trains each modality by itself and adds their distances; AMFAR and AMFIR distil and fuse adaptively."""


def load_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: If it is unknown; the message names the nearest.
    """
    return pick(METHODS, name, "method")
