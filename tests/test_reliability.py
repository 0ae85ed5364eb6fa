"""Calibration and AUROC against numbers worked by hand and loops over pairs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.meta.active import observe, unreliability
from amfir.meta.reliability import Bins, Calibration, Ranking, Selection, auroc


def two_classes(confidences: list[float]) -> Tensor:
    """Log posteriors [n, 2] whose first class is the likelier one, or as likely."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first, 1 - first], -1).log()


def brute_force(scores: list[float], positive: list[bool]) -> float:
    """Share of the pairs of a positive and a negative in which the former scores higher, ties half."""
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, is_a in zip(scores, positive, strict=True)
        for b, is_b in zip(scores, positive, strict=True)
        if is_a and not is_b
    ]
    return sum(wins) / len(wins)


def test_ece_of_a_case_worked_by_hand() -> None:
    # Five bins. (0.4, 0.6]: 0.55 right, 0.59 wrong. (0.6, 0.8]: 0.7 wrong. (0.8, 1]: 0.85 and 0.95 right, 0.9 wrong.
    calibration = Calibration(bins=5)
    calibration.add(two_classes([0.55, 0.59, 0.7]), torch.tensor([0, 1, 1]))
    calibration.add(two_classes([0.85, 0.95, 0.9]), torch.tensor([0, 0, 1]))
    # gaps: |1/2 - 0.57|, |0 - 0.7|, |2/3 - 0.9|
    expected = 2 / 6 * 0.07 + 1 / 6 * 0.7 + 3 / 6 * (0.9 - 2 / 3)
    assert calibration.ece == pytest.approx(expected, abs=1e-12)
    assert calibration.accuracy == 0.5
    assert calibration.count == 6
    likelihoods = (0.55, 1 - 0.59, 1 - 0.7, 0.85, 0.95, 1 - 0.9)
    assert calibration.nll == pytest.approx(-sum(map(math.log, likelihoods)) / 6, abs=1e-12)
    bins = [(part.low, part.high, part.count) for part in calibration.bins()]
    assert bins == [(0.4, 0.6, 2), (0.6, 0.8, 1), (0.8, 1.0, 3)]
    assert calibration.bins()[0].means["confidence"] == pytest.approx(0.57)


def test_a_value_on_an_edge_belongs_to_the_bin_below() -> None:
    bins = Bins(4, ("x",))
    bins.add(torch.tensor([0.0, 0.25, 0.250001, 0.5, 1.0]), x=torch.arange(5.0))
    assert [(part.low, part.count, part.means["x"]) for part in bins.filled()] == [
        (0.0, 2, 0.5),
        (0.25, 2, 2.5),
        (0.75, 1, 4.0),
    ]


def test_perfectly_calibrated_posteriors_have_no_error_and_overconfident_ones_their_excess() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    calibrated, over = Calibration(), Calibration()
    calibrated.add(two_classes([0.75] * 4), labels)
    over.add(two_classes([0.95] * 4), labels)
    assert calibrated.ece == pytest.approx(0, abs=1e-12)
    assert over.ece == pytest.approx(0.2, abs=1e-12)


def test_chunks_give_what_the_whole_gives_and_the_numbers_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(3 * torch.randn(40, 6, 5, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(5, (40, 6), generator=generator)
    whole, chunked = Calibration(), Calibration()
    whole.add(log_p, labels)
    for part in range(0, 40, 7):
        chunked.add(log_p[part : part + 7], labels[part : part + 7])
    ece = 0.0
    confidences, predicted = log_p.exp().flatten(0, 1).max(-1)
    right = predicted == labels.flatten()
    for b in range(15):
        inside = [i for i, c in enumerate(confidences.tolist()) if b / 15 < c <= (b + 1) / 15]
        if inside:
            ece += abs(sum(right[i].item() - confidences[i].item() for i in inside)) / 240
    assert whole.ece == pytest.approx(ece, abs=1e-12)
    assert chunked.ece == pytest.approx(whole.ece, abs=1e-12)
    assert chunked.nll == pytest.approx(whole.nll, abs=1e-12)


def test_a_given_prediction_counts_instead_of_the_most_probable_class() -> None:
    calibration = Calibration()
    calibration.add(two_classes([0.5]), torch.tensor([1]), torch.tensor([1]))
    assert calibration.accuracy == 1


def test_auroc_is_that_of_a_loop_over_pairs_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        scores = random.integers(0, 6, 40).astype(float).tolist()
        positive = (random.random(40) < 0.3).tolist()
        found = auroc(torch.tensor(scores), torch.tensor(positive))
        assert found == pytest.approx(brute_force(scores, positive), abs=1e-15)


def test_auroc_worked_by_hand() -> None:
    # Pairs: 3 beats 1 and 2; 2 beats 1 and ties with 2: 3.5 of 4.
    assert auroc(torch.tensor([3.0, 2.0, 1.0, 2.0]), torch.tensor([True, True, False, False])) == 0.875


def test_one_sided_labels_have_no_auroc() -> None:
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([True, True])) is None
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([False, False])) is None
    assert Ranking().auroc() is None


def test_a_ranking_keeps_the_first_queries_and_says_that_it_was_cut() -> None:
    ranking = Ranking(limit=3)
    ranking.add(torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]]))
    assert not ranking.cut
    ranking.add(torch.tensor([3.0, 0.0]), torch.tensor([False, True]))
    ranking.add(torch.tensor([0.0]), torch.tensor([True]))
    assert ranking.cut
    assert ranking.auroc() == brute_force([1.0, 2.0, 3.0], [False, True, False])


@pytest.mark.parametrize("modalities", [("rgb", "flow"), ("rgb", "flow", "depth")])
def test_selection_is_that_of_a_loop_over_queries(modalities: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat_interleave(2)
    psi = torch.rand(len(modalities), 30, 6, 3, generator=generator) * 4
    selection = Selection(modalities)
    for part in range(0, 30, 8):
        selection.add(observe(psi[:, part : part + 8]), labels)
    seen = observe(psi)
    value = unreliability(seen, "entropy").flatten(1).tolist()
    right = (psi.argmin(-1) == labels).flatten(1).tolist()
    queries = range(len(right[0]))
    contested = [i for i in queries if sum(hits[i] for hits in right) == 1]
    picked, ranked = 0, []
    for i in contested:
        choice = min(range(len(modalities)), key=lambda m: value[m][i])
        picked += right[choice][i]
    for m in range(len(modalities)):
        lead = [min(value[n][i] for n in range(len(modalities)) if n != m) - value[m][i] for i in contested]
        ranked.append(brute_force(lead, [right[m][i] for i in contested]))
    found = {selected.criterion: selected for selected in selection.found()}
    assert list(found)[-len(modalities) :] == [f"always-{name}" for name in modalities]
    assert selection.contested == len(contested)
    assert found["entropy"].accuracy == picked / len(contested)
    assert found["entropy"].auroc == pytest.approx(sum(ranked) / len(ranked), abs=1e-9)
    for m, name in enumerate(modalities):
        expected = brute_force([-value[m][i] for i in queries], [right[m][i] for i in queries])
        assert found["entropy"].right[name] == pytest.approx(expected, abs=1e-9)
    share = sum(right[0][i] for i in contested) / len(contested)
    assert found["always-rgb"].accuracy == share
    assert found["always-rgb"].auroc == 0.5


def test_with_two_modalities_the_auroc_of_either_is_the_same() -> None:
    psi = torch.rand(2, 20, 4, 2, generator=torch.Generator().manual_seed(2))
    there, back = Selection(("rgb", "flow")), Selection(("flow", "rgb"))
    there.add(observe(psi), torch.tensor([0, 0, 1, 1]))
    back.add(observe(psi.flip(0)), torch.tensor([0, 0, 1, 1]))
    by_name = {found.criterion: found for found in back.found()}
    for found in there.found():
        assert found.auroc == pytest.approx(by_name[found.criterion].auroc, abs=1e-12)


def test_without_contested_queries_nothing_is_claimed() -> None:
    selection = Selection(("rgb", "flow"))
    selection.add(observe(torch.tensor([[[[0.0, 1.0]]], [[[0.5, 1.0]]]])), torch.tensor([0]))
    for found in selection.found():
        assert found.accuracy is None
        assert found.auroc is None
        assert found.right == {"rgb": None, "flow": None}


def test_one_modality_is_not_selected_but_still_judged() -> None:
    psi = torch.rand(1, 20, 4, 2, generator=torch.Generator().manual_seed(3))
    selection = Selection(("rgb",))
    selection.add(observe(psi), torch.tensor([0, 0, 1, 1]))
    found = selection.found()
    assert all(selected.accuracy is None and selected.auroc is None for selected in found)
    assert all(selected.right["rgb"] is not None for selected in found)
    assert not any(selected.criterion.startswith("always") for selected in found)
