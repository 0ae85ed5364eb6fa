"""Digests of clip ids, and looking them up."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amfir.cache import Table, digests

words = st.integers(0, 3) | st.sampled_from([2**63, 2**64 - 1])
keys = st.tuples(words, words)


def key(clip_id: str) -> bytes:
    return hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def test_digests_are_those_of_the_encoded_ids() -> None:
    clip_ids = ["", "a.mp4", "é/日本.mp4", "caf\udce9.avi", "a.mp4"]
    found = digests(clip_ids)
    assert (found.dtype.name, found.shape) == ("uint64", (5, 2))
    assert [(first, second) for first, second in found.tolist()] == [
        (int.from_bytes(key(clip_id)[:8], "little"), int.from_bytes(key(clip_id)[8:], "little")) for clip_id in clip_ids
    ]
    assert digests([]).shape == (0, 2)


@given(st.sets(keys, max_size=40), st.lists(keys, max_size=40))
def test_find_gives_what_a_dict_gives(present: set[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    ordered = sorted(present)
    table = Table(np.array(ordered, np.uint64).reshape(-1, 2), np.zeros((len(ordered), 2), np.int64))
    truth = {digest: row for row, digest in enumerate(ordered)}
    found = table.find(np.array(asked, np.uint64).reshape(-1, 2))
    assert found.dtype == np.int64
    assert found.tolist() == [truth.get(digest, -1) for digest in asked]
    assert len(table) == len(present)


def test_find_in_many_random_digests() -> None:
    clip_ids = [str(number) for number in range(5000)]
    found = digests(clip_ids)
    order = np.lexsort((found[:, 1], found[:, 0]))
    table = Table(found[order], np.stack([order, -order], axis=1))
    rows = table.find(digests([*clip_ids, "other"]))
    assert rows[-1] == -1
    assert table.sources[rows[:-1], 0].tolist() == list(range(5000))
