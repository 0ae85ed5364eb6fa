"""Loads the Triton kernels interpreted on the CPU or compiled, whatever the environment of the tests says."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

PACKAGE = "amfir.extract.flow"
MODULES = ("kernels", "triton_stages")


@contextmanager
def triton_stages(interpret: bool) -> Iterator[ModuleType]:
    """Import `triton_stages` and `kernels` anew, and put back what was imported before.

    Triton decides when a kernel is defined, that is, when its module is imported.
    """
    import triton

    package = vars(import_module(PACKAGE))
    before = {name: sys.modules.pop(f"{PACKAGE}.{name}", None) for name in MODULES}
    for name in MODULES:
        package.pop(name, None)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpret
        loaded = import_module(f"{PACKAGE}.triton_stages")
    try:
        yield loaded
    finally:
        for name, module in before.items():
            sys.modules.pop(f"{PACKAGE}.{name}", None)
            package.pop(name, None)
            if module is not None:
                sys.modules[f"{PACKAGE}.{name}"] = package[name] = module
