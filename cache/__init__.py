"""The meeting point of the two stages: feature streams on disk.

Names are imported when they are first used, so that `amfir.cache.errors` alone needs neither h5py nor numpy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import MachineError as MachineError
    from .errors import UserError as UserError
    from .index import StreamIndex as StreamIndex
    from .index import Table as Table
    from .index import digests as digests
    from .pack import pack as pack
    from .rows import Failure as Failure
    from .rows import Row as Row
    from .sidecar import DamageError as DamageError
    from .spec import Json as Json
    from .spec import StreamSpec as StreamSpec
    from .spec import differences as differences
    from .store import Store as Store
    from .store import Stream as Stream
    from .verify import Damage as Damage
    from .verify import discard_damaged as discard_damaged
    from .verify import verify as verify
    from .writer import StreamWriter as StreamWriter

_MODULES = {
    "errors": ("MachineError", "UserError"),
    "index": ("StreamIndex", "Table", "digests"),
    "pack": ("pack",),
    "rows": ("Failure", "Row"),
    "sidecar": ("DamageError",),
    "spec": ("Json", "StreamSpec", "differences"),
    "store": ("Store", "Stream"),
    "verify": ("Damage", "discard_damaged", "verify"),
    "writer": ("StreamWriter",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # An import of the submodule `pack` or `verify` would put it in the place of the function of that name.
        if name not in _MODULE_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULE_OF})


sys.modules[__name__].__class__ = _Package
