from pathlib import Path

import pytest

from amfir.cache.errors import UserError
from amfir.pipeline.splits import ClassSplit, builtin_splits, load_split, normal_form

CLASSES = [f"class {index}" for index in range(10)]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "split.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(text: str, class_names: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        load_split(text, class_names)
    return str(caught.value)


def builtin_names(name: str) -> list[str]:
    import tomllib

    table = tomllib.loads(builtin_splits()[name].read_text(encoding="utf-8"))
    return [class_name for part in table["classes"].values() for class_name in part]


@pytest.mark.parametrize(
    ("name", "counts", "source"),
    [
        ("hmdb51", (31, 10, 10), "ARN"),
        ("ucf101", (70, 10, 21), "ARN"),
        ("kinetics100", (64, 12, 24), "CMN"),
        ("ssv2-small", (64, 12, 24), "CMN"),
        ("ssv2-full", (64, 0, 24), "OTAM"),
    ],
)
def test_builtin_splits_have_the_published_counts(name: str, counts: tuple[int, int, int], source: str) -> None:
    names = builtin_names(name)
    assert len({normal_form(class_name) for class_name in names}) == len(names) == sum(counts)
    split = load_split(name, names)
    assert (len(split.train), len(split.val), len(split.test)) == counts
    assert source in split.source
    assert split.name == name


@pytest.mark.parametrize(
    ("name", "part", "class_name"),
    [
        ("hmdb51", "train", "brush_hair"),
        ("hmdb51", "test", "pushup"),
        ("ucf101", "train", "ApplyEyeMakeup"),
        ("ucf101", "val", "ApplyLipstick"),
        ("kinetics100", "test", "hurling (sport)"),
        ("ssv2-small", "test", "Opening something"),
        ("ssv2-full", "test", "Picking [something] up"),
    ],
)
def test_builtin_splits_hold_known_classes(name: str, part: str, class_name: str) -> None:
    assert class_name in getattr(load_split(name, builtin_names(name)), part)


def test_there_are_no_other_builtin_splits() -> None:
    assert set(builtin_splits()) == {"hmdb51", "ucf101", "kinetics100", "ssv2-small", "ssv2-full"}


def test_labels_written_another_way_are_found() -> None:
    labels = [name.replace("_", " ").title() for name in builtin_names("hmdb51")] + ["Something Else"]
    split = load_split("hmdb51", labels)
    assert "Brush Hair" in split.train
    assert "Something Else" not in split.train + split.val + split.test
    labels = [name.replace("[", "").replace("]", "") for name in builtin_names("ssv2-full")]
    assert "Picking something up" in load_split("ssv2-full", labels).test


def test_an_exact_name_wins_over_a_similar_one(tmp_path: Path) -> None:
    text = write(tmp_path, '[classes]\ntrain = ["C++"]\ntest = ["C"]')
    split = load_split(text, ["C", "C++", "c#"])
    assert (split.train, split.test) == (("C++",), ("C",))


def test_a_name_that_fits_two_labels_is_refused(tmp_path: Path) -> None:
    text = write(tmp_path, '[classes]\ntrain = ["Push Up"]\ntest = ["run"]')
    assert "'Push Up' could be 'PushUp', 'push_up'" in refusal(text, ["push_up", "PushUp", "run"])


def test_names_of_punctuation_only_do_not_fit_each_other(tmp_path: Path) -> None:
    text = write(tmp_path, '[classes]\ntrain = ["--"]\ntest = ["run"]')
    assert "1 class of the split" in refusal(text, ["++", "run"])


def test_two_names_for_one_label_are_refused(tmp_path: Path) -> None:
    text = write(tmp_path, '[classes]\ntrain = ["push up"]\ntest = ["Push-Up"]')
    assert "train and test share 'PushUp'" in refusal(text, ["PushUp", "run"])


def test_a_toml_file_is_read_with_its_source(tmp_path: Path) -> None:
    text = write(tmp_path, 'source = "by hand"\n[classes]\ntrain = ["b", "a"]\nval = ["c"]\ntest = ["d"]')
    assert load_split(text, ["a", "b", "c", "d", "e"]) == ClassSplit(("b", "a"), ("c",), ("d",), text, "by hand")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[classes]\ntrain = ["a"]\nval = ["c"]\ntest = ["b", "a"]', "train and test share 'a'"),
        ('[classes]\ntrain = ["a", "a"]\ntest = ["b"]', "'a' twice in train"),
        ('[classes]\ntrain = ["a"]\ntest = []', "no test classes"),
        ('[classes]\ntest = ["a"]', "no train classes"),
        ('[classes]\ntrain = ["a"]\ntest = ["b"]\ndev = ["c"]', "unknown key 'dev'"),
        ('[clases]\ntrain = ["a"]', "unknown key 'clases'"),
        ("", "no [classes] table"),
        ('[classes]\ntrain = "a"\ntest = ["b"]', "train is no list of class names"),
        ('[classes]\ntrain = [1]\ntest = ["b"]', "train is no list of class names"),
        ('source = 3\n[classes]\ntrain = ["a"]\ntest = ["b"]', "source is 3"),
        ("[classes", "not readable as TOML"),
    ],
)
def test_bad_toml_is_refused(tmp_path: Path, toml: str, expected: str) -> None:
    text = write(tmp_path, toml)
    message = refusal(text, ["a", "b", "c"])
    assert expected in message
    assert "split.toml" in message


def test_toml_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.toml"
    path.write_bytes(b"[classes]\ntrain = ['caf\xe9']")
    assert "byte 23 is not UTF-8" in refusal(str(path), ["a"])


def test_classes_the_cache_lacks_are_named_with_the_nearest(tmp_path: Path) -> None:
    text = write(tmp_path, '[classes]\ntrain = ["runing"]\ntest = ["walk"]')
    assert "1 class of the split" in refusal(text, ["running", "walk"])
    assert "did you mean 'running'?" in refusal(text, ["running", "walk"])
    message = refusal("hmdb51", ["walk"])
    assert "50 classes of the split 'hmdb51' not in the cache: 'brush_hair', 'cartwheel', " in message
    assert "..." in message


def test_unknown_splits_are_refused_with_the_nearest() -> None:
    assert "did you mean 'hmdb51'?" in refusal("hmbd51", ["a"])
    assert "random:SEED" in refusal("zzz", ["a"])
    assert "no such split file" in refusal("gone.toml", ["a"])
    assert "no such split file" in refusal("./hmdb51", ["a"])


def test_random_halves_are_seeded_disjoint_and_whole() -> None:
    splits = [load_split(f"random:{seed}", CLASSES) for seed in range(6)]
    for split in splits:
        assert len(split.train) == len(split.test) == 5
        assert sorted(split.train + split.test) == CLASSES
        assert split.val == ()
    assert len({split.train for split in splits}) == 6
    shuffled = [*reversed(CLASSES), *CLASSES]
    assert load_split("random:3", shuffled) == splits[3]


def test_an_odd_class_goes_to_the_base_half() -> None:
    split = load_split("random:0", CLASSES[:7])
    assert (len(split.train), len(split.test)) == (4, 3)


@pytest.mark.parametrize("text", ["random:", "random:x", "random:-1", "random:SEED", "random:1.5"])
def test_a_bad_seed_is_refused(text: str) -> None:
    assert "write a whole number, as in random:0" in refusal(text, CLASSES)


def test_one_class_cannot_be_halved() -> None:
    assert "1 classes cannot be halved" in refusal("random:0", ["a"])


def test_a_csv_with_a_split_column_is_a_split(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("path,label,split\na,run,train\nb,walk,test\n")
    split = load_split(str(path), ["run", "walk"])
    assert (split.train, split.val, split.test) == (("run",), (), ("walk",))
    path.write_text("path,label\na,run\n")
    assert "no split column" in refusal(str(path), ["run"])


def test_a_tenth_of_the_base_classes_is_held_out() -> None:
    split = ClassSplit(tuple(f"{index:02d}" for index in range(64)), (), ("x",), "s", "")
    train, val = split.hold_out(seed=1)
    assert len(val) == 6
    assert sorted(train + val) == sorted(split.train)
    assert list(train) == sorted(train)
    assert split.hold_out(seed=1) == (train, val)
    assert split.hold_out(seed=2)[1] != val


@pytest.mark.parametrize(("classes", "held"), [(31, 3), (12, 2), (8, 2), (7, 0), (5, 0)])
def test_two_classes_are_held_out_at_least_and_none_where_that_costs_too_much(classes: int, held: int) -> None:
    split = ClassSplit(tuple(map(str, range(classes))), (), ("x",), "s", "")
    train, val = split.hold_out()
    assert (len(train), len(val)) == (classes - held, held)


def test_named_validation_classes_are_used_as_they_are() -> None:
    split = ClassSplit(tuple(map(str, range(20))), ("v",), ("x",), "s", "")
    assert split.hold_out() == (split.train, ("v",))
