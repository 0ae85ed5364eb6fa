"""Specs: their fingerprint, and what a mismatch says."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amfir.cache import Store, StreamSpec, StreamWriter, UserError, differences

from .cacherows import SPEC, write_rows

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
settings_values = st.dictionaries(st.text(), json_values, max_size=4)


def test_fingerprint_does_not_depend_on_the_run_or_the_order_of_the_settings() -> None:
    code = (
        "from amfir.cache import StreamSpec\n"
        "print(StreamSpec('rgb', 2, 1, 3, {'flow': {'winsize': 15}, 'backbone': 'small'}).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert SPEC.fingerprint == printed
    # sha256 of {"dim":3,"frames":2,"modality":"rgb","settings":{"backbone":"small","flow":{"winsize":15}},"views":1}
    assert printed == "e2bf806ce4ecbeb5f0f227654e110c473b99ea5297ac2cde0acc7da185f3975c"


@given(settings_values)
def test_specs_survive_json(settings: dict[str, Any]) -> None:
    spec = StreamSpec("rgb", 2, 1, 3, settings)
    again = StreamSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.fingerprint == spec.fingerprint
    assert differences(spec, again) == []


@given(settings_values, settings_values)
def test_specs_differ_somewhere_exactly_if_their_fingerprints_do(left: dict[str, Any], right: dict[str, Any]) -> None:
    one, two = StreamSpec("rgb", 2, 1, 3, left), StreamSpec("rgb", 2, 1, 3, right)
    assert bool(differences(one, two)) == (one.fingerprint != two.fingerprint)


def test_differences_name_nested_fields_and_show_both_sides() -> None:
    cached = replace(SPEC, settings={"flow": {"winsize": 15, "levels": 3}, "weights": "abc", "same": 1, "kind": 1})
    asked = replace(SPEC, frames=8, settings={"flow": {"winsize": 21}, "same": 1, "kind": True, "new": {"a": [1]}})
    assert differences(cached, asked) == [
        "frames: 2 in the cache, 8 asked",
        "settings.flow.levels: 3 in the cache, absent asked",
        "settings.flow.winsize: 15 in the cache, 21 asked",
        "settings.kind: 1 in the cache, true asked",
        "settings.new.a: absent in the cache, [1] asked",
        'settings.weights: "abc" in the cache, absent asked',
    ]


def test_an_empty_group_is_not_an_absent_one() -> None:
    with_group, without = replace(SPEC, settings={"flow": {}}), replace(SPEC, settings={})
    assert differences(with_group, without) == ["settings.flow: {} in the cache, absent asked"]


def test_settings_are_a_copy() -> None:
    settings: dict[str, Any] = {"mean": (0.5, 0.5)}
    spec = StreamSpec("rgb", 2, 1, 3, settings)
    settings["mean"] = None
    assert spec.settings == {"mean": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modality": "a/b"}, "stream name 'a/b'"),
        ({"modality": ""}, "stream name ''"),
        ({"modality": ".."}, r"stream name '\.\.'"),
        ({"frames": 0}, "frames is 0"),
        ({"views": -1}, "views is -1"),
        ({"dim": True}, "dim is True"),
        ({"dim": 2.0}, r"dim is 2\.0"),
        ({"settings": {"mean": float("nan")}}, "no JSON"),
        ({"settings": {"path": Path("x")}}, "no JSON"),
        ({"settings": {"sizes": {1: 2}}}, "not text"),
        ({"settings": ["winsize"]}, "use names and values"),
    ],
)
def test_unusable_specs_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        replace(SPEC, **change)
    assert "\n" not in str(error.value)


def test_another_spec_is_refused_by_writers_and_readers(tmp_path: Path) -> None:
    write_rows(tmp_path, range(2))
    other = replace(SPEC, settings={"backbone": "large", "flow": {"winsize": 15}})
    words = r'settings.backbone: "small" in the cache, "large" asked; in .*; use another --cache directory'
    with pytest.raises(UserError, match=words):
        StreamWriter(tmp_path, other)
    with pytest.raises(UserError, match=words):
        Store(tmp_path).read("rgb", other)
    assert Store(tmp_path).read("rgb", SPEC).spec == SPEC


def test_an_edited_spec_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, range(2))
    path = tmp_path / "rgb" / "spec.json"
    path.write_text(path.read_text().replace("15", "16"))
    with pytest.raises(UserError, match="was edited"):
        Store(tmp_path).read("rgb")
    with pytest.raises(UserError, match="was edited"):
        StreamWriter(tmp_path, SPEC)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": {}, "fingerprint": ""}'])
def test_an_unreadable_spec_is_refused(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path, range(2))
    (tmp_path / "rgb" / "spec.json").write_text(text)
    with pytest.raises(UserError, match="missing or unreadable"):
        Store(tmp_path).read("rgb")
