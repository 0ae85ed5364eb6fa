"""Fixtures for every test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .clipmaker import make_clip as _make_clip


@pytest.fixture
def make_clip() -> Callable[..., Path]:
    """Return the function that writes a small video: `make_clip(path, num_frames=..., codec=..., gop=..., ...)`."""
    return _make_clip
