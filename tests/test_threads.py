import threading
from collections.abc import Iterator

import pytest
import torch

from amfir.meta.threads import map_threads, one_thread


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_ends_with_what_it_began_with() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3


def test_items_go_to_as_many_threads_as_there_were_outside_in_order() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def work(item: int) -> tuple[int, int]:
        meeting.wait()  # passes only where three run at once
        return 10 * item, torch.get_num_threads()

    with one_thread(), one_thread():
        assert map_threads(work, [1, 2, 3, 4, 5, 6]) == [(10 * item, 1) for item in range(1, 7)]


def test_without_one_thread_or_a_second_item_nothing_is_divided() -> None:
    def who(_: int) -> int:
        return threading.get_ident()

    here = threading.get_ident()
    assert map_threads(who, [1, 2, 3]) == [here] * 3
    with one_thread():
        assert map_threads(who, [1]) == [here]
        assert map_threads(who, []) == []
    torch.set_num_threads(1)
    with one_thread():
        assert map_threads(who, [1, 2]) == [here] * 2


def test_an_error_in_an_item_is_raised() -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with one_thread(), pytest.raises(ValueError, match="item 1"):
        map_threads(fail, [1, 2])
