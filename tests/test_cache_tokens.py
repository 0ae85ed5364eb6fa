"""Spatial tokens: a feature of their own for each of P places in a frame."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amfir.cache import Row, Store, StreamSpec, StreamWriter, UserError, differences, discard_damaged, pack, verify

from .cacherows import SPEC, contents, make_row, segment_files

TOKENS = replace(SPEC, views=2, tokens=5)


def make_token_row(number: int) -> Row:
    row = make_row(number, spec=TOKENS)
    features = np.random.default_rng(number).normal(size=(2, 2, 5, 3)).astype(np.float16)
    return replace(row, features=features)


def write_token_rows(root: Path, numbers: range) -> None:
    with StreamWriter(root, TOKENS) as writer:
        for number in numbers:
            writer.add(make_token_row(number))


def truth(numbers: range) -> list[tuple[str, str, bytes, bytes]]:
    rows = [make_token_row(number) for number in numbers]
    return sorted((row.clip_id, row.label, row.features.tobytes(), row.times.tobytes()) for row in rows)


def test_shapes_follow_from_the_spec() -> None:
    assert (SPEC.feature_shape, SPEC.row_shape) == ((3,), (1, 2, 3))
    assert (TOKENS.feature_shape, TOKENS.row_shape) == ((5, 3), (2, 2, 5, 3))


def test_specs_with_and_without_tokens_survive_json() -> None:
    assert "tokens" not in SPEC.to_json()
    assert TOKENS.to_json()["tokens"] == 5
    for spec in (SPEC, TOKENS):
        assert StreamSpec.from_json(spec.to_json()) == spec
    assert StreamSpec.from_json({**SPEC.to_json(), "tokens": 0}).fingerprint == SPEC.fingerprint
    assert TOKENS.fingerprint != replace(TOKENS, tokens=0).fingerprint
    assert differences(replace(TOKENS, tokens=0), TOKENS) == ["tokens: absent in the cache, 5 asked"]


@pytest.mark.parametrize("tokens", [-1, True, 4.0, "4", None])
def test_unusable_counts_of_tokens_are_refused(tokens: Any) -> None:
    with pytest.raises(UserError, match=r"tokens is .*; in the spec of stream 'rgb'; use a count of at least 0"):
        replace(SPEC, tokens=tokens)


def test_tokens_come_back_from_segments_and_from_a_pack(tmp_path: Path) -> None:
    write_token_rows(tmp_path, range(4))
    write_token_rows(tmp_path, range(3, 7))
    stream = Store(tmp_path).read("rgb", TOKENS)
    assert stream.features.shape == (7, 2, 2, 5, 3)
    assert contents(stream) == truth(range(7))
    pack(tmp_path)
    assert segment_files(tmp_path) == []
    stream = Store(tmp_path).read("rgb")
    assert isinstance(stream.features, np.memmap)
    assert stream.features.shape == (7, 2, 2, 5, 3)
    assert contents(stream) == truth(range(7))
    stream.check()
    assert verify(tmp_path) == []
    spec = Store(tmp_path).info()["rgb"]["spec"]
    assert isinstance(spec, dict)
    assert spec["tokens"] == 5


def test_a_token_stream_without_clips_has_its_shape(tmp_path: Path) -> None:
    write_token_rows(tmp_path, range(0))
    assert Store(tmp_path).read("rgb").features.shape == (0, 2, 2, 5, 3)


def test_features_without_tokens_are_refused_and_the_other_way_round(tmp_path: Path) -> None:
    flat = make_row(0, spec=TOKENS)
    with StreamWriter(tmp_path, TOKENS) as writer:
        for features in (flat.features, np.zeros((2, 2, 4, 3), np.float16), np.zeros((2, 2, 15), np.float16)):
            with pytest.raises(ValueError, match=r"expected float16 \(2, 2, 5, 3\)"):
                writer.add(replace(flat, features=features))
    with pytest.raises(UserError, match=r"made with another spec: tokens: 5 in the cache, absent asked"):
        StreamWriter(tmp_path, replace(TOKENS, tokens=0))


def test_a_damaged_token_is_found(tmp_path: Path) -> None:
    write_token_rows(tmp_path, range(2))
    (path,) = segment_files(tmp_path)
    stat, data = path.stat(), path.read_bytes()
    values = make_token_row(1).features.tobytes()
    assert data.count(values) == 1
    with path.open("r+b") as file:
        file.seek(data.index(values) + len(values) - 1)
        file.write(bytes([values[-1] ^ 1]))
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"row of clip 'class 1/clip 0001\.mp4' does not match its checksum"):
        Store(tmp_path).read("rgb")
    assert [damage.path for damage in verify(tmp_path)] == [path]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
