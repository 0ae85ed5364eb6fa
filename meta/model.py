"""A model: its branches, each a head on one modality or on several that were made one stream, and the belief."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.errors import UserError
from .belief import Belief
from .early import EARLY, Fusion, build_early
from .episodes import Episodes
from .heads import HEADS, Encoding, Head, Inputs, build_head, head_config, read_config
from .heads.base import cross_entropy
from .methods import Method
from .profiles import Profile
from .projection import Projection
from .prototypes import Scorer, distances
from .scorers import HeadScorer, ModelScorer
from .temperature import initial_temperature

Features = Mapping[str, Tensor]
"""Modality -> cached features [clips, views, T, D_m] ([clips, views, T, P, D_m] with tokens), float16 or float32, clips
in one order for all modalities."""

MAX_FIT_CLIPS = 2048
"""Base clips that a head's start is computed from; more change little and cost a larger decomposition."""


@dataclass(frozen=True)
class BranchSpec:
    """All that a branch is built from."""

    modalities: tuple[str, ...]
    """The streams it looks at."""
    widths: tuple[int, ...]
    """Width of the features of each."""
    head: str
    """A key of `HEADS`."""
    inputs: Inputs
    """What the head is built for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The head's hyperparameters, all but those that its name settles."""
    early: str = ""
    """A key of `EARLY` that makes the modalities one stream; empty where there is one."""
    early_settings: Mapping[str, Any] = field(default_factory=dict)
    """Its hyperparameters."""

    @property
    def name(self) -> str:
        """The modality, or the modalities joined by "+"."""
        return "+".join(self.modalities)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "BranchSpec":
        """The inverse of `dataclasses.asdict` and JSON."""
        return cls(
            tuple(data["modalities"]),
            tuple(data["widths"]),
            data["head"],
            Inputs(**data["inputs"]),
            data["settings"],
            data["early"],
            data["early_settings"],
        )

    def build_early(self, seed: int = 0) -> Fusion | None:
        """The early fusion with fresh parameters, if there is one.

        Raises:
            UserError: If a setting is unknown or of the wrong kind, or the fusion does not take these streams.
        """
        if not self.early:
            return None
        config = read_config(EARLY[self.early].config_type, self.early_settings, "early")
        return build_early(self.early, self.widths, max(self.widths), config, seed=seed)


class Branch(nn.Module):
    """A head, what comes before it, and the factor of its logits.

    Args:
        spec: What to build.
        seed: Of the parameters.

    Raises:
        UserError: If a name or setting is unknown, or the head needs spatial tokens and there are none.
    """

    def __init__(self, spec: BranchSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.early = spec.build_early(seed)
        self.head = build_head(spec.head, spec.inputs, spec.settings, seed=seed)
        self.log_temperature = nn.Parameter(torch.zeros(()), requires_grad=self.head.learns_temperature)

    def join(self, features: Features, rows: Tensor, view: int = 0) -> Tensor:
        """The stream the head sees, of some clips: [n, T, D] float32 on the branch's device."""
        return self._join([features[name][rows, view] for name in self.spec.modalities])

    def encode(self, features: Features, rows: Tensor) -> Encoding:
        """Encode stored views; rows [n] = clip * views + view."""
        return self._encode(self._join([features[name].flatten(0, 1)[rows] for name in self.spec.modalities]))

    def _join(self, streams: Sequence[Tensor]) -> Tensor:
        device = self.log_temperature.device
        ready = [stream.to(device, torch.float32) for stream in streams]
        joined: Tensor = ready[0] if self.early is None else self.early(*ready)
        return joined

    def _encode(self, clips: Tensor) -> Encoding:
        return self.head.encode(clips)

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Psi [B, NQ, N] = - logits * temperature, and queries' losses [B, NQ]; arguments as `Head.learn` has them."""
        logits, losses = self.head.learn(support, query, labels, classes)
        if self.head.learns_temperature:
            logits = logits * self.log_temperature.exp()
            losses = cross_entropy(logits, labels)
        return -logits, losses


class Model(nn.Module):
    """Branches by name, and what belongs to all of them.

    Args:
        branches: In the order of every stacked tensor.
        belief: Fitted on these branches in this order, or None.
        projections: Modality -> what the cached features go through first; not applied here (see `projection`).
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        belief: Belief | None = None,
        projections: Mapping[str, Projection] | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({branch.spec.name: branch for branch in branches})
        self.belief = belief
        self.projections = dict(projections or {})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the branches in order: modalities, or several joined by "+"."""
        return tuple(self.branches)

    @property
    def streams(self) -> tuple[str, ...]:
        """Modalities that the branches look at."""
        return tuple(dict.fromkeys(name for branch in self._all() for name in branch.spec.modalities))

    def branch(self, name: str) -> Branch:
        """One branch."""
        branch = self.branches[name]
        assert isinstance(branch, Branch)
        return branch

    def head(self, name: str) -> Head:
        """The head of one branch."""
        return self.branch(name).head

    def _all(self) -> list[Branch]:
        return [self.branch(name) for name in self.branches]

    @property
    def temperatures(self) -> dict[str, float]:
        """Branch -> factor of its distances."""
        return {name: self.branch(name).log_temperature.exp().item() for name in self.modalities}

    def set_temperatures(self, temperatures: Mapping[str, float]) -> None:
        """Replace the temperatures."""
        with torch.no_grad():
            for name, value in temperatures.items():
                self.branch(name).log_temperature.copy_(torch.tensor(value).log())

    def penalty(self) -> Tensor:
        """What the training loss adds for the parameters alone, scalar."""
        return torch.stack([branch.head.penalty() for branch in self._all()]).sum()

    def learn(
        self, features: Features, episodes: Episodes, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Distances and losses of a training batch; every (clip, view) of it is encoded once.

        Args:
            features: Of all clips.
            episodes: Clip indices and views.
            labels: Positions of the queries' classes, [NQ].
            classes: Which base class each of an episode's classes is, [B, N].

        Returns:
            psi [M, B, NQ, N] and losses [M, B, NQ], with gradient.
        """
        views = next(iter(features.values())).shape[1]
        support = episodes.support * views + (0 if episodes.support_views is None else episodes.support_views)
        query = (episodes.query * views + (0 if episodes.query_views is None else episodes.query_views)).flatten(1)
        used, positions = torch.unique(torch.cat([support.flatten(), query.flatten()]), return_inverse=True)
        in_support, in_query = positions.split([support.numel(), query.numel()])
        at = in_support.view_as(support), in_query.view_as(query)
        parts = []
        for branch in self._all():
            encoding = branch.encode(features, used)
            sides = [tuple(part[index] for part in encoding) for index in at]
            parts.append(branch.learn(sides[0], sides[1], labels.expand(query.shape), classes))
        return torch.stack([psi for psi, _ in parts]), torch.stack([losses for _, losses in parts])

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers that the heads hold at their peak for one episode, roughly."""
        return max(branch.head.footprint(way, shot, queries) for branch in self._all())

    def scorer(self, features: Features, clips: Tensor | None = None) -> Scorer:
        """Score episodes of view 0 of all clips, or of the clips with these indices, numbered by their place there.

        Raises:
            UserError: If the features' modalities or shapes are not the model's.
        """
        self.check(features)
        wanted = torch.arange(len(next(iter(features.values())))) if clips is None else clips
        return ModelScorer({branch.spec.name: _head_scorer(branch, features, wanted) for branch in self._all()})

    def check(self, features: Features) -> None:
        """Refuse features of other modalities or shapes.

        Raises:
            UserError: Naming the difference.
        """
        if missing := [name for name in self.streams if name not in features]:
            raise UserError(f"no features of modality {missing[0]!r}; the model needs {', '.join(self.streams)}")
        for branch in self._all():
            for name, width in zip(branch.spec.modalities, branch.spec.widths, strict=True):
                if features[name].shape[-1] != width:
                    raise UserError(
                        f"features of modality {name!r} are {features[name].shape[-1]} wide; the model was trained on "
                        f"width {width}; use the cache it was trained on"
                    )
                inputs, shape = branch.spec.inputs, features[name].shape[2:-1]
                if shape != ((inputs.frames, inputs.tokens) if inputs.tokens else (inputs.frames,)):
                    raise UserError(
                        f"features of modality {name!r} have {_frames(*shape)}; the model was trained on "
                        f"{_frames(inputs.frames, inputs.tokens)}; use the cache it was trained on"
                    )


def _frames(frames: int, tokens: int = 0) -> str:
    return f"{frames} frames of {tokens} tokens" if tokens else f"{frames} frames"


@torch.no_grad()
def _head_scorer(branch: Branch, features: Features, clips: Tensor, chunk: int = 512) -> HeadScorer:
    if branch.early is None:
        stream = features[branch.spec.name][clips, 0]
    else:
        stream = torch.cat([branch.join(features, rows).cpu() for rows in torch.split(clips, chunk)])
    scale = branch.log_temperature.exp().item()
    return HeadScorer(branch.head, stream, scale=scale, device=branch.log_temperature.device)


def build_model(
    features: Features,
    labels: Tensor,
    class_ids: Sequence[int],
    method: Method,
    profile: Profile,
    generator: torch.Generator,
    seed: int = 0,
) -> Model:
    """A model at its start: fresh parameters, then what the heads read from the base clips (view 0).

    Args:
        features: Of all clips; their modalities are the model's.
        labels: Class ids [clips].
        class_ids: Base classes.
        method: What to build.
        profile: Hyperparameters of heads and early fusion.
        generator: Draws base clips where there are more than `MAX_FIT_CLIPS`, and what heads need for their start.
        seed: Of the parameters.

    Raises:
        UserError: If the method does not fit the modalities, or the settings the head.
    """
    base = torch.nonzero(torch.isin(labels, torch.tensor(list(class_ids)))).flatten()
    if len(base) > MAX_FIT_CLIPS:
        base = base[torch.randperm(len(base), generator=generator)[:MAX_FIT_CLIPS]]
    branches = [Branch(spec, seed) for spec in branch_specs(features, method, profile, len(class_ids))]
    for branch in branches:
        _start(branch.eval(), features, labels, base, generator)
    return Model(branches)


def branch_specs(features: Features, method: Method, profile: Profile, num_classes: int) -> list[BranchSpec]:
    """What a method builds on these modalities: one branch each, or one for all.

    Raises:
        UserError: If the method looks at one modality and there are more, or needs two, or a setting is unknown.
    """
    names = list(features)
    if method.single and len(names) > 1:
        raise UserError(
            f"method {method.name!r} looks at one modality and there are {', '.join(names)}; "
            f"give --streams {names[0]}, or fuse them: {method.name}-lf, {method.name}+ami"
        )
    if method.early and len(names) != 2:
        raise UserError(f"method {method.name!r} fuses two modalities; there are {len(names)}; give --streams rgb,flow")
    groups = [names] if method.early else [[name] for name in names]
    return [_spec(features, group, method, profile, num_classes) for group in groups]


def _spec(features: Features, names: Sequence[str], method: Method, profile: Profile, num_classes: int) -> BranchSpec:
    shapes = [features[name].shape[2:] for name in names]
    settled = HEADS[method.head].settings
    config = asdict(head_config(method.head, profile.head))
    spec = BranchSpec(
        tuple(names),
        tuple(shape[-1] for shape in shapes),
        method.head,
        Inputs(shapes[0][0], shapes[0][-1], shapes[0][1] if len(shapes[0]) == 3 else 0, num_classes),
        {key: value for key, value in config.items() if key not in settled},
        method.early,
        dict(profile.early) if method.early else {},
    )
    early = spec.build_early()
    return spec if early is None else replace(spec, inputs=replace(spec.inputs, dim=early.out_dim))


@torch.no_grad()
def _start(branch: Branch, features: Features, labels: Tensor, base: Tensor, generator: torch.Generator) -> None:
    """Let the head read the base clips; a learnt temperature starts where mean psi between two clips is 8."""
    clips = branch.join(features, base)
    branch.head.start(clips, labels[base], generator)
    if branch.head.learns_temperature:
        embedded = branch.head.encode(clips)[0]
        branch.log_temperature.fill_(torch.tensor(initial_temperature(distances(embedded, embedded))).log())
