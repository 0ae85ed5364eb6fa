"""Methods by name: a head, how the modalities come together, how they are taught, how their views are fused."""

from dataclasses import dataclass, field, replace

from ..cache.errors import pick
from .heads import HEADS
from .objective import ObjectiveConfig

ALONE = ObjectiveConfig(strategy="none")


@dataclass(frozen=True)
class Arrangement:
    """How a head looks at two modalities, or at one."""

    title: str
    """How tables call it."""
    early: str = ""
    """A key of `early.EARLY` that makes one stream of the modalities; empty: a head for each."""
    objective: ObjectiveConfig = ALONE
    """How the modalities teach each other in meta-training."""
    fusion: str = "posterior-mean"
    """How they are put together at test, a key of `active.FUSIONS`."""
    calibrated: bool = False
    """Whether temperatures and belief are fitted on held-out base classes after training."""


ARRANGEMENTS: dict[str, Arrangement] = {
    "": Arrangement("alone"),
    "-ec": Arrangement("EC", early="ec"),
    "-ea": Arrangement("EA", early="ea"),
    "-lf": Arrangement("LF"),
    "-lf-logit": Arrangement("LF (logits)", fusion="late"),
    "+ami": Arrangement("AMI", objective=ObjectiveConfig(), fusion="ami", calibrated=True),
}
"""What follows a head's name. Nothing: one modality. EC and EA fuse early, by concatenation and co-attention (AMFAR,
Table 1); LF averages posteriors, or logits; `+ami` is AMFIR with that head."""


@dataclass(frozen=True)
class Method:
    """What sets one method apart from another on the same features and episodes."""

    name: str
    """As `parse_method` reads it."""
    head: str
    """A key of `heads.HEADS`."""
    early: str = ""
    """A key of `early.EARLY`; empty: a head for each modality."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """How the modalities teach each other in meta-training."""
    fusion: str = "ami"
    """How they are put together at test, a key of `active.FUSIONS`."""
    calibrated: bool = True
    """Whether temperatures and belief are fitted on held-out base classes after training."""
    single: bool = False
    """Whether it looks at one modality only."""

    def with_objective(self, **changes: object) -> "Method":
        """The method with some settings of its objective changed: an ablation."""
        return replace(self, objective=replace(self.objective, **changes))  # type: ignore[arg-type]


METHODS: dict[str, Method] = {
    "amfar": Method("amfar", "temporal", objective=ObjectiveConfig(criterion="certainty")),
    "amfir": Method("amfir", "temporal"),
    "amefu-net": Method("amefu-net", "amefu-net", early="amefu", objective=ALONE, calibrated=False),
}
"""Methods with a name of their own; `amfar[HEAD]` and `amfir[HEAD]` take another head."""


def parse_method(name: str) -> Method:
    """The method of that name: a key of `METHODS`, `amfir[HEAD]`, `amfar[HEAD]`, or HEAD with one of `ARRANGEMENTS`.

    Raises:
        UserError: If it is unknown; the message names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    outer, bracket, inner = name.partition("[")
    if bracket and outer in ("amfar", "amfir") and inner.endswith("]"):
        pick(HEADS, inner[:-1], "head")
        return replace(METHODS[outer], name=name, head=inner[:-1])
    for suffix, arrangement in sorted(ARRANGEMENTS.items(), key=lambda item: -len(item[0])):
        if name.endswith(suffix) and (head := name.removesuffix(suffix)) in HEADS:
            return Method(
                name,
                head,
                arrangement.early,
                arrangement.objective,
                arrangement.fusion,
                arrangement.calibrated,
                single=not suffix,
            )
    known = [*METHODS, *(head + suffix for suffix in ARRANGEMENTS for head in HEADS)]
    return pick(dict.fromkeys(known, METHODS["amfir"]), name, "method")
