"""`amfir train` and `amfir eval` on a small planted cache, from the command line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from amfir.cache import Row, StreamSpec, StreamWriter
from amfir.meta.active import FUSIONS
from amfir.pipeline.cli import cli

from .plantedcache import plant

SMALL = ("--way", "3", "--query", "2")
TRAIN = ("--split", "random:0", *SMALL, "--episodes", "32")
EVAL = ("--split", "random:0", *SMALL, "--episodes", "300")
EVALUATION_KEYS = [
    "method",
    "way",
    "shot",
    "query",
    "episodes",
    "accuracy",
    "ci95",
    "modalities",
    "fusions",
    "selection_accuracy",
    "seconds",
    "episodes_per_second",
    "top5",
    "class_accuracy",
    "per_class",
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def reported(*arguments: object) -> dict[str, Any]:
    """The one object that a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    """The one line of a command that ends with code 2."""
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("seconds", "episodes_per_second", "run")}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "cache", classes=10)


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, reported("train", root, *TRAIN, "--run", folder)


@pytest.fixture
def folder(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_training_writes_the_model_its_state_a_log_and_curves(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = trained
    names = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert names == {"model.json", "training.json", "log.csv", "curves.png"}
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert summary["seconds"] > 0
    assert summary["temperatures"].keys() == {"rgb", "flow"}
    assert min(summary["temperatures"].values()) > 0
    assert {key: value for key, value in summary.items() if key not in ("seconds", "temperatures")} == {
        "run": str(folder),
        "method": "amfir",
        "way": 3,
        "shot": 1,
        "query": 2,
        "episodes": 32,
        "learning_rate": 0.001,
        "best_episodes": 32,
        "validation": None,
    }


def test_the_same_seed_trains_and_evaluates_the_same(
    root: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, summary = trained
    again = reported("train", root, *TRAIN, "--run", tmp_path / "again")
    assert without_time(again) == without_time(summary)
    first, second = (reported("eval", root, *EVAL, "--run", path) for path in (folder, tmp_path / "again"))
    assert without_time(first) == without_time(second)
    other = reported("eval", root, *EVAL, "--run", folder, "--seed", "1")
    assert without_time(other) != without_time(first)


def test_an_evaluation_reports_every_modality_fusion_and_criterion(
    root: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    found = reported("eval", root, *EVAL, "--run", trained[0])
    assert list(found) == EVALUATION_KEYS
    assert (found["method"], found["way"], found["shot"], found["query"]) == ("amfir", 3, 1, 2)
    assert found["episodes"] == 300
    assert list(found["modalities"]) == ["rgb", "flow"]
    assert list(found["fusions"]) == list(FUSIONS)
    for share in (*found["modalities"].values(), *found["fusions"].values()):
        assert list(share) == ["accuracy", "ci95"]
        assert 0 < share["ci95"] < share["accuracy"] < 100
    assert {"accuracy": found["accuracy"], "ci95": found["ci95"]} == found["fusions"]["ami"]
    assert {"always-rgb", "always-flow", "free-energy", "max-prob", "belief"} <= found["selection_accuracy"].keys()
    assert found["selection_accuracy"]["always-rgb"] + found["selection_accuracy"]["always-flow"] == pytest.approx(100)
    assert found["episodes_per_second"] == pytest.approx(300 / found["seconds"])


def test_without_a_run_nearest_prototypes_are_evaluated(root: Path) -> None:
    found = reported("eval", root, *EVAL)
    assert list(found) == EVALUATION_KEYS
    assert found["method"] == "untrained"
    assert list(found["fusions"]) == [name for name in FUSIONS if name != "belief"]
    assert found["accuracy"] == found["fusions"]["late"]["accuracy"] > 100 / 3
    assert reported("eval", root, *EVAL, "--method", "amfar")["accuracy"] == found["fusions"]["ami"]["accuracy"]


def test_the_reported_fusion_is_the_one_asked_for(root: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    run_of = ("eval", root, *EVAL, "--run", trained[0])
    plain = reported(*run_of)
    for fusion in FUSIONS:
        assert reported(*run_of, "--fusion", fusion)["accuracy"] == plain["fusions"][fusion]["accuracy"]
    by_method = reported(*run_of, "--method", "temporal-lf")
    assert by_method["accuracy"] == plain["fusions"]["posterior-mean"]["accuracy"]
    chosen = reported(*run_of, "--fusion", "select", "--criterion", "evidence-raw")["fusions"]["select"]
    assert chosen != plain["fusions"]["select"]


def test_shots_and_queries_are_counted_for_each_class(root: Path) -> None:
    found = reported(
        "eval", root, "--split", "random:0", "--way", "2", "--shot", "4", "--query", "2", "--episodes", "50"
    )
    assert (found["way"], found["shot"], found["query"]) == (2, 4, 2)
    assert found["accuracy"] * 50 * 4 / 100 == pytest.approx(round(found["accuracy"] * 50 * 4 / 100))
    line = refused("eval", root, "--split", "random:0", "--shot", "4", "--query", "3")
    assert "has 6 clips; an episode of 4 shot + 3 queries needs 7; lower --query" in line


def test_one_modality_alone_trains_and_is_evaluated(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rgb"
    reported("train", root, *TRAIN, "--run", folder, "--streams", "rgb")
    for more in ((), ("--run", folder, "--streams", "rgb"), ("--run", folder)):
        found = reported("eval", root, *EVAL, *(more or ("--streams", "rgb")))
        assert list(found["modalities"]) == ["rgb"]
        assert found["selection_accuracy"] == {}
        assert all(share == found["modalities"]["rgb"] for share in found["fusions"].values())


def test_a_run_on_one_stream_takes_the_clips_that_the_others_lack(root: Path, tmp_path: Path) -> None:
    """Which clips test a run does not depend on streams that it does not use."""
    lacking = [f"class {number}/005.mp4" for number in range(10)]
    both = plant(tmp_path / "both", without={"flow": lacking})
    folder = tmp_path / "run"
    reported("train", both, *TRAIN, "--run", folder, "--streams", "rgb")
    assert without_time(reported("eval", both, *EVAL, "--run", folder)) == without_time(
        reported("eval", root, *EVAL, "--run", folder)
    )


def test_the_text_for_people_names_what_was_found(
    root: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    result = run("eval", root, *EVAL, "--run", trained[0])
    assert result.stdout.startswith("amfir, 3-way 1-shot, 300 episodes: ")
    for name in ("rgb", "flow", *(f"fused: {fusion}" for fusion in FUSIONS), "always-rgb", "free-energy"):
        assert any(line.startswith(f"{name} ") for line in result.stdout.splitlines()), name
    assert result.stderr == ""
    result = run("eval", root, *EVAL, "--streams", "flow")
    assert "right modality" not in result.stdout
    result = run("train", root, *TRAIN, "--run", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("amfir: 32 episodes, best after 32 (no validation classes, learning rate 0.001), ")
    assert "32/32" in result.stderr


def test_validation_classes_are_held_out_and_reported(tmp_path: Path) -> None:
    root = plant(tmp_path / "cache", classes=16, clips=3)
    result = run(
        "train", root, "--split", "random:0", "--way", "2", "--query", "1", "--episodes", "16", "--run", tmp_path / "r"
    )
    assert result.exit_code == 0, result.stderr
    assert "(validation " in result.stdout
    provenance = json.loads((tmp_path / "r" / "model.json").read_text())["provenance"]["split"]
    assert (len(provenance["train"]), len(provenance["val"])) == (6, 2)


@pytest.mark.parametrize("method", ["amfar", "temporal-lf"])
def test_every_method_trains_and_fuses_its_own_way(root: Path, tmp_path: Path, method: str) -> None:
    assert reported("train", root, *TRAIN, "--run", tmp_path / "run", "--method", method)["method"] == method
    found = reported("eval", root, *EVAL, "--run", tmp_path / "run")
    assert found["method"] == method
    assert found["accuracy"] == found["fusions"]["posterior-mean" if method == "temporal-lf" else "ami"]["accuracy"]


@pytest.mark.parametrize(
    "options",
    [
        ("--criterion", "entropy"),
        ("--strategy", "flow-teacher"),
        ("--strategy", "none"),
        ("--optimizer", "sgd", "--learning-rate", "0.01"),
        ("--set", "head.hold=0"),
        ("--profile", "paper"),
        ("--set", "training.weight_decay=0.5"),
        ("--seed", "1"),
    ],
)
def test_every_setting_of_an_ablation_changes_the_training(
    root: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    reported("train", root, *TRAIN, "--run", folder, *options)
    tensors, others = (load_file(next(path.glob("model-*.safetensors"))) for path in (folder, trained[0]))
    assert not torch.equal(tensors["branches.rgb.head.weight"], others["branches.rgb.head.weight"])


def test_the_fusion_that_validation_looked_at_is_reported_later(root: Path, tmp_path: Path) -> None:
    reported("train", root, *TRAIN, "--run", tmp_path / "run", "--fusion", "posterior-mean")
    found = reported("eval", root, *EVAL, "--run", tmp_path / "run")
    assert found["accuracy"] == found["fusions"]["posterior-mean"]["accuracy"]


def test_all_ways_are_all_novel_classes(root: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    for more in ((), ("--run", trained[0])):
        few = ("--split", "random:0", "--query", "2", "--episodes", "40", *more)
        found, named = (reported("eval", root, *few, "--way", way) for way in ("all", "5"))
        assert without_time(found) == without_time(named)
        assert found["way"] == 5
        assert found["top5"] == 100.0
        assert list(found["per_class"].values()) == pytest.approx(
            [found["per_class"][name] for name in sorted(found["per_class"])]
        )
        # Every class is asked for equally often.
        assert found["class_accuracy"] == pytest.approx(found["accuracy"])
    assert "'al' is not a valid integer" in refused("eval", root, *few, "--way", "al")
    assert "'all' is not a valid integer" in refused("train", root, *TRAIN, "--way", "all", "--run", "r")


def test_a_generalised_evaluation_reports_both_kinds_of_queries(
    root: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    wanted = ("eval", root, *EVAL, "--run", trained[0], "--generalised")
    found = reported(*wanted)
    assert list(found) == [*EVALUATION_KEYS, "generalised"]
    joint = found["generalised"]
    assert joint["base_classes"] == 5
    assert joint["base_clips"] == 15
    assert joint["base_clips_trained_the_head"] is True
    assert joint["novel_alone"] == {"accuracy": found["accuracy"], "ci95": found["ci95"]}
    assert 0 < joint["novel"]["accuracy"] < joint["novel_alone"]["accuracy"]
    a, b = (joint[name]["accuracy"] for name in ("base", "novel"))
    assert joint["harmonic_mean"]["accuracy"] == pytest.approx(2 * a * b / (a + b))
    text = run(*wanted).stdout
    assert "base clips trained the head" in text
    assert f"harmonic mean  {joint['harmonic_mean']['accuracy']:.2f}" in text


@pytest.mark.parametrize("method", ["amfir", "otam-lf"])
def test_hard_episodes_are_drawn_for_any_head_and_without_one(
    root: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path, method: str
) -> None:
    reported("train", root, *TRAIN, "--method", method, "--run", tmp_path / "run")
    for more in (("--run", tmp_path / "run"), ()):
        easy, hard = (reported("eval", root, *EVAL, *more, "--sampler", name) for name in ("uniform", "hard"))
        assert hard["accuracy"] != easy["accuracy"]


def test_details_are_written_beside_the_same_figures(root: Path, tmp_path: Path) -> None:
    found = reported("eval", root, *EVAL, "--details", tmp_path / "a" / "b")
    assert without_time(found) == without_time(reported("eval", root, *EVAL))
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert names == {"confusion.csv", "classes.csv", "confusion.png", "episodes.parquet"}


def test_a_long_evaluation_shows_how_far_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("eval", root, *EVAL).stderr == ""
    monkeypatch.setattr("amfir.pipeline.commands.eval.PATIENCE_SECONDS", 0.0)
    assert "300/300" in run("eval", root, *EVAL).stderr


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("train", "--run", "RUN"), ("eval",), ("eval", "--run", "TRAINED")])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--way", "1"), "way is 1; an episode needs at least 2; raise --way"),
        (("--way", "0"), "way is 0"),
        (("--shot", "0"), "shot is 0; an episode needs at least 1; raise --shot"),
        (("--shot", "-1"), "shot is -1"),
        (("--query", "0"), "query is 0; an episode needs at least 1; raise --query"),
        (("--query", "-5"), "query is -5"),
        (("--episodes", "-1"), "episodes is -1"),
        (("--episodes", "0"), "episodes is 0"),
        (("--seed", "-1"), "seed is -1"),
        (("--way", "x"), "'x' is not a valid integer"),
        (("--way", "6"), "way is 6, but there are 5 classes to draw from; lower --way"),
        (("--split", "random:x"), "'x' is no seed"),
        (("--split", "hmdb52"), "unknown split 'hmdb52'; did you mean 'hmdb51'?"),
        (("--split", "hmdb51"), "classes of the split 'hmdb51' not in the cache: "),
        (("--split", "gone.toml"), "no such split file: 'gone.toml'"),
        (("--method", "amfri"), "unknown method 'amfri'; did you mean 'amfir'?"),
        (("--criterion", "fre-energy"), "unknown criterion 'fre-energy'; did you mean 'free-energy'?"),
        (("--fusion", "lite"), "unknown fusion 'lite'; did you mean 'late'?"),
        (("--streams", "rgb,depth"), "no stream 'depth' in "),
    ],
)
def test_bad_options_are_one_line(
    root: Path,
    trained: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    command: tuple[str, ...],
    options: tuple[str, ...],
    expected: str,
) -> None:
    paths = {"RUN": str(tmp_path / "run"), "TRAINED": str(trained[0])}
    name, *where = (paths.get(word, word) for word in command)
    assert expected in refused(name, root, *(TRAIN if name == "train" else EVAL), *where, *options)
    assert not (tmp_path / "run" / "training.json").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--optimizer", "adamx"), "unknown optimizer 'adamx'; did you mean 'adam'?"),
        (("--learning-rate", "0"), "learning rate is 0.0; each must be above 0"),
        (("--learning-rate", "nan"), "learning rate is nan"),
        (("--learning-rate", "inf"), "learning rate is inf"),
        (("--set", "head.hold=-1"), "hold is -1.0; --set; sizes and weights cannot be negative"),
        (("--method", "otam-lf", "--set", "head.scale=nan"), "scale is nan; --set; give a finite number"),
        (("--set", "early.project=8"), "'early.project=8' changes nothing; --set; method 'amfir' has no early fusion"),
        (("--set", "head.dropout=1.5"), "dropout is 1.5; --set; give 0 to 1"),
        (("--method", "trx-lf", "--set", "head.dim=0"), "dim is 0; head of tuples; give 1 or more"),
        (("--set", "head.holt=1"), "unknown setting of head 'temporal' 'holt'; did you mean 'hold'?"),
        (("--set", "head.dim=wide"), "dim is 'wide'; --set; give int such as 512"),
        (("--set", "training.rate=1"), "unknown setting of training 'rate'"),
        (("--set", "heads.dim=1"), "unknown part of a profile 'heads'; did you mean 'head'?"),
        (("--set", "dim=1"), "cannot read 'dim=1'; --set; write head.NAME=VALUE"),
        (("--profile", "fare"), "unknown profile 'fare'; did you mean 'fair'?"),
        (("--method", "otamm-lf"), "did you mean 'otam-lf'?"),
        (("--method", "otam"), "'otam' looks at one modality and there are rgb, flow; give --streams rgb"),
        (("--method", "otam-ec", "--streams", "rgb"), "'otam-ec' fuses two modalities; there are 1"),
        (("--method", "strm-lf"), "head 'strm' needs spatial tokens"),
        (("--strategy", "both"), "unknown strategy 'both'; known: mutual, none, <modality>-teacher"),
        (("--strategy", "rbg-teacher"), "unknown modality 'rbg'; did you mean 'rgb'?"),
        (("--strategy", "flow-teacher", "--streams", "rgb"), "unknown modality 'flow'"),
        (("--criterion", "belief"), "'belief' needs a fitted belief"),
        (("--fusion", "belief"), "'belief' needs a fitted belief"),
    ],
)
def test_bad_options_of_training_are_one_line(
    root: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    assert expected in refused("train", root, *TRAIN, "--run", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_bad_options_of_evaluation_are_one_line(root: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    assert "'otam-lf' has to be trained; --method without --run" in refused("eval", root, *EVAL, "--method", "otam-lf")
    assert "episodes is 0; an accuracy needs at least 1; raise --episodes" in refused(
        "eval", root, *EVAL, "--episodes", "0"
    )
    assert "'belief' needs a fitted belief" in refused("eval", root, *EVAL, "--fusion", "belief")
    assert "unknown sampler 'herd'; did you mean 'hard'?" in refused("eval", root, *EVAL, "--sampler", "herd")
    assert "unknown engine 'rey'; did you mean 'ray'?" in refused("eval", root, *EVAL, "--engine", "rey")
    assert "it goes with --engine ray" in refused("eval", root, *EVAL, "--address", "local")
    assert "workers is 0; an evaluation needs" in refused("eval", root, *EVAL, "--workers", "0")
    assert "--generalised needs a trained model; --run" in refused("eval", root, *EVAL, "--generalised")
    group_only = ("--fusion", "select", "--criterion", "certainty")
    assert "criterion 'certainty' only forms groups" in refused("eval", root, *EVAL, *group_only)
    oracle = ("--fusion", "select", "--criterion", "evidence")
    assert "at test there are none" in refused("eval", root, *EVAL, "--run", trained[0], *oracle)


@pytest.mark.parametrize("command", [("train", "--run", "RUN"), ("eval",)])
def test_splits_that_do_not_fit_are_one_line(root: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *where = command
    run_of = [str(tmp_path / "run") if word == "RUN" else word for word in where]
    split = tmp_path / "split.toml"

    def told(classes: str) -> str:
        split.write_text(f"[classes]\n{classes}")
        return refused(name, root, "--split", split, *run_of)

    assert "train and test share 'class 1'" in told('train = ["class 0", "class 1"]\ntest = ["class 1"]')
    lacking = told('train = ["class 0", "clas 1"]\ntest = ["class 2"]')
    assert "1 class of the split" in lacking
    assert "not in the cache: 'clas 1'; did you mean 'class 1'?" in lacking
    assert "no test classes" in told('train = ["class 0", "class 1"]')


@pytest.mark.parametrize("command", ["train", "eval"])
def test_caches_that_do_not_fit_are_one_line(tmp_path: Path, command: str) -> None:
    where = ("--run", tmp_path / "run") if command == "train" else ()
    assert "no amfir cache" in refused(command, tmp_path / "gone", *EVAL, *where)
    (tmp_path / "file").touch()
    assert "no amfir cache" in refused(command, tmp_path / "file", *EVAL, *where)
    assert "no amfir cache" in refused(command, tmp_path, *EVAL, *where)
    root = plant(tmp_path / "cache", streams=("rgb",), classes=4, clips=2)
    line = refused(command, root, *EVAL, *where, "--streams", "flow")
    assert "no stream 'flow' in " in line
    assert f"extract it: amfir extract VIDEOS --cache {root} --streams flow" in line
    segment = next((root / "rgb").rglob("*.h5"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    refused(command, root, *EVAL, *where)


def test_a_used_run_folder_is_refused_and_left_as_it_is(root: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert f"{folder} already holds a run; add --resume" in refused("train", root, *TRAIN, "--run", folder)
    line = refused("train", root, *TRAIN, "--run", folder, "--resume", "--shot", "2")
    assert "was started with " in line
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert reported("train", root, *TRAIN, "--run", folder, "--resume")["episodes"] == 32


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_run_folder_that_is_a_file_is_refused(root: Path, tmp_path: Path, resume: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"{path} is no directory; --run; choose another one" in refused(
            "train", root, *TRAIN, "--run", path, *resume
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_is_not_tested_on_classes_that_trained_it(root: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    line = refused("eval", root, *EVAL, "--split", "random:1", "--run", trained[0])
    assert "test classes of 'random:1' trained the run, such as 'class " in line
    assert "use the split it was trained with: random:0" in line


def test_a_run_trained_on_another_spec_is_refused_with_both_sides(
    trained: tuple[Path, dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    other = plant(tmp_path / "cache", backbone="other")
    line = refused("eval", other, *EVAL, "--run", trained[0])
    assert 'another rgb stream: settings.backbone.name: "planted" in training, "other" here; ' in line
    line = refused("train", other, *TRAIN, "--run", folder, "--resume")
    assert "planted" in line
    assert "other" in line


def test_a_run_without_its_streams_is_refused(root: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    line = refused("eval", root, *EVAL, "--run", trained[0], "--streams", "rgb")
    assert "no features of modality 'flow'; the model needs rgb, flow" in line
    rgb = plant(tmp_path / "rgb", streams=("rgb",))
    assert "no stream 'flow' in " in refused("eval", rgb, *EVAL, "--run", trained[0])


def test_runs_with_and_without_spatial_tokens_are_fused(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for stream in ("rgb", "flow"):
        with StreamWriter(root, StreamSpec(stream, 3, 1, 6, {}, tokens=4)) as writer:
            for clip in range(60):
                label = f"class {clip % 10}"
                mean = np.random.default_rng((len(stream), clip % 10)).normal(size=6)
                features = mean + np.random.default_rng((len(stream), clip)).normal(size=writer.spec.row_shape)
                writer.add(Row(f"{clip}.mp4", label, features.astype(np.float16), np.zeros((1, 3)), 1, 1))
    small = {"strm": ("--set", "head.dim=6"), "protonet": ()}
    alone = {}
    for method, stream in (("strm", "rgb"), ("protonet", "flow")):
        folder = tmp_path / stream
        reported("train", root, *TRAIN, "--method", method, "--streams", stream, *small[method], "--run", folder)
        alone[stream] = reported("eval", root, *EVAL, "--run", folder)["accuracy"]
    for order in (("rgb", "flow"), ("flow", "rgb")):
        both = reported("eval", root, *EVAL, *(part for name in order for part in ("--run", tmp_path / name)))
        assert {name: share["accuracy"] for name, share in both["modalities"].items()} == alone


def test_a_head_without_prototypes_is_not_generalised(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reported("train", root, *TRAIN, "--method", "otam-lf", "--run", folder)
    line = refused("eval", root, *EVAL, "--run", folder, "--generalised")
    assert "head 'otam' has no vector prototypes; --generalised puts those of base and novel classes together" in line


def test_a_missing_run_is_refused(root: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path):
        assert f"no model in {folder}; make one with: amfir train" in refused("eval", root, *EVAL, "--run", folder)


@pytest.mark.parametrize(("command", "name"), [("eval", "model"), ("train", "training")])
@pytest.mark.parametrize("damage", ["empty json", "cut json", "list", "no tensors", "cut tensors", "header", "keys"])
def test_a_damaged_run_is_refused(root: Path, folder: Path, command: str, name: str, damage: str) -> None:
    description = folder / f"{name}.json"
    text = description.read_text()
    tensors = folder / json.loads(text)["tensors"]
    if damage == "no tensors":
        tensors.unlink()
    elif damage == "cut tensors":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    elif damage == "header":
        tensors.write_bytes(b"\xff" * 8 + tensors.read_bytes()[8:])
    else:
        wrong = {"empty json": "", "cut json": text[:-20], "list": "[]", "keys": f'{{"tensors": "{tensors.name}"}}'}
        description.write_text(wrong[damage])
    options = (*TRAIN, "--resume") if command == "train" else EVAL
    line = refused(command, root, *options, "--run", folder)
    assert f"{name} is damaged" in line
    assert f"in {folder}; train again into another --run" in line
