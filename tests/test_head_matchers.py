"""Matchers of frame cosines against loops; tuples factorised by slot against tuples written out."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import Head, Inputs, build_head
from amfir.meta.profiles import load_profile

INPUTS = Inputs(frames=4, dim=5)
MASK = torch.tensor([[[1, 1], [0, 1], [1, 1]], [[1, 0], [0, 1], [1, 1]]]).bool()
Matrix = list[list[float]]


def episode() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    return support, torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)


def make(name: str, **settings: object) -> Head:
    head = build_head(name, INPUTS, {"dim": 3, "eps": 0.01, **settings}).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return head.requires_grad_(False)


def embed(head: Head, clip: Tensor, omega: int) -> list[Tensor]:
    """Concatenate the frames of each ordered tuple, then one linear map and LayerNorm."""
    state = head.state_dict()
    rows = []
    for frames in itertools.combinations(range(len(clip)), omega):
        row = state["embedding.fc.weight"] @ torch.cat([clip[t] for t in frames]) + state["embedding.fc.bias"]
        row = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
        rows.append(row * state["embedding.layer_norm.weight"] + state["embedding.layer_norm.bias"])
    return rows


def cosines(query: list[Tensor], support: list[Tensor]) -> Matrix:
    return [[float(x @ y) / (math.hypot(*x.tolist()) * math.hypot(*y.tolist()) + 0.01) for y in support] for x in query]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def best(rows: Matrix) -> float:
    return mean([max(row) for row in rows])


def transposed(rows: Matrix) -> Matrix:
    return [list(row) for row in zip(*rows, strict=True)]


REFERENCES: dict[str, tuple[str, dict[str, object], Callable[[Matrix], float]]] = {
    "mean": ("match-mean", {}, lambda c: mean([mean(row) for row in c])),
    "mean of sums": ("match-mean", {"sums": True}, lambda c: mean([sum(row) for row in c])),
    "max": ("match-max", {}, lambda c: max(max(row) for row in c)),
    "diagonal": ("match-diagonal", {}, lambda c: mean([c[t][t] for t in range(len(c))])),
    "chamfer": ("chamfer", {}, lambda c: (best(c) + best(transposed(c))) / 2),
    "chamfer-query": ("chamfer", {"side": "query"}, best),
    "chamfer-support": ("chamfer", {"side": "support"}, lambda c: best(transposed(c))),
}


def assert_matches(
    head: Head, given: Tensor, mask: Tensor | None, omega: int, of_class: Callable[[list[Tensor], list[Tensor]], float]
) -> None:
    """Compare every logit with `of_class` of a query's embedded frames and those clips of a class that exist."""
    support, query = episode()
    logits = head(given, query, mask)
    factor = float(head.state_dict()["temperature_weight"]) * 10
    for b, q, n in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        clips = [clip for k, clip in enumerate(support[b, n]) if mask is None or mask[b, n, k]]
        wanted = factor * of_class([query[b, q]], clips)
        assert float(logits[b, q, n]) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("omega", [1, 3])
@pytest.mark.parametrize("case", list(REFERENCES))
def test_matchers_are_means_over_clips_of_their_formula(case: str, omega: int) -> None:
    name, settings, formula = REFERENCES[case]
    head = make(name, omega=omega, **settings)

    def of_class(query: list[Tensor], clips: list[Tensor]) -> float:
        return mean([formula(cosines(embed(head, query[0], omega), embed(head, clip, omega))) for clip in clips])

    assert_matches(head, episode()[0], None, omega, of_class)


def test_linear_weighs_every_entry() -> None:
    head = make("match-linear")
    weights = head.state_dict()["linear.weight"].view(4, 4)

    def of_class(query: list[Tensor], clips: list[Tensor]) -> float:
        matrices = [cosines(embed(head, query[0], 1), embed(head, clip, 1)) for clip in clips]
        return mean([float((weights * torch.tensor(c, dtype=torch.float64)).sum()) for c in matrices])

    assert_matches(head, episode()[0], None, 1, of_class)


def test_linear_starts_as_the_mean() -> None:
    support, query = episode()
    linear, average = (build_head(name, INPUTS).double() for name in ("match-linear", "match-mean"))
    torch.testing.assert_close(linear(support, query), average(support, query))


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("side", ["both", "query", "support"])
def test_joint_chamfer_matches_all_clips_of_a_class_as_one(side: str, mask: Tensor | None) -> None:
    head = make("chamfer-joint", side=side, omega=3)
    formula = REFERENCES["chamfer" if side == "both" else f"chamfer-{side}"][2]

    def of_class(query: list[Tensor], clips: list[Tensor]) -> float:
        return formula(cosines(embed(head, query[0], 3), [row for clip in clips for row in embed(head, clip, 3)]))

    support = episode()[0]
    given = support if mask is None else support.where(mask[..., None, None], 1e6)
    assert_matches(head, given, mask, 3, of_class)


def test_paper_profile_keeps_the_original_settings() -> None:
    head = build_head("match-mean", Inputs(4, 5), load_profile("match-mean", "paper").head)
    assert head.state_dict()["embedding.fc.weight"].shape == (1152, 5)
    assert head.config.sums  # type: ignore[union-attr]


def test_an_original_checkpoint_gives_its_logits() -> None:
    source, target = make("match-linear"), make("match-linear")
    names = source.original_names()
    assert set(names) == set(source.state_dict())
    state = {f"module.{names[ours]}": value + 0.1 for ours, value in source.state_dict().items()}
    target.load_original(state)
    for ours, value in target.state_dict().items():
        torch.testing.assert_close(value, state[f"module.{names[ours]}"])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chamfer", {"side": "querry"}, "unknown side 'querry'; did you mean 'query'"),
        ("chamfer", {"omega": 5}, "omega is 5, but clips have 4 frames"),
        ("match-max", {"dim": 0}, "dim is 0; .*; give 1 or more"),
    ],
)
def test_settings_that_make_no_head_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_head(name, INPUTS, settings)
