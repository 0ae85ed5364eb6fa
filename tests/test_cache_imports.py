"""What an import of the cache costs."""

import subprocess
import sys

import pytest

import amfir.cache


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_errors_are_imported_without_h5py_and_numpy() -> None:
    code = "import sys, amfir.cache.errors; print(sorted({'h5py', 'numpy', 'torch'} & sys.modules.keys()))"
    assert run(code) == "[]"


def test_every_name_is_there_and_no_other() -> None:
    names = [name for names in amfir.cache._MODULES.values() for name in names]
    assert set(names) <= set(dir(amfir.cache))
    assert all(hasattr(amfir.cache, name) for name in names)
    with pytest.raises(AttributeError, match=r"module 'amfir\.cache' has no attribute 'unknown'"):
        getattr(amfir.cache, "unknown")  # noqa: B009


@pytest.mark.parametrize("name", ["pack", "verify"])
@pytest.mark.parametrize(
    "first", ["import amfir.cache.{0}", "from amfir.cache.{0} import {0} as f", "import amfir.cache"]
)
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str, first: str) -> None:
    code = f"{first}; from amfir.cache import {{0}}; import amfir.cache.{{0}}; print(callable({{0}}), {{0}}.__module__)"
    assert run(code.format(name)) == f"True amfir.cache.{name}"
