"""Fixtures for every test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .clipmaker import make_clip as _make_clip


@pytest.fixture
def make_clip() -> Callable[..., Path]:
    """Return the function that writes a small video: `make_clip(path, num_frames=..., codec=..., gop=..., ...)`."""
    return _make_clip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on a busy machine, small operations wait far longer for a second one than they take."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
