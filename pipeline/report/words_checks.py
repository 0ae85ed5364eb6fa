"""The conclusion above each figure of the checks that the papers lack: rows to sentences, see `words`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .marks import grouped
from .wording import MINUS, Score, apart, listing, measure, number, score_of, sentence, shown, stand

Rows = Sequence[Mapping[str, Any]]

ALWAYS = "always-"
"""How the constant choices among the criteria begin."""
LEAST_IN_BIN = 30
"""Queries that a bin needs before a sentence is built on it."""


def say_selection(rows: Rows) -> list[str]:
    """Of one shot: which criterion picks the right modality most often, against always taking one.

    The rows carry no interval, so nothing is called clear.
    """
    known = sorted((r for r in rows if r["selection_accuracy"] is not None), key=lambda r: -r["selection_accuracy"])
    criteria = [row for row in known if not row["criterion"].startswith(ALWAYS)]
    constant = [row for row in known if row["criterion"].startswith(ALWAYS)]
    if not criteria and only_modality(rows):
        return ["With one modality there is nothing to select."]
    if not criteria:
        return ["No criterion could be scored: there was no query that exactly one modality got right."]
    best = criteria[0]
    text = f"where exactly one modality is right, {best['criterion']} picks it most often of all criteria, in "
    found = [sentence(f"{text}{number(best['selection_accuracy'])} % of the cases")]
    if constant:
        base = constant[0]
        name = f"always taking {shown(base['criterion'].removeprefix(ALWAYS))} ({number(base['selection_accuracy'])} %)"
        above = [row for row in criteria if _tenths(row["selection_accuracy"]) > _tenths(base["selection_accuracy"])]
        found.append(f"{len(above)} of {len(criteria)} criteria come out above {name}; these shares carry no interval.")
    scored = [row for row in criteria if row.get("auroc") is not None]
    if scored:
        top = max(scored, key=lambda row: row["auroc"])
        text = (
            f"the highest AUROC is {number(top['auroc'], 2)}, of {top['criterion']}; 0.5 is no knowledge of the query"
        )
        found.append(sentence(text))
    return found


def only_modality(rows: Rows) -> str:
    """The modality of rows of reliability that know a single one; empty where there are more, or none."""
    names = {key.removeprefix("auroc_") for row in rows for key in row if key.startswith("auroc_")}
    return names.pop() if len(names) == 1 else ""


def _tenths(value: float) -> float:
    """As printed, so that no sentence sees a difference that readers cannot."""
    return round(value, 1)


def say_weights(rows: Rows) -> list[str]:
    """Of one shot: what the modality gains where it is weighed most, and least."""
    known = sorted((r for r in rows if (r.get("count") or 0) >= LEAST_IN_BIN and r["gain"] is not None), key=_weight)
    if len(known) < 2:
        return [f"Too few bins hold {LEAST_IN_BIN} queries to compare weights with gains."]
    low, high = known[0], known[-1]
    name = shown(low.get("modality") or "the first modality")
    ends = [f"{signed(row['gain'])} points at a weight of {number(row['weight'], 2)}" for row in (low, high)]
    found = [f"The gain of {name} over the other goes from {ends[0]} to {ends[1]}."]
    steps = [later["gain"] > earlier["gain"] for earlier, later in pairwise(known)]
    found.append(f"It grows with the weight in {sum(steps)} of {len(steps)} steps between neighbouring bins.")
    return found


def say_calibration(rows: Rows) -> list[str]:
    """Of one shot: for each view, the error of its confidence at each temperature, and which is lowest."""
    found = []
    for view in dict.fromkeys(row["view"] for row in rows):
        known = [row for row in rows if row["view"] == view and row["ece"] is not None]
        listed = listing([f"{number(row['ece'])} % ({row['temperatures']})" for row in known], 5)
        if len(known) > 1:
            best = min(known, key=lambda row: float(row["ece"]))
            ties = [row for row in known if _tenths(row["ece"]) == _tenths(best["ece"])]
            tail = (
                f"lowest with {listing([row['temperatures'] for row in ties])}" if len(ties) < len(known) else "level"
            )
            found.append(f"Expected calibration error of {shown(view)}: {listed}; {tail}.")
        elif known:
            found.append(f"Expected calibration error of {shown(view)}: {listed}.")
    return found or ["No calibration error was measured."]


def say_harm(rows: Rows) -> list[str]:
    """Of one harm: what it does to AMI at its highest level, and how AMI then stands to the other views.

    Args:
        rows: Of robustness, of one harm and shot, all levels, all modalities harmed.
    """
    found = []
    for modality in dict.fromkeys(row["modality"] for row in rows):
        part = [row for row in rows if row["modality"] == modality and row["accuracy"] is not None]
        levels = sorted({row["level"] for row in part})
        if len(levels) < 2:
            continue
        first, last = (_views(part, level) for level in (levels[0], levels[-1]))
        where = "both harmed" if modality == "both" else f"{shown(modality)} harmed"
        where = f"{shown(modality)} missing" if part[0].get("harm") == "missing" else f"{where}, level {levels[-1]:g}"
        if "ami" in first and "ami" in last:
            found.append(sentence(f"{where}: {_fall(first['ami'], last['ami'])}{_rivals(last)}"))
    return found or ["No accuracy was measured."]


def _fall(clean: Score, harmed: Score) -> str:
    ends = f"from {measure(clean.accuracy, clean.ci95)} to {measure(harmed.accuracy, harmed.ci95)}"
    if not apart(clean, harmed):
        return f"AMI shows no clear change {ends}"
    return f"AMI {'falls' if harmed.accuracy < clean.accuracy else 'rises'} {ends}"


def _rivals(views: Mapping[str, Score]) -> str:
    ami = views["ami"]
    groups: dict[str, list[str]] = {"above": [], "below": [], "no clear difference from": []}
    for name, score in views.items():
        if name != "ami":
            key = (
                "no clear difference from"
                if not apart(ami, score)
                else "above"
                if ami.accuracy > score.accuracy
                else "below"
            )
            groups[key].append(f"{score.label} ({number(score.accuracy)})")
    parts = [
        f"{'' if key.startswith('no') else 'clearly '}{key} {listing(names, 8)}"
        for key, names in groups.items()
        if names
    ]
    return f": {', '.join(parts)}" if parts else ""


def _views(rows: Rows, level: float) -> dict[str, Score]:
    found = {row["fusion"]: score_of(row, shown(row["fusion"])) for row in rows if row["level"] == level}
    return {name: score for name, score in found.items() if score}


def say_shift(rows: Rows) -> list[str]:
    """Of all harms: whether AMI takes weight from what is harmed alone, and its weight there, clean and harmed.

    Args:
        rows: Of robustness, of AMI, with a `weight_` of each modality. With fewer than two nothing is said: one
            modality has all the weight.
    """
    if not rows or len(weighed(rows)) < 2:
        return []
    moves: dict[str, list[tuple[str, float, float]]] = {}
    for (harm, modality), part in grouped(rows, ("harm", "modality")).items():
        known = [row for row in part if row.get(f"weight_{modality}") is not None]
        if known:
            ends = (min(known, key=_level), max(known, key=_level))
            before, after = (round(row[f"weight_{modality}"], 3) for row in ends)
            moves.setdefault(modality, []).append((harm, before, after))
    if not moves:
        return ["Only harms of all modalities at once were measured; the table lists the weights."]
    fell = [after < before for moved in moves.values() for _, before, after in moved]
    found = [
        "From clean queries to the highest level, AMI takes weight from the one harmed or missing modality "
        f"in {sum(fell)} of {len(fell)} cases."
    ]
    for modality, ends_by_harm in moves.items():
        name = shown(modality)
        listed = listing(
            [f"{harm} {number(before, 3)} to {number(after, 3)}" for harm, before, after in ends_by_harm], 8
        )
        found.append(f"AMI's mean weight of {name} where {name} is harmed, from clean to the highest level: {listed}.")
    return found


def weighed(rows: Rows) -> list[str]:
    """Modalities that rows of robustness hold a weight of."""
    return list(dict.fromkeys(key.removeprefix("weight_") for row in rows for key in row if key.startswith("weight_")))


def _level(row: Mapping[str, Any]) -> float:
    return float(row["level"])


def say_transfer(rows: Rows) -> list[str]:
    """Of one shot: for each pair of data sets, how training elsewhere stands to none, and to training on the target."""
    own = {(row["method"], row["target"]): row for row in rows if row["source"] == row["target"]}
    found = []
    for row in rows:
        trained = score_of(row, f"{row['source']} → {row['target']}")
        if row["source"] == row["target"] or trained is None:
            continue
        bare = score_of({"accuracy": row.get("untrained"), "ci95": row.get("untrained_ci95")}, "untrained prototypes")
        home = own.get((row["method"], row["target"]))
        at_home = score_of(home, f"training on {row['target']} itself") if home else None
        stands = [stand(trained, other) for other in (bare, at_home) if other]
        found.append(f"{trained}{' ' if stands else ''}{' and '.join(stands)}.")
    return found or ["No transfer was measured."]


def say_examples(rows: Rows) -> list[str]:
    """How many clips are shown, and how often AMI weighed the right modality most."""
    counts = {name: sum(row["right"] == name for row in rows) for name in dict.fromkeys(row["right"] for row in rows)}
    if not counts:
        return ["No clip was found that one modality got right alone."]
    listed = listing([f"{count} that only {shown(name)} got right" for name, count in counts.items()])
    found = [f"Shown are {listed}. They were picked for that: they do not tell how frequent such clips are."]
    weighed = [row for row in rows if len(known := weights_of(row)) > 1 and row["right"] in known]
    if weighed:
        right = sum(weights_of(row)[row["right"]] > _others(row) for row in weighed)
        found.append(
            f"AMI gave the modality that was right the larger mean weight in {right} of {len(weighed)} of them."
        )
    return found


def weights_of(row: Mapping[str, Any]) -> dict[str, float]:
    """AMI's weights of an example, by modality; missing ones left out."""
    return {name: weight for name, weight in (row.get("weights") or {}).items() if weight is not None}


def signed(value: float) -> str:
    """A number with its sign."""
    text = number(value)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def _others(row: Mapping[str, Any]) -> float:
    return max(weight for name, weight in weights_of(row).items() if name != row["right"])


def _weight(row: Mapping[str, Any]) -> float:
    return float(row["weight"])
