"""A user's own networks: what they may be, and one line for everything they may do wrong."""

from pathlib import Path

import pytest
import torch

from amfir.cache.errors import UserError
from amfir.extract.backbones import load_backbone
from amfir.extract.backbones.backbone import weights_sha256

SOURCE = '''
import torch
from amfir.extract.backbones import Backbone

class Means(torch.nn.Module):
    """Scaled mean of each channel, twice."""
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    def forward(self, x):
        return (x.mean(dim=(2, 3))[:, None] * self.gain[:, None]).flatten(1)

class Stack(torch.nn.Conv3d):
    def forward(self, x):
        return super().forward(x).mean(dim=(2, 3, 4))

class Steps(torch.nn.Conv3d):
    def forward(self, x):
        return super().forward(x).mean(dim=(3, 4)).transpose(1, 2)

class Maps(torch.nn.Conv2d):
    pass

class Pair(Means):
    def forward(self, x):
        return x, x

class Picky(Means):
    def forward(self, x):
        raise ValueError("two\\nlines")

def bare(): return Means()
def image(): return Backbone("", Means(), 6, 32, (0.5,) * 3, (0.25,) * 3, "", ())
def stack(): return Backbone("", Stack(3, 5, 1), 5, 16, (0.0,) * 3, (1.0,) * 3, "", (), fields=4)
def steps():
    return Backbone("", Steps(2, 5, (4, 1, 1), (4, 1, 1)), 5, 16, (0.0, 0.0), (20.0, 20.0), "", (),
                    fields=4, whole=True, channels=2)
def liar(): return Backbone("", Means(), 7, 32, (0.5,) * 3, (0.25,) * 3, "", ())
def broken(): return Backbone("", Picky(), 6, 32, (0.5,) * 3, (0.25,) * 3, "", ())
def maps(): return Maps(3, 5, 1)
def pair(): return Pair()
def picky(): return Picky()
def needs(argument): return Means()
def number(): return 5
def empty(): return torch.nn.Flatten()
constant = 3
'''


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(SOURCE)
    (tmp_path / "own_faulty.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_bare_module_is_fed_images_normalised_as_imagenet() -> None:
    backbone = load_backbone("own_networks:bare")
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    colour = (images.double().mean(dim=(1, 2)) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    with torch.inference_mode():
        features = backbone.features(images)
    torch.testing.assert_close(features[:, 0], torch.cat([colour, 2 * colour], dim=1).float(), rtol=1e-4, atol=1e-4)
    assert (backbone.name, backbone.dim, backbone.size) == ("own_networks:bare", 6, 224)


def test_a_backbone_keeps_its_settings_and_takes_the_name_and_hash_of_what_was_loaded() -> None:
    backbone = load_backbone("own_networks:image")
    assert (backbone.name, backbone.size, backbone.mean) == ("own_networks:image", 32, (0.5, 0.5, 0.5))
    assert backbone.weights_sha256 == weights_sha256(backbone.network.state_dict())
    with torch.inference_mode():
        assert load_backbone("own_networks:stack").features(torch.zeros(2, 4, 16, 16, 3)).shape == (2, 1, 5)
        assert load_backbone("own_networks:steps").features(torch.zeros(2, 12, 16, 16, 2)).shape == (2, 3, 5)


def test_a_weights_file_is_loaded_strictly(tmp_path: Path) -> None:
    torch.save({"gain": torch.tensor([3.0, 4.0])}, tmp_path / "w.pth")
    backbone = load_backbone("own_networks:bare", tmp_path / "w.pth")
    assert backbone.network.gain.tolist() == [3.0, 4.0]  # type: ignore[operator]
    assert backbone.weights_sha256 != load_backbone("own_networks:bare").weights_sha256
    torch.save({"loss": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="'gain' is missing"):
        load_backbone("own_networks:bare", tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("own_faulty:f", "ZeroDivisionError"),
        (":f", "ValueError"),
        ("own_networks:missing", "'missing' does not exist"),
        ("own_networks:", "'' does not exist"),
        ("own_networks:constant", "'constant' is not callable"),
        ("own_networks:needs", "TypeError"),
        ("own_networks:number", "returned a int"),
        ("own_networks:empty", "no parameters"),
        ("own_networks:maps", r"\[1, 5, 224, 224\]"),
        ("own_networks:pair", "tuple"),
        ("own_networks:picky", "ValueError: two lines"),
        ("own_networks:broken", "ValueError: two lines"),
        ("own_networks:liar", r"\[1, 1, 6\].*\[1, 1, 7\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)
