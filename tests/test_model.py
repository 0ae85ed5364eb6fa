"""A model's distances and the ways of its gradients, against loops over episodes."""

import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta import model as model_module
from amfir.meta.active import observe
from amfir.meta.episodes import Episodes, EpisodeSampler, EpisodeShape
from amfir.meta.heads import HEADS, Inputs
from amfir.meta.heads.temporal import HeadConfig, TemporalHead
from amfir.meta.methods import ARRANGEMENTS, METHODS, parse_method
from amfir.meta.model import Model, build_model
from amfir.meta.objective import ObjectiveConfig, objective
from amfir.meta.profiles import Profile

from .planted import planted

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = {"rgb": 12, "flow": 8, "audio": 5}
SHAPE = EpisodeShape(3, 2, 2)


def make(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit_model(
    features: dict[str, Tensor], labels: Tensor, classes: range, config: HeadConfig, generator: torch.Generator
) -> Model:
    return build_model(features, labels, classes, METHODS["amfir"], Profile(asdict(config), {}), generator)


def distances(model: Model, features: dict[str, Tensor], episodes: Episodes) -> Tensor:
    """psi with gradient."""
    _, way, per_class = episodes.query.shape
    return model.learn(features, episodes, torch.arange(way).repeat_interleave(per_class))[0]


def embed(model: Model, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """View 0 of every clip."""
    with torch.no_grad():
        return {name: model.head(name).encode(features[name][:, 0].float())[0] for name in model.modalities}


def started(widths: dict[str, int] = THREE, views: int = 1) -> tuple[Model, dict[str, Tensor], Tensor]:
    features, labels = planted(views=views, widths=widths)
    return fit_model(features, labels, range(8), HeadConfig(width=0, dim=6), make()), features, labels


def slow_psi(model: Model, features: dict[str, Tensor], episodes: Episodes) -> Tensor:
    """One pair of a query and a class at a time."""
    batch, way, per_class = episodes.query.shape
    psi = torch.zeros(len(features), batch, way * per_class, way)

    def embed(name: str, clip: int, view: int) -> Tensor:
        embedded = model.head(name).encode(features[name][clip, view][None].float())[0][0]
        return embedded

    for m, name in enumerate(model.modalities):
        for b in range(batch):
            for i in range(way * per_class):
                at = (b, i // per_class, i % per_class)
                view = 0 if episodes.query_views is None else int(episodes.query_views[at])
                query = embed(name, int(episodes.query[at]), view)
                for n in range(way):
                    total = torch.zeros(6)
                    for k in range(episodes.support.shape[2]):
                        view = 0 if episodes.support_views is None else int(episodes.support_views[b, n, k])
                        total += embed(name, int(episodes.support[b, n, k]), view)
                    squared = (query - total / episodes.support.shape[2]).square().sum()
                    psi[m, b, i, n] = squared * model.temperatures[name]
    return psi


# --- distances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [{"rgb": 12}, {"rgb": 12, "flow": 8}, THREE])
@pytest.mark.parametrize("views", [1, 3])
def test_psi_equals_a_loop_over_episodes(widths: dict[str, int], views: int) -> None:
    model, features, labels = started(widths, views)
    sampler = EpisodeSampler(labels, range(12), SHAPE)
    episodes = sampler.sample(3, make(1), views if views > 1 else None)
    with torch.no_grad():
        torch.testing.assert_close(distances(model, features, episodes), slow_psi(model, features, episodes))


def test_psi_takes_half_precision_and_features_in_any_order() -> None:
    model, features, labels = started()
    episodes = EpisodeSampler(labels, range(12), SHAPE).sample(2, make(1))
    half = {name: features[name].half() for name in ("audio", "rgb", "flow")}
    with torch.no_grad():
        torch.testing.assert_close(
            distances(model, half, episodes), distances(model, features, episodes), rtol=0.01, atol=0.05
        )


def test_scoring_takes_view_0_of_every_clip() -> None:
    model, features, labels = started(views=2)
    episodes = EpisodeSampler(labels, range(12), SHAPE).sample(3, make(1))
    torch.testing.assert_close(
        model.eval().scorer(features)(episodes).psi, slow_psi(model, features, episodes).detach()
    )


def test_the_start_has_mean_psi_8_and_sees_only_its_classes() -> None:
    model, features, labels = started()
    for name, values in embed(model, features).items():
        base = values[labels < 8].double()
        mean = model.temperatures[name] * torch.cdist(base, base).square().mean().item()
        assert mean == pytest.approx(8, rel=1e-4)
    spoiled = {name: values.clone() for name, values in features.items()}
    for values in spoiled.values():
        values[labels >= 8] = math.nan
        values[labels < 8, 1:] = math.nan
    again = fit_model(spoiled, labels, range(8), HeadConfig(width=0, dim=6), make())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_many_base_clips_are_sampled_for_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = planted(widths={"rgb": 12})
    monkeypatch.setattr(model_module, "MAX_FIT_CLIPS", 20)
    model = fit_model(features, labels, range(4, 12), HeadConfig(width=0, dim=64), make(3))
    kept = torch.arange(32, 96)[torch.randperm(64, generator=make(3))[:20]]
    expected = TemporalHead(Inputs(3, 12), HeadConfig(width=0, dim=64))
    expected.start(features["rgb"][kept, 0], labels[kept], make())
    torch.testing.assert_close(model.head("rgb").get_buffer("begin"), expected.begin)
    values = embed(model, features)["rgb"][kept].double()
    mean = model.temperatures["rgb"] * torch.cdist(values, values).square().mean().item()
    assert mean == pytest.approx(8, rel=1e-4)


def test_temperatures_can_be_replaced() -> None:
    model, features, labels = started()
    episodes = EpisodeSampler(labels, range(12), SHAPE).sample(2, make(1))
    before, psi = model.temperatures, distances(model, features, episodes).detach()
    model.set_temperatures({"flow": 2 * before["flow"]})
    assert model.temperatures["flow"] == pytest.approx(2 * before["flow"])
    assert model.temperatures["rgb"] == before["rgb"]
    torch.testing.assert_close(
        distances(model, features, episodes).detach(), psi * torch.tensor([1, 2, 1]).view(3, 1, 1, 1)
    )


def test_features_of_another_kind_are_refused_in_one_line() -> None:
    model, features, _ = started()
    with pytest.raises(UserError, match="no features of modality 'flow'; the model needs rgb, flow, audio"):
        model.scorer({"rgb": features["rgb"], "audio": features["audio"]})
    with pytest.raises(UserError, match="'rgb' are 13 wide"):
        model.scorer({**features, "rgb": torch.zeros(4, 1, 3, 13)})
    with pytest.raises(UserError, match="'rgb' have 4 frames; the model was trained on 3 frames"):
        model.scorer({**features, "rgb": torch.zeros(4, 1, 4, 12)})
    with pytest.raises(UserError, match="'rgb' have 3 frames of 9 tokens; the model was trained on 3 frames"):
        model.scorer({**features, "rgb": torch.zeros(4, 1, 3, 9, 12)})


# --- gradients (Eq. 11) ---------------------------------------------------------------------------------------------


def gradients(config: ObjectiveConfig, own: tuple[str, ...] = (), widths: dict[str, int] = THREE) -> dict[str, Tensor]:
    """Each head's gradient of the objective, or only of the cross-entropies of the modalities in `own`."""
    model, features, labels = started(widths)
    episodes = EpisodeSampler(labels, range(8), SHAPE).sample(4, make(2))
    parts = objective(observe(distances(model, features, episodes), SHAPE.query_labels()), model.modalities, config)
    loss = parts.cross_entropy[[model.modalities.index(name) for name in own]].sum() if own else parts.total
    loss.backward()  # type: ignore[no-untyped-call]
    found = {}
    for name in model.modalities:
        values = [p.grad for p in model.head(name).parameters()]
        found[name] = torch.cat([torch.zeros(1) if value is None else value.flatten() for value in values])
    return found


def test_a_cross_entropy_reaches_only_its_own_head() -> None:
    for name, found in ((name, gradients(ObjectiveConfig(), (name,))) for name in THREE):
        assert all(bool(found[other].any()) == (other == name) for other in THREE)


def test_without_distillation_a_head_learns_as_if_it_were_alone() -> None:
    together = gradients(ObjectiveConfig(distillation_weight=0))
    unteached = gradients(ObjectiveConfig(strategy="none"))
    for name in THREE:
        torch.testing.assert_close(together[name], gradients(ObjectiveConfig(), (name,))[name])
        torch.testing.assert_close(together[name], unteached[name])


@pytest.mark.parametrize("teacher", THREE)
def test_a_teacher_learns_from_its_labels_only_and_its_students_from_it_too(teacher: str) -> None:
    alone = gradients(ObjectiveConfig(strategy="none"))
    taught = gradients(ObjectiveConfig(strategy=f"{teacher}-teacher"))
    torch.testing.assert_close(taught[teacher], alone[teacher])
    for student in set(THREE) - {teacher}:
        assert (taught[student] - alone[student]).norm() > 0.01 * alone[student].norm()


def test_a_modality_whose_rivals_form_no_group_gets_its_own_gradient() -> None:
    alone = gradients(ObjectiveConfig(strategy="none"), widths={"rgb": 12, "flow": 8})
    for dropped, kept in (("rgb", "flow"), ("flow", "rgb")):
        config = ObjectiveConfig(criterion="evidence", drop_groups=(dropped,))
        found = gradients(config, widths={"rgb": 12, "flow": 8})
        torch.testing.assert_close(found[kept], alone[kept])
        assert (found[dropped] - alone[dropped]).norm() > 1e-3 * alone[dropped].norm()


def test_one_modality_alone_gets_its_cross_entropy() -> None:
    one = {"rgb": 12}
    torch.testing.assert_close(
        gradients(ObjectiveConfig(), widths=one)["rgb"], gradients(ObjectiveConfig(), ("rgb",), one)["rgb"]
    )


# --- methods --------------------------------------------------------------------------------------------------------


def test_methods_are_the_papers() -> None:
    assert parse_method("temporal-lf").objective.strategy == "none"
    assert parse_method("temporal-lf").fusion == "posterior-mean"
    assert parse_method("otam-lf-logit").fusion == "late"
    assert parse_method("amfar").objective.criterion == "certainty"
    assert parse_method("amfir").objective.criterion == "free-energy"
    assert all(parse_method(name).objective.strategy == "mutual" for name in ("amfar", "amfir"))
    assert all(name == method.name for name, method in METHODS.items())


def test_every_head_goes_with_every_arrangement() -> None:
    for head in HEADS:
        for suffix, arrangement in ARRANGEMENTS.items():
            if (name := head + suffix) in METHODS:
                continue
            method = parse_method(name)
            assert (method.name, method.head, method.early) == (name, head, arrangement.early)
            assert method.single == (suffix == "")
        assert parse_method(f"amfir[{head}]").objective == METHODS["amfir"].objective
        assert parse_method(f"amfar[{head}]").head == head


def test_ami_is_amfir_with_that_head() -> None:
    assert replace(parse_method("otam+ami"), name="") == replace(parse_method("amfir[otam]"), name="")


def test_a_method_with_another_objective_keeps_the_rest() -> None:
    changed = parse_method("amfir").with_objective(drop_groups=("rgb",))
    assert changed.objective == ObjectiveConfig(drop_groups=("rgb",))
    assert changed.fusion == "ami"
    assert parse_method("amfir").objective.drop_groups == ()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("amfir:no-rd", {"drop_groups": ("rgb",)}),
        ("amfir:no-fd", {"drop_groups": ("flow",)}),
        ("amfir:no-amd", {"strategy": "none"}),
        ("amfir:rgb-teacher", {"strategy": "rgb-teacher"}),
        ("amfir[otam]:max-prob", {"criterion": "max-prob"}),
        ("trx+ami:flow-teacher", {"strategy": "flow-teacher"}),
        # AMFAR without absolute certainty forms its groups by the relative one alone, and the other way round.
        ("amfar:no-ac", {"criterion": "certainty-relative"}),
        ("amfar:no-rc", {"criterion": "certainty-absolute"}),
    ],
)
def test_an_ablation_changes_its_arm_and_nothing_else(name: str, changes: dict[str, object]) -> None:
    whole = parse_method(name.partition(":")[0])
    assert parse_method(name) == replace(whole.with_objective(**changes), name=name)


def test_without_ami_the_training_is_that_of_the_whole_method() -> None:
    assert parse_method("amfir:no-ami") == replace(parse_method("amfir"), name="amfir:no-ami", fusion="late")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("amfir:no-amdd", "unknown variant 'no-amdd'; did you mean 'no-amd'"),
        ("amfir:belief", "unknown variant 'belief'"),
        ("amfirr:no-amd", "unknown method 'amfirr'"),
        ("amfir:no-amd:no-rd", "unknown variant 'no-amd:no-rd'"),
        ("otam-lf:no-amd", "'otam-lf' does not distil"),
    ],
)
def test_variants_that_make_no_sense_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_method(name)


@pytest.mark.parametrize(
    ("name", "near"), [("amfirr", "amfir"), ("otamm", "otam"), ("trx-lg", "trx-lf"), ("amfir[otamm]", "otam")]
)
def test_an_unknown_method_is_refused_naming_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"did you mean {near!r}?")):
        parse_method(name)


def test_a_head_alone_takes_one_modality_and_early_fusion_two() -> None:
    features, labels = planted(widths=THREE)
    for name, count, message in (("protonet", 2, "one modality"), ("protonet-ec", 1, "two"), ("protonet-ea", 3, "two")):
        some = {key: features[key] for key in list(features)[:count]}
        with pytest.raises(UserError, match=message):
            build_model(some, labels, range(8), parse_method(name), Profile({}, {}), make())


@pytest.mark.parametrize("name", ["protonet-ec", "protonet-ea", "amefu-net"])
def test_early_fusion_makes_one_branch_of_two_modalities(name: str) -> None:
    features, labels = planted()
    profile = Profile({}, {}, {"heads": 4} if name.endswith("ea") else {})
    model = build_model(features, labels, range(8), parse_method(name), profile, make())
    assert model.modalities == ("rgb+flow",)
    assert model.streams == ("rgb", "flow")
    episodes = EpisodeSampler(labels, range(8), SHAPE).sample(2, make())
    psi = distances(model, features, episodes)
    assert psi.shape == (1, 2, 6, 3)
    psi[..., 0].sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.branch("rgb+flow").early.parameters())  # type: ignore[union-attr]
    torch.testing.assert_close(
        model.eval().scorer(features)(episodes).psi, distances(model, features, episodes).detach()
    )
