"""Downloads, against a real server on this machine, and the register of weights."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from amfir.cache.errors import MachineError, UserError
from amfir.extract import transfer
from amfir.extract.backbones.classifiers import classifier_names
from amfir.extract.backbones.vision import torchvision
from amfir.extract.fetch import download, file_sha256, mismatch
from amfir.extract.weights import Weights, check, fetch, find_weights, register, weights_file, weights_folder

from .fileserver import FileServer, serve

CONTENT = bytes(range(256)) * 4096  # several of the pieces that are read at once
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    with serve(CONTENT) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "net.pth"


def leave_partial(target: Path, content: bytes, version: str = "") -> None:
    """What an interrupted download leaves."""
    target.parent.mkdir(exist_ok=True)
    target.with_name("net.pth.partial").write_bytes(content)
    if version:
        target.with_name("net.pth.partial.version").write_text(version)


def files(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_arrives_whole_with_nothing_beside_it(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    download(server.url, target, sha256=SHA256[:8], progress=lambda *counts: seen.append(counts))
    assert target.read_bytes() == CONTENT
    assert files(target) == ["net.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT), 0)
    assert [counts[0] for counts in seen] == sorted({counts[0] for counts in seen})
    assert len(seen) > 2
    assert "range" not in server.requests[0]


def test_a_dropped_connection_goes_on_from_the_byte_where_it_broke(server: FileServer, target: Path) -> None:
    server.drop_after = [HALF, 1000]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert [asked.get("range") for asked in server.requests] == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.requests[1]["if-range"] == '"one"'


def test_an_interrupt_keeps_what_arrived_and_the_same_call_goes_on(server: FileServer, target: Path) -> None:
    def interrupt(ready: int, total: int, before: int) -> None:
        if ready >= HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, target, progress=interrupt)
    assert files(target) == ["net.pth.partial", "net.pth.partial.version"]
    kept = target.with_name("net.pth.partial").stat().st_size
    assert HALF <= kept < len(CONTENT)
    befores: list[int] = []
    download(server.url, target, progress=lambda ready, total, before: befores.append(before))
    assert target.read_bytes() == CONTENT
    assert server.requests[1]["range"] == f"bytes={kept}-"
    assert set(befores) == {kept}
    assert files(target) == ["net.pth"]


def test_a_server_without_ranges_sends_all_of_it_again(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.drop_after = [HALF]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_connection_that_drops_again_and_again_ends_with_one_line(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.drop_after = [HALF] * 9
    with pytest.raises(UserError, match=f"dropped after {HALF} of {len(CONTENT)} bytes") as caught:
        download(server.url, target)
    message = str(caught.value)
    assert "\n" not in message
    assert server.url in message
    assert "--rgb-weights or --flow-weights FILE" in message
    assert "goes on from there" in message
    assert len(server.requests) == 1 + transfer.RETRIES
    assert not target.exists()


def test_a_connection_that_always_gets_a_little_further_is_not_given_up(server: FileServer, target: Path) -> None:
    server.drop_after = [HALF // 10] * 15
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_fetched_from_its_start(server: FileServer, target: Path) -> None:
    leave_partial(target, b"old" * 1000, version='"zero"')
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests[0]["if-range"] == '"zero"'


def test_a_part_of_an_unknown_version_is_used_only_if_a_hash_can_tell(server: FileServer, target: Path) -> None:
    server.headers = {}
    leave_partial(target, CONTENT[:HALF])
    download(server.url, target, sha256=SHA256)
    assert server.requests[-1]["range"] == f"bytes={HALF}-"
    assert "if-range" not in server.requests[-1]
    target.unlink()
    leave_partial(target, b"x" * HALF)
    download(server.url, target)
    assert "range" not in server.requests[-1]
    assert target.read_bytes() == CONTENT


def test_a_weak_mark_of_the_version_is_not_used_for_parts(server: FileServer, target: Path) -> None:
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    server.headers = {"ETag": 'W/"weak"', "Last-Modified": date}
    server.drop_after = [HALF]
    download(server.url, target)
    assert server.requests[1]["if-range"] == date


def test_a_part_that_was_complete_already_is_not_fetched_again(server: FileServer, target: Path) -> None:
    leave_partial(target, CONTENT, version='"one"')
    download(server.url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_longer_than_the_file_is_thrown_away(server: FileServer, target: Path) -> None:
    leave_partial(target, CONTENT + b"more", version='"one"')
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def test_a_part_other_than_the_one_asked_for_is_not_appended(server: FileServer, target: Path) -> None:
    server.shift = 10
    leave_partial(target, CONTENT[:HALF], version='"one"')
    download(server.url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("drop", [None, HALF])
def test_a_server_that_does_not_say_how_long_the_file_is(server: FileServer, target: Path, drop: int | None) -> None:
    server.chunked = True
    server.drop_after = [drop]
    totals: set[int] = set()
    download(server.url, target, progress=lambda ready, total, before: totals.add(total))
    assert target.read_bytes() == CONTENT
    assert 0 in totals


def test_a_busy_server_is_asked_again(server: FileServer, target: Path) -> None:
    server.statuses = [503, 429]
    download(server.url, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 403])
def test_a_file_that_is_not_there_is_one_line_and_no_second_attempt(
    server: FileServer, target: Path, status: int
) -> None:
    server.statuses = [status] * 5
    with pytest.raises(UserError, match=f"HTTP {status}") as caught:
        download(server.url, target)
    assert "--rgb-weights or --flow-weights FILE" in str(caught.value)
    assert str(target) in str(caught.value)
    assert len(server.requests) == 1
    assert files(target) == []


def test_no_server_is_one_line_at_once(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", float("nan"))  # a pause would be an error
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/net.pth"
        with pytest.raises(UserError, match="Connection refused") as caught:
            download(url, target)
    assert "is there a network? fetch it on another machine" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(target) == []


def test_a_host_without_an_address_is_one_line(server: FileServer, target: Path) -> None:
    with pytest.raises(UserError, match="cannot fetch the file"):
        download("http://no-such-host.invalid/net.pth", target)


@pytest.mark.parametrize("known", [{"sha256": "0" * 8}, {"sha256": "0" * 64}, {"size_bytes": len(CONTENT) * 2}])
def test_another_file_than_the_published_one_is_removed(
    server: FileServer, target: Path, known: dict[str, str | int]
) -> None:
    with pytest.raises(UserError, match=r"not the file.*expected; http://.*removed"):
        download(server.url, target, **known)  # type: ignore[arg-type]
    assert files(target) == []


def test_a_damaged_part_is_found_by_the_hash_and_the_next_attempt_is_clean(server: FileServer, target: Path) -> None:
    leave_partial(target, b"x" * HALF, version='"one"')
    with pytest.raises(UserError, match="not the file"):
        download(server.url, target, sha256=SHA256)
    download(server.url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_the_machines_fault(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("net.pth.partial").symlink_to("/dev/full")
    with pytest.raises(MachineError, match=r"No space left on device.*make room"):
        download(server.url, target)


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="TORCH_HOME"):
        download(server.url, tmp_path / "file" / "net.pth")


class Held:
    """A download in a thread of its own that stops at its first piece until `go_on`."""

    def __init__(self, url: str, target: Path) -> None:
        self.error: Exception | None = None
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, target))
        self._thread.start()
        assert self._begun.wait(20)

    def _run(self, url: str, target: Path) -> None:
        try:
            download(url, target, sha256=SHA256, progress=self._hold)
        except UserError as error:
            self.error = error

    def _hold(self, ready: int, total: int, before: int) -> None:
        self._begun.set()
        self._go_on.wait(20)

    def go_on(self) -> None:
        self._go_on.set()
        self._thread.join(20)


@pytest.mark.parametrize("first_is_whole", [True, False])
def test_two_that_fetch_one_file_do_so_one_after_the_other(
    server: FileServer, target: Path, first_is_whole: bool
) -> None:
    server.content = CONTENT if first_is_whole else CONTENT[::-1]
    first = Held(server.url, target)
    second = threading.Thread(target=download, args=(server.url, target), kwargs={"sha256": SHA256})
    second.start()
    second.join(0.2)
    assert second.is_alive()
    server.content = CONTENT
    first.go_on()
    second.join(20)
    assert len(server.requests) == (1 if first_is_whole else 2)
    assert (first.error is None) == first_is_whole
    assert target.read_bytes() == CONTENT
    assert files(target) == ["net.pth"]


def test_sizes_may_be_rounded_and_hashes_shortened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    sha256 = hashlib.sha256(b"x" * 1000).hexdigest()
    assert file_sha256(path) == sha256
    assert mismatch(path, sha256, 1009) is None
    assert mismatch(path, sha256[:8], 991) is None
    assert mismatch(path, None, None) is None
    assert mismatch(path, None, 1020) == "it has 1000 bytes, about 1020 were expected"
    assert mismatch(path, "0" * 8, 1000) == f"its SHA-256 is {sha256}, 00000000... was expected"


def test_the_register_states_torchvisions_files_as_published() -> None:
    weights = register()
    resnet = weights["resnet50"]
    assert resnet.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert resnet.sha256 == "0676ba61"
    assert resnet.size_bytes is not None
    assert abs(resnet.size_bytes - 102_530_333) < 1024
    assert (resnet.licence, resnet.note) == ("BSD-3-Clause", "ImageNet-1K")
    assert weights["r3d_18"].url.endswith("/r3d_18-b3b3357e.pth")
    assert weights["r3d_18"].note == "Kinetics-400"
    assert weights["vit_h_14"].licence == "CC-BY-NC-4.0"


def test_the_register_holds_every_classifier_and_video_network() -> None:
    weights = register()
    models = torchvision().models
    assert set(classifier_names()) | set(models.list_models(module=models.video)) < set(weights)
    assert {"efficientnet-lite0", "i3d-flow-charades"} < set(weights)
    assert all(entry.name == name and entry.url.startswith("https://") for name, entry in weights.items())
    assert [name for name, entry in weights.items() if not entry.sha256] == ["i3d-flow-charades"]


def test_files_lie_where_torch_hub_puts_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "hub" / "checkpoints"
    assert find_weights("resnet50").path == tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown weights 'resnet51'; did you mean 'resnet50'"):
        weights_file("resnet51")


def test_a_file_that_is_here_is_used_if_it_is_the_published_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "flow_charades.pt"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(49_800_000)
    assert weights_file("i3d-flow-charades") == path
    with path.open("wb") as file:
        file.truncate(30_000_000)
    with pytest.raises(UserError, match="it has 30000000 bytes, about 49800000 were expected"):
        weights_file("i3d-flow-charades")


def test_weights_of_a_package_need_no_network() -> None:
    weights = find_weights("efficientnet-lite0")
    assert fetch(weights) == weights.path == weights_file("efficientnet-lite0")
    assert check(weights.name, weights, weights.path).problem is None


@pytest.fixture
def squeezenet(server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Weights:
    """The smallest classifier, with random weights, on the server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network: nn.Module = torchvision().models.get_model("squeezenet1_1", weights=None)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    server.content = file.getvalue()
    sha256 = hashlib.sha256(server.content).hexdigest()
    return Weights("squeezenet1_1", server.url, len(server.content), sha256[:8], "BSD-3-Clause", "nothing")


def test_a_file_that_is_not_here_is_fetched_when_it_is_needed(
    squeezenet: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amfir.extract.weights._own", lambda: {squeezenet.name: squeezenet})
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert check(squeezenet.name, squeezenet, weights_file(squeezenet.name)).problem is None
    shown = capsys.readouterr().err
    assert "fetching squeezenet1_1: 100%" in shown
    assert "4.96M/4.96M" in shown


def test_what_was_fetched_loads_into_its_network(server: FileServer, squeezenet: Weights) -> None:
    path = fetch(squeezenet)
    found = check(squeezenet.name, squeezenet, path)
    assert (found.tensors, found.loads, found.problem) == (52, True, None)
    assert found.sha256 == hashlib.sha256(server.content).hexdigest()
    fetch(squeezenet)
    assert len(server.requests) == 1


def test_a_damaged_file_is_not_taken_for_fetched(squeezenet: Weights) -> None:
    path = fetch(squeezenet)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"is not the published one: its SHA-256 .*delete it"):
        fetch(squeezenet)
    assert "its SHA-256" in (check(squeezenet.name, squeezenet, path).problem or "")
    path.write_bytes(b"<html>")
    assert "it has 6 bytes" in (check(squeezenet.name, squeezenet, path).problem or "")


def test_a_check_says_what_is_wrong_with_a_users_file(squeezenet: Weights, tmp_path: Path) -> None:
    path = fetch(squeezenet)
    other = check("squeezenet1_0", None, path)
    assert other.tensors == 52
    assert other.loads is False
    assert "size mismatch" in (other.problem or "")
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    assert check("squeezenet1_1", None, text).problem is not None
    assert check("squeezenet1_1", None, text).tensors is None
    assert check("squeezenet1_1", None, tmp_path / "gone.pth").problem == "the file is not here"


def test_large_networks_are_not_built_for_a_check(squeezenet: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.extract.weights.LARGE_BYTES", 1_000_000)
    found = check("squeezenet1_0", replace(squeezenet, name="squeezenet1_0"), fetch(squeezenet))
    assert (found.tensors, found.loads, found.problem) == (52, None, None)
