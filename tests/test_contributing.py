"""The example of a new head in CONTRIBUTING.md is taken from there and does what the page says."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from amfir.meta.heads import HEADS, Entry, Inputs, build_head
from amfir.meta.methods import parse_method
from amfir.meta.profiles import load_profile
from amfir.meta.train import start_training, train

from .planted import make_task

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
NAME = "amfir.meta.heads.nearest"


@pytest.fixture
def _nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (entry,) = re.findall(r'^ {4}"nearest": (Entry\(.*\)),$', text, re.MULTILINE)
    (tmp_path / "nearest.py").write_text(code)
    spec = importlib.util.spec_from_file_location(NAME, tmp_path / "nearest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    target, title = re.fullmatch(r'Entry\("([\w:]+)", title="([\w ]+)"\)', entry).groups()  # type: ignore[union-attr]
    monkeypatch.setitem(HEADS, "nearest", Entry(target, title=title))


@pytest.mark.usefixtures("_nearest", "one_thread")
def test_the_example_head_is_what_its_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(1, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    query = torch.randn(1, 6, 4, 5, generator=generator, dtype=torch.float64)
    logits = build_head("nearest", Inputs(4, 5), {"dim": 0}).double()(support, query)
    for q in range(6):
        for n in range(3):
            gaps = [(query[0, q].mean(0) - support[0, n, k].mean(0)).square().sum() / 5 for k in range(2)]
            assert logits[0, q, n].item() == pytest.approx(-min(gaps).item())


@pytest.mark.usefixtures("_nearest", "one_thread")
@pytest.mark.parametrize("name", ["nearest-lf", "nearest-ec", "nearest+ami", "amfir[nearest]"])
def test_the_example_head_goes_with_every_arrangement(name: str) -> None:
    assert parse_method(name).head == "nearest"
    task = make_task(method=name, episodes=96, interval=48, profile=load_profile("nearest", settings=["head.dim=8"]))
    training = start_training(task)
    for _ in train(task, training):
        pass
    assert training.best_accuracy > training.log[0]["validation"]
