"""What is left to do, against a plain comparison; long lists are cut short by patching the constants."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amfir.cache import Failure, Row, StreamSpec, StreamWriter
from amfir.cache.errors import UserError
from amfir.extract import plan as planning
from amfir.extract.clips import Clip
from amfir.extract.plan import make_plan
from amfir.extract.report import Tally

SPECS = {name: StreamSpec(name, 1, 1, 2, {}) for name in ("rgb", "flow")}


def clip(number: int, folder: Path = Path("/nowhere")) -> Clip:
    return Clip(f"c{number:03d}", folder / f"c{number:03d}", "x")


def fill(cache: Path, stream: str, done: Iterable[int], failed: Iterable[int] = ()) -> None:
    with StreamWriter(cache, SPECS[stream]) as writer:
        for number in done:
            features, times = np.zeros((1, 1, 2), np.float16), np.zeros((1, 1))
            writer.add(Row(clip(number).id, "x", features, times, 1, 1))
        for number in failed:
            writer.add_failure(Failure(clip(number).id, "x", "damaged", f"{stream} is bad", 1, 1))


@pytest.fixture(params=[10_000, 3], ids=["one pass", "two passes"])
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BLOCK", 4)
    monkeypatch.setattr(planning, "KEPT_TASKS", request.param)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("retry", [False, True])
def test_a_plan_is_what_the_cache_lacks(retry: bool, tmp_path: Path) -> None:
    rgb, flow, bad_flow = set(range(0, 12)), set(range(4, 16)), {2, 3, 18}
    fill(tmp_path, "rgb", rgb)
    fill(tmp_path, "flow", flow, bad_flow)
    plan = make_plan([clip(i) for i in range(21)], tmp_path, ("rgb", "flow"), retry_failed=retry)
    standing = set() if retry else bad_flow
    expected = {}
    for i in range(21):
        wanted = [("rgb", i not in rgb), ("flow", i not in flow and i not in standing)]
        if streams := tuple(name for name, lacks in wanted if lacks):
            expected[clip(i).id] = (streams, i in standing)
    for _ in range(2):
        assert {task.clip.id: (task.streams, task.standing) for task in plan.tasks()} == expected
    assert (plan.clips, plan.todo, plan.standing) == (21, len(expected), len(standing))
    assert plan.skipped == len(rgb & flow)
    assert {failure.clip_id for failure in plan.failures} == {clip(i).id for i in standing}


@pytest.mark.usefixtures("short")
def test_a_list_that_changes_between_the_passes_loses_nothing(tmp_path: Path) -> None:
    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[Clip]:
            self.passes += 1
            return iter([clip(i) for i in range(self.passes - 1, 20)])

    fill(tmp_path, "rgb", range(8))
    plan = make_plan(Shrinking(), tmp_path, ("rgb",), retry_failed=False)
    assert [task.clip.id for task in plan.tasks()] == [clip(i).id for i in range(8, 20)]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("again", [1, 19])
def test_a_clip_listed_twice_is_named(again: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"clip '{clip(again).id}' is listed twice"):
        make_plan((clip(i % 20 if i < 20 else again) for i in range(21)), tmp_path, ("rgb",), retry_failed=False)


def test_files_that_changed_are_counted_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        (tmp_path / clip(i).id).write_bytes(b"longer than before")
    fill(tmp_path / "cache", "rgb", range(40))
    clips = [clip(i, tmp_path) for i in range(40)]

    def changed() -> int:
        return make_plan(clips, tmp_path / "cache", ("rgb",), retry_failed=False).changed

    monkeypatch.setattr(planning, "BLOCK", 7)
    assert changed() == 40
    monkeypatch.setattr(planning, "CHECKED_SOURCES", 10)
    assert changed() == 8  # every fifth


def test_a_written_list_answers_for_the_files_that_are_to_be_read(tmp_path: Path) -> None:
    class Written(list[Any]):
        def require(self, clips: Iterable[Clip]) -> None:
            required.extend(wanted.id for wanted in clips)

    required: list[str] = []
    fill(tmp_path, "rgb", [0, 2])
    make_plan(Written(clip(i) for i in range(4)), tmp_path, ("rgb",), retry_failed=False)
    assert required == [clip(1).id, clip(3).id]


def test_a_job_s_own_failures_are_listed_before_those_that_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("amfir.extract.plan", "amfir.extract.report"):
        monkeypatch.setattr(f"{module}.LISTED_FAILURES", 3)
    fill(tmp_path, "rgb", (), range(5))
    fill(tmp_path, "flow", (), [9])
    tally = Tally(make_plan([clip(i) for i in range(10)], tmp_path, ("rgb",), retry_failed=False), 0.0)
    tally.fail([Failure("new", "x", "timeout", "late", 1, 1)])
    report = tally.report()
    assert report.failed == 6
    assert [failure.clip_id for failure in report.failures] == ["c000", "c001", "new"]
