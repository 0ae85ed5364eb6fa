"""A model: one head a modality, and the belief over them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..cache.errors import UserError
from .belief import Belief
from .episodes import Episodes
from .heads import MAX_FIT_CLIPS, HeadConfig, TemporalHead, fit_head
from .prototypes import class_prototypes, distances, encode_clips
from .temperature import initial_temperature

Features = Mapping[str, Tensor]
"""Modality -> cached features [clips, views, T, D_m], float16 or float32, clips in one order for all modalities."""


class Model(nn.Module):
    """Heads by modality; prototypes are means of their embeddings, distances squared Euclidean times temperature.

    Args:
        heads: Modality -> head; the order is that of every stacked tensor.
        belief: Fitted on these modalities in this order, or None.
    """

    def __init__(self, heads: Mapping[str, TemporalHead], belief: Belief | None = None) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.belief = belief

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self.heads)

    def head(self, modality: str) -> TemporalHead:
        """The head of one modality."""
        head = self.heads[modality]
        assert isinstance(head, TemporalHead)
        return head

    @property
    def temperatures(self) -> dict[str, float]:
        """Modality -> factor of its distances."""
        return {name: self.head(name).temperature for name in self.modalities}

    def set_temperatures(self, temperatures: Mapping[str, float]) -> None:
        """Replace the temperatures."""
        with torch.no_grad():
            for name, value in temperatures.items():
                self.head(name).log_temperature.copy_(torch.tensor(value).log())

    def psi(self, features: Features, episodes: Episodes) -> Tensor:
        """Distances with gradient, [M, B, NQ, N]; every (clip, view) of the batch is encoded once."""
        views = next(iter(features.values())).shape[1]
        support = episodes.support * views + (0 if episodes.support_views is None else episodes.support_views)
        query = (episodes.query * views + (0 if episodes.query_views is None else episodes.query_views)).flatten(1)
        used, positions = torch.unique(torch.cat([support.flatten(), query.flatten()]), return_inverse=True)
        in_support, in_query = positions.split([support.numel(), query.numel()])
        at = in_support.view_as(support), in_query.view_as(query)
        return torch.stack([self._psi(name, features[name].flatten(0, 1)[used], *at) for name in self.modalities])

    def _psi(self, modality: str, clips: Tensor, support: Tensor, query: Tensor) -> Tensor:
        head = self.head(modality)
        embedded = head(clips.to(head.weight.device, torch.float32))
        return distances(embedded[query], class_prototypes(embedded[support])) * head.log_temperature.exp()

    def embed(self, features: Features, clips: Tensor | None = None) -> dict[str, Tensor]:
        """Embed view 0 of every clip, or of the clips with these indices, once: modality -> [clips, d] on the CPU.

        Raises:
            UserError: If the features' modalities or widths are not the model's.
        """
        self.check(features)
        device = next(self.parameters()).device
        return {
            name: encode_clips(features[name], self.head(name), clips=clips, device=device) for name in self.modalities
        }

    def check(self, features: Features) -> None:
        """Refuse features of other modalities or widths.

        Raises:
            UserError: Naming the difference.
        """
        if missing := [name for name in self.modalities if name not in features]:
            raise UserError(f"no features of modality {missing[0]!r}; the model needs {', '.join(self.modalities)}")
        for name in self.modalities:
            head = self.head(name)
            given, known = head.config.pooled_dim(features[name].shape[-1]), head.weight.shape[1]
            if given != known:
                raise UserError(
                    f"features of modality {name!r} are {features[name].shape[-1]} wide; the model was trained on "
                    f"another width; use the cache it was trained on"
                )


def fit_model(
    features: Features, labels: Tensor, class_ids: Sequence[int], config: HeadConfig, generator: torch.Generator
) -> Model:
    """Start a model from the base clips (view 0): `fit_head` for each modality, mean psi between two clips 8.

    Where there are more than `MAX_FIT_CLIPS`, the generator draws so many of them.
    """
    base = torch.nonzero(torch.isin(labels, torch.tensor(list(class_ids)))).flatten()
    if len(base) > MAX_FIT_CLIPS:
        base = base[torch.randperm(len(base), generator=generator)[:MAX_FIT_CLIPS]]
    heads = {}
    for name, values in features.items():
        head = fit_head(values[base, 0], labels[base], config, generator)
        head.eval()
        embedded = encode_clips(values, head, clips=base)
        with torch.no_grad():
            head.log_temperature.fill_(torch.tensor(initial_temperature(distances(embedded, embedded))).log())
        heads[name] = head
    return Model(heads)
