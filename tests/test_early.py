"""Early fusions against loops and numpy, written from their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.meta.early import EARLY, CoAttention, CoAttentionConfig, Concat, ConcatConfig, Fusion, Guide, GuideConfig
from amfir.meta.early import build_early as build

pytestmark = pytest.mark.usefixtures("one_thread")

CLIPS, FRAMES, TOKENS = 3, 4, 2
CONFIGS = {
    "ec": ConcatConfig(),
    "ec-plain": ConcatConfig(project=False),
    "ea": CoAttentionConfig(heads=2),
    "amefu": GuideConfig(),
    "amefu-time": GuideConfig(in_axis="time", zero_start=False),
}
BY_NAME = pytest.mark.parametrize("name", CONFIGS)
BY_DIMS = pytest.mark.parametrize("dims", [(6, 6), (6, 5), (3, 8)])


def fusion(name: str, dims: tuple[int, int], dim: int = 4) -> Fusion:
    """A fusion whose parameters are all away from their start."""
    built = build(name.partition("-")[0], dims, dim, CONFIGS[name]).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return built


def streams(dims: tuple[int, int], tokens: int = 0, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (CLIPS, FRAMES, tokens) if tokens else (CLIPS, FRAMES)
    left, right = (torch.randn(*shape, width, generator=generator, dtype=torch.float64) for width in dims)
    return left, right


def array(tensor: Tensor) -> np.ndarray:
    result: np.ndarray = tensor.detach().numpy()
    return result


def apply(linear: nn.Module, x: np.ndarray) -> np.ndarray:
    if isinstance(linear, nn.Identity):
        return x
    assert isinstance(linear, nn.Linear)
    result: np.ndarray = array(linear.weight) @ x + array(linear.bias)
    return result


def layer_norm(norm: nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(norm, nn.LayerNorm)
    result: np.ndarray = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * array(norm.weight) + array(norm.bias)
    return result


# --- EC -------------------------------------------------------------------------------------------------------------


@BY_DIMS
def test_concat_equals_a_loop_over_frames(dims: tuple[int, int]) -> None:
    ec, (left, right) = fusion("ec", dims), streams(dims)
    assert isinstance(ec, Concat)
    fused = array(ec(left, right))
    for n, t in np.ndindex(CLIPS, FRAMES):
        both = [layer_norm(ec.norms[0], array(left[n, t])), layer_norm(ec.norms[1], array(right[n, t]))]
        np.testing.assert_allclose(fused[n, t], apply(ec.linear, np.concatenate(both)), rtol=1e-9)


def test_plain_concat_is_the_concatenation() -> None:
    left, right = streams((3, 2))
    plain = build("ec", (3, 2), 99, ConcatConfig(project=False))
    assert not list(plain.parameters())
    assert torch.equal(plain(left, right), torch.cat([left, right], -1))


def test_concat_takes_more_than_two_streams() -> None:
    left, right = streams((3, 2))
    assert build("ec", (3, 2, 3), 4).double()(left, right, left).shape == (CLIPS, FRAMES, 4)


def test_concat_starts_with_the_distances_of_the_concatenation() -> None:
    left, right = streams((3, 4))
    ec = build("ec", (3, 4), 7).double()
    assert isinstance(ec, Concat)
    both = torch.cat([ec.norms[0](left), ec.norms[1](right)], -1).flatten(0, 1)
    torch.testing.assert_close(torch.cdist(*[ec(left, right).flatten(0, 1)] * 2), torch.cdist(both, both))


# --- EA -------------------------------------------------------------------------------------------------------------


def attend(attention: nn.Module, query: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Multi-head attention of one clip, [T, W] and [T, W] -> [T, W], query frame by query frame, head by head."""
    assert isinstance(attention, nn.MultiheadAttention)
    width, heads = query.shape[1], attention.num_heads
    weights = array(attention.in_proj_weight).reshape(3, heads, width // heads, width)
    biases = array(attention.in_proj_bias).reshape(3, heads, width // heads)
    rows = []
    for frame in query:
        heard = []
        for h in range(heads):
            q = weights[0, h] @ frame + biases[0, h]
            keys = [weights[1, h] @ y + biases[1, h] for y in other]
            values = [weights[2, h] @ y + biases[2, h] for y in other]
            scores = np.array([math.exp(q @ key / math.sqrt(width // heads)) for key in keys])
            heard.append(sum(s / scores.sum() * v for s, v in zip(scores, values, strict=True)))
        rows.append(apply(attention.out_proj, np.concatenate(heard)))
    return np.stack(rows)


@pytest.mark.parametrize("tokens", [0, TOKENS])
@BY_DIMS
def test_co_attention_equals_a_loop(dims: tuple[int, int], tokens: int) -> None:
    ea, (left, right) = fusion("ea", dims), streams(dims, tokens)
    assert isinstance(ea, CoAttention)
    fused = array(ea(left, right)).reshape(CLIPS, FRAMES, -1, 4)
    left, right = (x.view(CLIPS, FRAMES, -1, x.shape[-1]) for x in (left, right))
    for n, p in np.ndindex(CLIPS, max(tokens, 1)):
        r, f = (
            np.stack([apply(m, frame) for frame in array(x[n, :, p])])
            for m, x in zip(ea.maps, (left, right), strict=True)
        )
        r_out, f_out = r + attend(ea.attention[0], r, f), f + attend(ea.attention[1], f, r)
        for t in range(FRAMES):
            both = [layer_norm(ea.norms[0], r_out[t]), layer_norm(ea.norms[1], f_out[t])]
            np.testing.assert_allclose(fused[n, t, p], apply(ea.linear, np.concatenate(both)), rtol=1e-9)


def test_co_attention_starts_near_the_streams_themselves() -> None:
    left, right = streams((6, 6))
    ea = build("ea", (6, 6), 12, CoAttentionConfig(heads=2)).double()
    assert isinstance(ea, CoAttention)
    assert all(isinstance(m, nn.Identity) for m in ea.maps)
    alone = ea.linear(torch.cat([ea.norms[0](left), ea.norms[1](right)], -1))
    share = (ea(left, right) - alone).norm() / alone.norm()
    assert 0.001 < share < 0.2


@pytest.mark.parametrize("heads", [0, 4])
def test_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    with pytest.raises(UserError, match=f"^heads is {heads}; fusion 'ea'; give a divisor of the attention's width, 6$"):
        build("ea", (6, 6), 8, CoAttentionConfig(heads=heads))


# --- DGAdaIN --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, TOKENS])
@pytest.mark.parametrize("axis", ["feature", "time"])
@BY_DIMS
def test_guide_equals_the_formula_in_numpy(dims: tuple[int, int], axis: str, tokens: int) -> None:
    torch.manual_seed(0)
    guide = Guide(dims, 4, GuideConfig(in_axis=axis, zero_start=False)).double()
    x, w = (array(s) for s in streams(dims, tokens))
    over = -1 if axis == "feature" else 1
    normalised = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + 1e-5)
    scale = w @ array(guide.affine_scale.weight).T + array(guide.affine_scale.bias)
    bias = w @ array(guide.affine_bias.weight).T + array(guide.affine_bias.bias)
    fused = array(guide(*streams(dims, tokens)))
    np.testing.assert_allclose(fused, normalised * (1 + scale) + bias, rtol=1e-9, atol=1e-9)


def test_guide_normalises_as_the_layer_of_the_original_does() -> None:
    left, right = streams((6, 5))
    guide = build("amefu", (6, 5), 4).double()
    torch.testing.assert_close(guide(left, right), nn.InstanceNorm1d(FRAMES)(left))
    over_time = build("amefu", (6, 5), 4, GuideConfig(in_axis="time")).double()
    torch.testing.assert_close(over_time(left, right), nn.InstanceNorm1d(6)(left.mT).mT)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(UserError, match=r"^in_axis is 'space'; fusion 'amefu'; known: feature, time$"):
        GuideConfig(in_axis="space")


# --- all of them ----------------------------------------------------------------------------------------------------


@BY_NAME
@BY_DIMS
@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_shapes(name: str, dims: tuple[int, int], tokens: int) -> None:
    built, given = fusion(name, dims), streams(dims, tokens)
    fused = built(*given)
    assert fused.shape == (*given[0].shape[:-1], built.out_dim)
    assert built.out_dim == {"ec": 4, "ec-plain": sum(dims), "ea": 4}.get(name, dims[0])


@BY_NAME
def test_tokens_are_fused_position_by_position(name: str) -> None:
    built, (left, right) = fusion(name, (6, 5)), streams((6, 5), TOKENS)
    fused = built(left, right)
    for p in range(TOKENS):
        torch.testing.assert_close(fused[:, :, p], built(left[:, :, p], right[:, :, p]))


@BY_NAME
def test_clips_are_fused_one_by_one(name: str) -> None:
    built, (left, right) = fusion(name, (6, 5)), streams((6, 5))
    torch.testing.assert_close(built(left, right)[1:2], built(left[1:2], right[1:2]))


@BY_NAME
def test_gradients_are_right(name: str) -> None:
    built, given = fusion(name, (4, 3)), streams((4, 3))
    inputs = [stream[:1].detach().requires_grad_() for stream in given]
    assert torch.autograd.gradcheck(built, inputs)


@BY_NAME
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_degenerate_streams_give_finite_features_and_gradients(name: str, scale: float) -> None:
    built = fusion(name, (6, 5)).float()
    left, right = (torch.ones_like(stream).float() * scale for stream in streams((6, 5)))
    fused = built(left.requires_grad_(), right)
    fused.square().sum().backward()
    assert left.grad is not None
    tensors = [fused, left.grad, *(p.grad for p in built.parameters() if p.grad is not None)]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.parametrize("name", EARLY)
def test_equal_seeds_give_equal_parameters_and_leave_the_global_state_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    config = GuideConfig(zero_start=False) if name == "amefu" else None
    one, same, other = (build(name, (8, 6), 8, config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@BY_NAME
def test_streams_of_other_shapes_are_refused_in_one_line(name: str) -> None:
    built = fusion(name, (6, 5))
    left, right = streams((6, 5), TOKENS)
    for wrong, given in ((right[:, :, :1], "4 x 2 and 4 x 1"), (right[:, :3], "4 x 2 and 3 x 2"), (right[:, :, 0], "")):
        with pytest.raises(UserError, match=f"^streams of {given}.* frames .x tokens.; early fusion; extract both .*$"):
            built(left, wrong)


@pytest.mark.parametrize("name", ["ea", "amefu"])
@pytest.mark.parametrize("dims", [(6,), (6, 5, 4)])
def test_fusions_of_two_refuse_other_numbers_of_streams(name: str, dims: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"^{len(dims)} streams; fusion '{name}'; it takes two, such as rgb and flow$"):
        build(name, dims, 4)


def test_an_unknown_fusion_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^unknown early fusion 'amefu-net'; did you mean 'amefu'\?"):
        build("amefu-net", (6, 5), 4)
