"""STRM against loops over tokens, frames and tuples in float64, and the original's names."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads.base import Inputs
from amfir.meta.heads.strm import Strm, StrmConfig

T, D, WIDTH = 4, 6, 5


def make(tokens: int = 4, sizes: tuple[int, ...] = (2,), qcs: str = "registered") -> Strm:
    """A head whose every parameter is random; without tokens the pooled variant."""
    torch.manual_seed(0)
    config = StrmConfig(spatial=tokens > 0, cardinalities=sizes, dim=WIDTH, qcs=qcs)
    head = Strm(Inputs(T, D, tokens), config).double().eval()
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return head


def episode(tokens: int = 4, shot: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    frame = (tokens, D) if tokens else (D,)
    return torch.randn(2, 3, shot, T, *frame).double(), torch.randn(2, 2, T, *frame).double()


def original_state(sizes: tuple[int, ...] = (2,), similarity: bool = True) -> dict[str, Tensor]:
    """A state dict with the original's names and shapes."""
    torch.manual_seed(5)
    linears = {"attn_pat.query_proj": (D, D), "attn_pat.key_proj": (D, D), "attn_pat.value_conv": (D, D)}
    linears |= {"attn_pat.Bot_MLP.inp_fc": (D // 2, D), "attn_pat.Bot_MLP.hid_fc": (D // 2, D // 2)}
    linears |= {"attn_pat.Bot_MLP.out_fc": (D, D // 2)}
    for place in ("inp_fc", "out_fc"):
        linears |= {f"fr_enrich.Tok_MLP.{place}": (T, T), f"fr_enrich.Bot_MLP.{place}": (D, D)}
    for head, size in enumerate(sizes):
        linears |= {f"transformers.{head}.{kind}_linear": (WIDTH, size * D) for kind in "kv"}
        if similarity:
            linears[f"new_dist_loss_post_pat.{head}.clsW"] = (D // 2, size * D)
    state = {f"{name}.weight": 0.5 * torch.randn(*shape).double() for name, shape in linears.items()}
    state |= {f"{name}.bias": 0.5 * torch.randn(shape[0]).double() for name, shape in linears.items()}
    for head in range(len(sizes)):
        for norm in ("norm_k", "norm_v"):
            state |= {f"transformers.{head}.{norm}.{kind}": torch.randn(WIDTH).double() for kind in ("weight", "bias")}
        state[f"transformers.{head}.pe.pe"] = torch.zeros(1, 6, D)
    return state | {"attn_pat.gamma": torch.tensor([0.7]).double(), "attn_pat.pe.pe": torch.zeros(1, 24, D)}


def theirs(head: Strm) -> dict[str, Tensor]:
    """Our parameters under the original's names."""
    names = head.original_names()
    for i in range(len(head.similarities)):
        for kind in ("weight", "bias"):
            names[f"similarities.{i}.linear.{kind}"] = f"new_dist_loss_post_pat.{i}.clsW.{kind}"
    return {names[name]: value for name, value in head.named_parameters()}


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def placed(rows: list[Tensor]) -> list[Tensor]:
    angles = [[t / 10000.0 ** (2 * (i // 2) / D) for i in range(D)] for t in range(len(rows))]
    waves = [[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in angles]
    return [x + 0.1 * torch.tensor(wave, dtype=torch.float64) for x, wave in zip(rows, waves, strict=True)]


def patch_level(state: dict[str, Tensor], tokens: list[Tensor]) -> Tensor:
    tokens = placed(tokens)
    done = []
    for x in tokens:
        energies = [linear(state, "attn_pat.query_proj", x) @ linear(state, "attn_pat.key_proj", y) for y in tokens]
        attention = torch.stack(energies).softmax(0)
        values = [a * linear(state, "attn_pat.value_conv", y) for a, y in zip(attention, tokens, strict=True)]
        x = x + state["attn_pat.gamma"] * torch.stack(values).sum(0)
        hidden = linear(state, "attn_pat.Bot_MLP.inp_fc", x).relu()
        hidden = linear(state, "attn_pat.Bot_MLP.hid_fc", hidden).relu()
        done.append(x + linear(state, "attn_pat.Bot_MLP.out_fc", hidden))
    return torch.stack(done).mean(0)


def frame_level(state: dict[str, Tensor], frames: list[Tensor]) -> list[Tensor]:
    x = torch.stack(placed(frames))
    channels = []
    for c in range(D):
        hidden = linear(state, "fr_enrich.Tok_MLP.inp_fc", x[:, c]).relu()
        channels.append(x[:, c] + linear(state, "fr_enrich.Tok_MLP.out_fc", hidden))
    mixed = torch.stack(channels, 1)
    branch = [linear(state, "fr_enrich.Bot_MLP.inp_fc", row).relu() for row in mixed]
    return [row + linear(state, "fr_enrich.Bot_MLP.out_fc", h) for row, h in zip(mixed, branch, strict=True)]


def similarity(state: dict[str, Tensor], name: str, support: list[list[Tensor]], query: list[Tensor]) -> Tensor:
    size = state[f"{name}.weight"].shape[1] // D
    nearest = []
    for chosen in combinations(query, size):
        g = linear(state, name, torch.cat(chosen)).relu()
        others = [linear(state, name, torch.cat(c)).relu() for clip in support for c in combinations(clip, size)]
        nearest.append(min((g - other).square().sum().sqrt() for other in others))
    return -torch.stack(nearest).mean()


def relation(state: dict[str, Tensor], name: str, support: list[list[Tensor]], query: list[Tensor]) -> Tensor:
    size = state[f"{name}.k_linear.weight"].shape[1] // D

    def key(e: Tensor) -> Tensor:
        x = linear(state, f"{name}.k_linear", e)
        normal = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return normal * state[f"{name}.norm_k.weight"] + state[f"{name}.norm_k.bias"]

    others = [torch.cat(chosen) for clip in support for chosen in combinations(placed(clip), size)]
    parts = []
    for chosen in combinations(placed(query), size):
        e = torch.cat(chosen)
        attention = torch.stack([key(e) @ key(o) / math.sqrt(WIDTH) for o in others]).softmax(0)
        values = [a * linear(state, f"{name}.v_linear", o) for a, o in zip(attention, others, strict=True)]
        parts.append((linear(state, f"{name}.v_linear", e) - torch.stack(values).sum(0)).square().sum())
    return -torch.stack(parts).mean()


def obvious(
    state: dict[str, Tensor], support: list[list[Tensor]], query: Tensor, sizes: int = 1
) -> tuple[Tensor, Tensor]:
    """One query's logits of TRX and of the similarity, each [N]."""

    def frames(clip: Tensor) -> list[Tensor]:
        return [patch_level(state, list(frame)) for frame in clip] if clip.dim() == 3 else list(clip)

    asked = frames(query)
    classes = [[frames(clip) for clip in clips] for clips in support]
    similar = [
        torch.stack([similarity(state, f"new_dist_loss_post_pat.{i}.clsW", c, asked) for i in range(sizes)]).mean()
        for c in classes
    ]
    asked = frame_level(state, asked)
    classes = [[frame_level(state, clip) for clip in clips] for clips in classes]
    related = [
        torch.stack([relation(state, f"transformers.{i}", c, asked) for i in range(sizes)]).mean() for c in classes
    ]
    return torch.stack(related), torch.stack(similar)


def both(head: Strm, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """The formula's two logits of every query, [B, Q, N]."""
    state = theirs(head)
    parts = [obvious(state, [list(c) for c in s], q) for s, qs in zip(support, query, strict=True) for q in qs]
    related, similar = (torch.stack(part).view(*query.shape[:2], -1) for part in zip(*parts, strict=True))
    return related, similar


@pytest.mark.parametrize("tokens", [4, 0])
@pytest.mark.parametrize("qcs", ["registered", "frozen_random"])
def test_logits_are_the_formulas(tokens: int, qcs: str) -> None:
    head = make(tokens, qcs=qcs)
    support, query = episode(tokens)
    related, similar = both(head, support, query)
    torch.testing.assert_close(head(support, query), related + 0.1 * similar)


def test_the_loss_is_that_of_both_logits_apart() -> None:
    head = make()
    support, query = episode()
    labels = torch.tensor([[0, 2], [1, 1]])
    encoded = tuple(torch.unflatten(part, 0, (2, 3, 2)) for part in head.encode(support.flatten(0, 2)))
    asked = tuple(torch.unflatten(part, 0, (2, 2)) for part in head.encode(query.flatten(0, 1)))
    logits, losses = head.learn(encoded, asked, labels)
    related, similar = both(head, support, query)
    torch.testing.assert_close(logits, related + 0.1 * similar)
    for b in range(2):
        for q in range(2):
            right = int(labels[b, q])
            costs = [part[b, q].logsumexp(0) - part[b, q, right] for part in (related, similar)]
            torch.testing.assert_close(losses[b, q], costs[0] + 0.1 * costs[1])


@pytest.mark.parametrize("distributed", [("",), ("attn_pat.", "fr_enrich.")], ids=["whole", "parts"])
def test_an_original_checkpoint_gives_the_formulas_logits(distributed: tuple[str, ...]) -> None:
    # The original's scripts train on 4 GPUs, where it wraps these two parts, not the whole, in DataParallel.
    state = original_state((2, 3))
    head = make(sizes=(2, 3))
    given = {}
    for name, value in state.items():
        part = next((part for part in distributed if name.startswith(part)), None)
        given[name if part is None else f"{part}module.{name.removeprefix(part)}"] = value
    assert given.keys() != state.keys()
    head.load_original(given)
    support, query = episode(shot=1)
    related, similar = obvious(state, [list(clips) for clips in support[0]], query[0, 1], sizes=2)
    torch.testing.assert_close(head(support, query)[0, 1], related + 0.1 * similar)


def test_a_released_checkpoint_leaves_the_frozen_similarity_alone() -> None:
    released = original_state(similarity=False)
    frozen = make(qcs="frozen_random")
    before = frozen.similarities[0].linear.weight.clone()
    frozen.load_original(released)
    torch.testing.assert_close(frozen.similarities[0].linear.weight, before)
    torch.testing.assert_close(frozen.patches.gamma.item(), 0.7)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"no 'new_dist_loss_post_pat\.0\.clsW"):
        make().load_original(released)


def test_only_registered_similarities_are_trained() -> None:
    support, query = episode()
    for qcs, trained in (("registered", True), ("frozen_random", False)):
        head = make(qcs=qcs)
        head(support, query).sum().backward()
        assert (head.similarities[0].linear.weight.grad is not None) == trained
    with pytest.raises(UserError, match="qcs"):
        make(qcs="trained")


def test_an_absent_clip_is_as_if_it_had_never_been() -> None:
    head = make()
    support, query = episode(shot=3)
    mask = torch.tensor([[[1, 1, 1], [0, 1, 0], [1, 0, 1]]] * 2, dtype=torch.bool)
    state = theirs(head)
    expected = []
    for b in range(2):
        present = [list(clips[held]) for clips, held in zip(support[b], mask[b], strict=True)]
        expected.append([obvious(state, present, q) for q in query[b]])
    logits = head(support.where(mask[..., None, None, None], torch.nan), query, mask)
    sums = [torch.stack([related + 0.1 * similar for related, similar in row]) for row in expected]
    torch.testing.assert_close(logits, torch.stack(sums))


def test_gradients_are_those_of_the_formula() -> None:
    head = make(sizes=(2,))
    support, query = (clips[:1].requires_grad_() for clips in episode())
    weights = torch.randn(1, 2, 3).double()
    ours = torch.autograd.grad((head(support, query) * weights).sum(), [support, query])
    related, similar = both(head, support, query)
    formulas = torch.autograd.grad(((related + 0.1 * similar) * weights).sum(), [support, query])
    torch.testing.assert_close(ours, formulas)


def test_gradients_are_those_of_finite_differences() -> None:
    head = make(tokens=0)
    support, query = (clips[:1, :2].requires_grad_() for clips in episode(tokens=0))
    assert torch.autograd.gradcheck(lambda s, q: head(s, q), (support, query))


def test_a_larger_grid_is_pooled_by_its_maxima() -> None:
    head = Strm(Inputs(2, D, 49), StrmConfig(dim=WIDTH)).double().eval()
    small = Strm(Inputs(2, D, 16), StrmConfig(dim=WIDTH)).double().eval()
    small.load_state_dict(head.state_dict())
    clips = torch.randn(1, 2, 49, D).double()
    pooled = torch.zeros(1, 2, 16, D).double()
    # Windows of adaptive pooling: from floor(7 i / 4) up to ceil(7 (i + 1) / 4).
    windows = [range(7 * i // 4, -(-7 * (i + 1) // 4)) for i in range(4)]
    for i, rows in enumerate(windows):
        for j, columns in enumerate(windows):
            inside = [7 * r + c for r in rows for c in columns]
            pooled[:, :, 4 * i + j] = clips[:, :, inside].max(2).values
    for ours, expected in zip(head.encode(clips), small.encode(pooled), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_full_head_wants_a_square_grid_of_tokens() -> None:
    with pytest.raises(UserError, match="needs spatial tokens"):
        Strm(Inputs(T, D), StrmConfig())
    with pytest.raises(UserError, match="square grid"):
        Strm(Inputs(T, D, 10), StrmConfig())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_identical_clips_have_finite_gradients(scale: float) -> None:
    head = make().float()
    clip = scale * torch.randn(T, 4, D)
    support = clip.expand(1, 3, 2, T, 4, D).clone().requires_grad_()
    logits = head(support, clip.expand(1, 2, T, 4, D))
    torch.testing.assert_close(logits, logits[:, :, :1].expand_as(logits))
    logits.sum().backward()
    assert support.grad is not None
    assert support.grad.isfinite().all()


def test_the_soft_start_leaves_pooled_frames_as_trx_has_them() -> None:
    torch.manual_seed(0)
    head = Strm(Inputs(T, D), StrmConfig(spatial=False, dim=WIDTH)).eval()
    clips = torch.randn(2, T, D)
    torch.testing.assert_close(head.frames(clips), clips + head.frames.positions.table)
