# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton takes annotations of a kernel's arguments for its own types: only compile-time constants have one.)
"""Triton kernels of Farneback flow: the arithmetic of `stages`, operation by operation, on tiles of pixels.

Every sum is taken in the order of the eager version, so the bits are the same, provided that the kernels are compiled
without contracting a multiplication and an addition into one rounding (`enable_fp_fusion=False`).

A program works on one tile of one image. Programs at the right and lower edge clamp the coordinates that lie outside
instead of masking their loads; only the stores are masked. Offsets inside an image's planes are 32-bit, the offset of
the image itself is 64-bit.

Letters in shapes: F frames, N pairs of successive frames, H x W the full size, h x w the size of a level.
"""

import triton
import triton.language as tl

TILE: tl.constexpr = tl.constexpr(32)
"""Rows and columns of a tile: a row is a warp's width, and the rows of a vertical window mostly share an L1 cache."""


@triton.jit
def blur(frames, taps, out, height, width, radius: tl.constexpr):
    """Blur `[F, H, W]` (uint8 or float32) along x, then y: `[F, H, W]`. For few taps: rows are blurred repeatedly."""
    image, y, x, inside = _tile(height, width)
    frames += image * height * width
    total = _blurred_along_x(frames, y, x, width, taps, radius) * tl.load(taps)
    for k in range(1, radius + 1):
        above = _blurred_along_x(frames, _reflect(y - k, height), x, width, taps, radius)
        below = _blurred_along_x(frames, _reflect(y + k, height), x, width, taps, radius)
        total += (above + below) * tl.load(taps + k)
    tl.store(out + image * height * width + (y * width + x), total, mask=inside)


@triton.jit
def blur_rows(frames, left, right, taps, out, height, width, width_out, radius: tl.constexpr):
    """Blur `[F, H, W]` (uint8 or float32) along x at the columns `left` and `right` only: `[F, H, 2, w]`."""
    image, y, x, inside = _tile(height, width_out)
    frames += image * height * width
    out += image * height * 2 * width_out
    at = y * 2 * width_out + x
    at_left = _blurred_along_x(frames, y, tl.load(left + x).to(tl.int32), width, taps, radius)
    at_right = _blurred_along_x(frames, y, tl.load(right + x).to(tl.int32), width, taps, radius)
    tl.store(out + at, at_left, mask=inside)
    tl.store(out + (at + width_out), at_right, mask=inside)


@triton.jit
def _blurred_along_x(frame, y, x, width, taps, radius: tl.constexpr):
    row = y * width
    total = tl.load(frame + (row + x)).to(tl.float32) * tl.load(taps)
    for k in range(1, radius + 1):
        before = tl.load(frame + (row + _reflect(x - k, width))).to(tl.float32)
        after = tl.load(frame + (row + _reflect(x + k, width))).to(tl.float32)
        total += (before + after) * tl.load(taps + k)
    return total


@triton.jit
def blur_columns(
    rows, top, bottom, row_weight, column_weight, taps, out, height_in, height, width, radius: tl.constexpr
):  # fmt: skip
    """Blur `[F, H, 2, w]` along y at the rows `top` and `bottom`, and blend the four samples: `[F, h, w]`."""
    image, y, x, inside = _tile(height, width)
    left = rows + image * height_in * 2 * width
    right = left + width
    top_y, bottom_y = tl.load(top + y).to(tl.int32), tl.load(bottom + y).to(tl.int32)
    weight_x = tl.load(column_weight + x)
    upper = _lerp(
        _blurred_along_y(left, top_y, x, height_in, 2 * width, taps, radius),
        _blurred_along_y(right, top_y, x, height_in, 2 * width, taps, radius),
        weight_x,
    )
    lower = _lerp(
        _blurred_along_y(left, bottom_y, x, height_in, 2 * width, taps, radius),
        _blurred_along_y(right, bottom_y, x, height_in, 2 * width, taps, radius),
        weight_x,
    )
    value = _lerp(upper, lower, tl.load(row_weight + y))
    tl.store(out + image * height * width + (y * width + x), value, mask=inside)


@triton.jit
def _blurred_along_y(column, y, x, height, stride, taps, radius: tl.constexpr):
    total = tl.load(column + (y * stride + x)) * tl.load(taps)
    for k in range(1, radius + 1):
        before = tl.load(column + (_reflect(y - k, height) * stride + x))
        after = tl.load(column + (_reflect(y + k, height) * stride + x))
        total += (before + after) * tl.load(taps + k)
    return total


@triton.jit
def expand_columns(images, g, xg, xxg, out, height, width, radius: tl.constexpr):
    """Correlate `[F, h, w]` along y with the weights times 1, y and y^2: `[F, 3, h, w]`."""
    image, y, x, inside = _tile(height, width)
    area = height * width
    images += image * area
    out += image * 3 * area
    at = y * width + x
    centre = tl.load(images + at)
    t0, t2 = centre * tl.load(g), centre * tl.load(xxg)
    t1 = centre
    for k in range(1, radius + 1):
        before, after = _ends(y, k, height, width, x)
        above, below = tl.load(images + before), tl.load(images + after)
        both = above + below
        t0 += both * tl.load(g + k)
        t1 = _add(t1, (below - above) * tl.load(xg + k), k)
        t2 += both * tl.load(xxg + k)
    tl.store(out + at, t0, mask=inside)
    tl.store(out + (area + at), t1, mask=inside)
    tl.store(out + (2 * area + at), t2, mask=inside)


@triton.jit
def expand_rows(columns, g, xg, xxg, ig11, ig03, ig33, ig55, out, height, width, radius: tl.constexpr):
    """Correlate `[F, 3, h, w]` along x and scale: the coefficients of y, x, y^2, x^2 and xy `[F, 5, h, w]`."""
    image, y, x, inside = _tile(height, width)
    area = height * width
    t0 = columns + image * 3 * area
    t1 = t0 + area
    t2 = t1 + area
    out += image * 5 * area
    row = y * width
    at = row + x
    one, xx = tl.load(t0 + at) * tl.load(g), tl.load(t0 + at) * tl.load(xxg)
    by_y, yy = tl.load(t1 + at) * tl.load(g), tl.load(t2 + at) * tl.load(g)
    by_x, xy = one, one
    for k in range(1, radius + 1):
        before, after = _ends(x, k, width, 1, row)
        left, right = tl.load(t0 + before), tl.load(t0 + after)
        both = left + right
        one += both * tl.load(g + k)
        by_x = _add(by_x, (right - left) * tl.load(xg + k), k)
        xx += both * tl.load(xxg + k)
        left, right = tl.load(t1 + before), tl.load(t1 + after)
        by_y += (left + right) * tl.load(g + k)
        xy = _add(xy, (right - left) * tl.load(xg + k), k)
        yy += _pair(t2, before, after) * tl.load(g + k)
    level = one * ig03
    tl.store(out + at, by_y * ig11, mask=inside)
    tl.store(out + (area + at), by_x * ig11, mask=inside)
    tl.store(out + (2 * area + at), level + yy * ig33, mask=inside)
    tl.store(out + (3 * area + at), level + xx * ig33, mask=inside)
    tl.store(out + (4 * area + at), xy * ig55, mask=inside)


@triton.jit
def _add(total, term, k):
    """Add the k-th term, or begin with the first, whatever the total was: 0 + -0 would lose its sign."""
    return tl.where(k == 1, term, total + term)


@triton.jit
def upsample(flow, top, bottom, row_weight, left, right, column_weight, gain, out, height_in, width_in, height, width):
    """Resize flow `[N, 2, h', w']` to `[N, 2, h, w]`, one program for a tile of one component, and multiply it."""
    plane, y, x, inside = _tile(height, width)
    flow += plane * height_in * width_in
    upper, lower = tl.load(top + y).to(tl.int32) * width_in, tl.load(bottom + y).to(tl.int32) * width_in
    x0, x1, weight_x = tl.load(left + x).to(tl.int32), tl.load(right + x).to(tl.int32), tl.load(column_weight + x)
    above = _lerp(tl.load(flow + (upper + x0)), tl.load(flow + (upper + x1)), weight_x)
    below = _lerp(tl.load(flow + (lower + x0)), tl.load(flow + (lower + x1)), weight_x)
    value = _lerp(above, below, tl.load(row_weight + y)) * gain
    tl.store(out + plane * height * width + (y * width + x), value, mask=inside)


@triton.jit
def matrices(expansions, first, flow, border_rows, border_columns, out, height, width):
    """Form the constraints `[N, 5, h, w]` from `[F, 5, h, w]` at the flow `[N, 2, h, w]`; see `stages.matrices`."""
    pair, y, x, inside_tile = _tile(height, width)
    area = height * width
    one = expansions + tl.load(first + pair).to(tl.int64) * 5 * area
    two = one + 5 * area
    flow += pair * 2 * area
    out += pair * 5 * area
    at = y * width + x
    dx, dy = tl.load(flow + at), tl.load(flow + (area + at))
    end_x, end_y = x.to(tl.float32) + dx, y.to(tl.float32) + dy
    # The same as asking where the floors lie. Inside, cutting off the fraction is the floor, and it is safe: a float
    # beyond the range of integers has no defined integer. (Triton's floor on a GPU takes -1e-40 for zero.)
    inside = (end_x >= 0.0) & (end_x < width - 1) & (end_y >= 0.0) & (end_y < height - 1)
    left, top = tl.where(inside, end_x, 0.0).to(tl.int32), tl.where(inside, end_y, 0.0).to(tl.int32)
    corner = top * width + left
    ax, ay = end_x - left.to(tl.float32), end_y - top.to(tl.float32)
    bx, by = 1.0 - ax, 1.0 - ay
    w00, w01, w10, w11 = bx * by, ax * by, bx * ay, ax * ay
    y1, y2 = tl.load(one + at), _sample(two, corner, inside, width, w00, w01, w10, w11)
    x1, x2 = tl.load(one + (area + at)), _sample(two + area, corner, inside, width, w00, w01, w10, w11)
    yy1, yy2 = tl.load(one + (2 * area + at)), _sample(two + 2 * area, corner, inside, width, w00, w01, w10, w11)
    xx1, xx2 = tl.load(one + (3 * area + at)), _sample(two + 3 * area, corner, inside, width, w00, w01, w10, w11)
    xy1, xy2 = tl.load(one + (4 * area + at)), _sample(two + 4 * area, corner, inside, width, w00, w01, w10, w11)
    yy = tl.where(inside, (yy1 + yy2) * 0.5, yy1)
    xx = tl.where(inside, (xx1 + xx2) * 0.5, xx1)
    xy = tl.where(inside, (xy1 + xy2) * 0.25, xy1 * 0.5)
    by_y = (y1 - y2) * 0.5 + (yy * dy + xy * dx)
    by_x = (x1 - x2) * 0.5 + (xy * dy + xx * dx)
    weight = tl.load(border_columns + x) * tl.load(border_rows + y)
    by_y, by_x, yy, xx, xy = by_y * weight, by_x * weight, yy * weight, xx * weight, xy * weight
    tl.store(out + at, yy * yy + xy * xy, mask=inside_tile)
    tl.store(out + (area + at), (yy + xx) * xy, mask=inside_tile)
    tl.store(out + (2 * area + at), xx * xx + xy * xy, mask=inside_tile)
    tl.store(out + (3 * area + at), yy * by_y + xy * by_x, mask=inside_tile)
    tl.store(out + (4 * area + at), xy * by_y + xx * by_x, mask=inside_tile)


@triton.jit
def _sample(plane, corner, inside, width, w00, w01, w10, w11):
    """Blend the 2 x 2 pixels at `corner`; 0 for pixels that are not inside, which read nothing."""
    p = tl.load(plane + corner, mask=inside, other=0.0) * w00
    q = tl.load(plane + (corner + 1), mask=inside, other=0.0) * w01
    r = tl.load(plane + (corner + width), mask=inside, other=0.0) * w10
    s = tl.load(plane + (corner + (width + 1)), mask=inside, other=0.0) * w11
    return tl.where(inside, p + q + r + s, 0.0)


@triton.jit
def vertical_sum(constraints, taps, out, height, width, radius: tl.constexpr):
    """Sum the constraints over the rows of the window: `[N, 5, h, w]` -> `[N, 5, h, w]`."""
    pair, y, x, inside = _tile(height, width)
    area = height * width
    g11, g12, g22, h1, h2 = _window_sums(constraints + pair * 5 * area, area, y, height, width, x, taps, radius)
    out += pair * 5 * area
    at = y * width + x
    tl.store(out + at, g11, mask=inside)
    tl.store(out + (area + at), g12, mask=inside)
    tl.store(out + (2 * area + at), g22, mask=inside)
    tl.store(out + (3 * area + at), h1, mask=inside)
    tl.store(out + (4 * area + at), h2, mask=inside)


@triton.jit
def horizontal_sum_and_solve(sums, taps, scale, regularisation, out, height, width, radius: tl.constexpr):
    """Sum over the columns of the window and solve for the displacement: `[N, 5, h, w]` -> flow `[N, 2, h, w]`."""
    pair, y, x, inside = _tile(height, width)
    area = height * width
    g11, g12, g22, h1, h2 = _window_sums(sums + pair * 5 * area, area, x, width, 1, y * width, taps, radius)
    g11, g12, g22, h1, h2 = g11 * scale, g12 * scale, g22 * scale, h1 * scale, h2 * scale
    factor = tl.div_rn(1.0, g11 * g22 - g12 * g12 + regularisation)
    out += pair * 2 * area
    at = y * width + x
    tl.store(out + at, (g11 * h2 - g12 * h1) * factor, mask=inside)
    tl.store(out + (area + at), (g22 * h1 - g12 * h2) * factor, mask=inside)


@triton.jit
def _window_sums(planes, area, position, size, stride, rest, taps, radius: tl.constexpr):
    """Weigh and add five planes along one axis, from the centre outwards."""
    at = position * stride + rest
    tap = tl.load(taps)
    a = tl.load(planes + at) * tap
    b = tl.load(planes + (area + at)) * tap
    c = tl.load(planes + (2 * area + at)) * tap
    d = tl.load(planes + (3 * area + at)) * tap
    e = tl.load(planes + (4 * area + at)) * tap
    for k in range(1, radius + 1):
        tap = tl.load(taps + k)
        before, after = _ends(position, k, size, stride, rest)
        a += _pair(planes, before, after) * tap
        b += _pair(planes + area, before, after) * tap
        c += _pair(planes + 2 * area, before, after) * tap
        d += _pair(planes + 3 * area, before, after) * tap
        e += _pair(planes + 4 * area, before, after) * tap
    return a, b, c, d, e


@triton.jit
def _pair(plane, before, after):
    return tl.load(plane + before) + tl.load(plane + after)


@triton.jit
def _ends(position, k, size, stride, rest):
    """Give the offsets of what lies k before and k after a position along one axis; the border is replicated."""
    return tl.maximum(position - k, 0) * stride + rest, tl.minimum(position + k, size - 1) * stride + rest


@triton.jit
def _tile(height, width):
    """Give the program's image (int64), the rows and columns `[TILE * TILE]` of its pixels, and which pixels exist.

    Rows and columns are clamped to the image. The pixels are listed in one dimension, row by row, because Triton then
    has no choice but to give neighbours along x to neighbouring threads; with two, some versions choose y. The grid has
    one dimension because the others end at 65535 programs.
    """
    across = (width + (TILE - 1)) // TILE
    tiles = (height + (TILE - 1)) // TILE * across
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    pixel = tl.arange(0, TILE * TILE)
    y = tile // across * TILE + pixel // TILE
    x = tile % across * TILE + pixel % TILE
    return image.to(tl.int64), tl.minimum(y, height - 1), tl.minimum(x, width - 1), (y < height) & (x < width)


@triton.jit
def _reflect(index, size):
    """Mirror an index at the first and the last element, which are not repeated."""
    return size - 1 - tl.abs(size - 1 - tl.abs(index))


@triton.jit
def _lerp(a, b, weight):
    return a * (1.0 - weight) + b * weight
