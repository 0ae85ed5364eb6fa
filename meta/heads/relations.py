"""HyRSM's two attentions: of the frames of a clip, and of the clips of an episode.

Original: alibaba-mmai-research/HyRSM (3d88d37), `PreNormattention` with `Attention`, and `MultiHeadAttention`, in
models/base/few_shot.py.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Encoding

INTRA_DROPOUT, ATTENTION_DROPOUT, INTER_DROPOUT = 0.2, 0.1, 0.05
"""Of what frames take from their clip, of the attention between clips, and of what it gives: as in the original."""


class IntraRelation(nn.Module):
    """x + attention(LayerNorm(x)) of the frames of a clip, [n, T, D] -> [n, T, D]."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, frames: Tensor) -> Tensor:
        """Relate the frames of each clip."""
        parts = torch.unflatten(self.qkv(self.norm(frames)), -1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        found = self.out((weights @ value).transpose(1, 2).flatten(2))
        return frames + functional.dropout(found, INTRA_DROPOUT, self.training)


class InterRelation(nn.Module):
    """ReLU(LayerNorm(z + attention(z))) among the clips of a class each and one query, for every query.

    The output map is linear: it is applied to the values of each clip, head by head, not to each attended token.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        width = heads * head_dim
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        self.value = nn.Linear(dim, width, bias=False)
        self.out = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=math.sqrt(2 / (dim + head_dim)))
        nn.init.xavier_normal_(self.out.weight)

    def encode(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [n, H, d] and values after the output map [n, H, D] of clips' mean frames [n, D]."""
        heads = (self.heads, self.head_dim)
        query, key, value = (torch.unflatten(m(means), -1, heads) for m in (self.query, self.key, self.value))
        # [H, n, d] @ [H, d, D]
        mapped = value.transpose(0, 1) @ torch.unflatten(self.out.weight, 1, heads).permute(1, 2, 0)
        return query / math.sqrt(self.head_dim), key, mapped.transpose(0, 1)

    def forward(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Relate clips: (z, queries, keys, values) of [B, M] and [B, Q] clips, mask [B, M] -> [B, Q, M + 1, D].

        The last token is the query's.
        """
        clips, queries = support[0].shape[1], query[0].shape[1]
        weights = self._weights(support, query, mask)
        given = functional.dropout(weights, ATTENTION_DROPOUT, self.training)
        # Of the clips' values [B, M H, D], and of each query's own [B, Q, H, D].
        found = given[..., :-1, :].flatten(3).flatten(1, 2) @ support[3].flatten(1, 2)
        found = found.view(-1, clips + 1, found.shape[-1]).baddbmm_(
            given[..., -1, :].flatten(0, 1), query[3].flatten(0, 1)
        )
        found = functional.dropout(found.add_(self.out.bias), INTER_DROPOUT, self.training)
        found = found.view(-1, queries, clips + 1, found.shape[-1])
        found[:, :, :-1] += support[0][:, None]
        found[:, :, -1] += query[0]
        related: Tensor = self.norm(found)
        return related.relu_()

    def _weights(self, support: Encoding, query: Encoding, mask: Tensor | None) -> Tensor:
        """Weights [B, Q, token, of token, H], tokens = M clips and the query."""
        queries = query[0].shape[1]
        rows, columns = (torch.cat([support[i], query[i]], 1).transpose(1, 2) for i in (1, 2))
        logits = rows @ columns.mT
        clips = logits.shape[-1] - queries
        among = logits[:, :, None, :clips, :clips].expand(-1, -1, queries, -1, -1)
        of_query = logits[:, :, :clips, clips:].permute(0, 1, 3, 2)[..., None]
        own = logits[:, :, clips:, clips:].diagonal(dim1=-2, dim2=-1)[..., None]
        last = torch.cat([logits[:, :, clips:, :clips], own], -1)[..., None, :]
        table = torch.cat([torch.cat([among, of_query], -1), last], -2)
        if mask is not None:
            seen = functional.pad(mask, (0, 1), value=True)
            table = table.masked_fill(~seen[:, None, None, None], -torch.inf)
        return table.softmax(-1).permute(0, 2, 3, 4, 1)
