"""Methods by name: a head, how the modalities come together, how they are taught, how their views are fused."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..cache.errors import UserError, pick
from .active import CRITERIA
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


VARIANTS: dict[str, Mapping[str, Any]] = {
    "no-rd": {"drop_groups": ("rgb",)},
    "no-fd": {"drop_groups": ("flow",)},
    "no-amd": {"strategy": "none"},
    "no-ami": {"fusion": "late"},
    "no-ac": {"criterion": "certainty-relative"},
    "no-rc": {"criterion": "certainty-absolute"},
    "rgb-teacher": {"strategy": "rgb-teacher"},
    "flow-teacher": {"strategy": "flow-teacher"},
    **{name: {"criterion": name} for name in CRITERIA if name != "belief"},
}
"""What may follow a method that distils, after a colon: an arm of the ablations (AMFIR Table 2 and Figure 4, AMFAR
Table 2), or another criterion of ASI's groups. A belief is fitted after training, so it cannot form groups in it."""


def parse_method(name: str) -> Method:
    """The method of that name: a key of `METHODS`, `amfir[HEAD]`, `amfar[HEAD]`, or HEAD with one of `ARRANGEMENTS`.

    A method that distils may be followed by a colon and one of `VARIANTS`: `amfir:no-amd`.

    Raises:
        UserError: If it is unknown; the message names the nearest.
    """
    whole, colon, variant = name.partition(":")
    if colon:
        return _vary(parse_method(whole), name, variant)
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


def _vary(method: Method, name: str, variant: str) -> Method:
    if method.objective.strategy == "none":
        raise UserError(f"{method.name!r} does not distil; method {name!r}; variants are for amfir, amfar and HEAD+ami")
    changes = dict(pick(VARIANTS, variant, "variant"))
    fusion = changes.pop("fusion", method.fusion)
    return replace(method.with_objective(**changes), name=name, fusion=fusion)
