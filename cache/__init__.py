"""The meeting point of the two stages: feature streams on disk."""

from .errors import MachineError as MachineError
from .errors import UserError as UserError
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
