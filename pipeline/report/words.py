"""The conclusion above each figure of the papers, from its numbers alone: rows to sentences.

A sentence says no more than the numbers beside it: what is highest, what is clearly apart (see `wording`), what moves.
None says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .wording import (
    Score,
    against,
    apart,
    change,
    clearly_above,
    leader,
    listing,
    number,
    points,
    score_of,
    scores,
    sentence,
    shots,
    shown,
)

Rows = Sequence[Mapping[str, Any]]

OURS = "amfir"
"""The method that the report asks about."""
FUSED = ("ec", "ea", "lf", "ami")
"""Arrangements that fuse."""
LEVEL = 0.05
"""Of adjusted probabilities."""


def say_table1(rows: Rows) -> list[str]:
    """Of one shot: who is highest, where AMFIR stands, what fusion adds to single streams.

    Args:
        rows: Of table1, all of one shot, one for each method and arrangement.
    """
    named = [{**row, "label": _entry(row)} for row in rows]
    best = _best_of_each(named)
    found = [sentence(leader(best))]
    ours = next((score for row in named if row["method"] == OURS and (score := score_of(row, _entry(row)))), None)
    if ours and len(best) > 1 and best[0].label != ours.label:
        place = 1 + sum(score.accuracy > ours.accuracy for score in best if score.label != ours.label)
        found.append(
            sentence(f"{against(ours, best[0])}: place {place} of {len(best)} methods, each at its best arrangement")
        )
    return [*found, *_say_fusion(named)]


def _say_fusion(rows: Rows) -> list[str]:
    """For each fused arrangement, for how many heads it is clearly above both of their streams, or below one."""
    table = {(row["method"], row["arrangement"]): score_of(row, row["title"]) for row in rows}
    above, below = [], []
    for name in FUSED:
        heads = [m for m, a in table if a == name and all(table.get((m, kind)) for kind in ("rgb", "flow", name))]
        better = [h for h in heads if all(clearly_above(table[h, name], table[h, s]) for s in ("rgb", "flow"))]
        worse = [h for h in heads if any(clearly_above(table[h, s], table[h, name]) for s in ("rgb", "flow"))]
        if len(heads) > 1:
            above.append(f"{name.upper()} for {len(better)} of {len(heads)} heads")
            below += [f"{name.upper()} for {len(worse)}"] if worse else []
    found = [f"Clearly above both single streams of the same head: {listing(above)}."] if above else []
    return found + ([f"Clearly below the better one of the two: {listing(below)}."] if below else [])


def say_table2(rows: Rows) -> list[str]:
    """Of one base and shot: which parts' removal costs accuracy, which adds, and which makes no clear difference."""
    known = [row for row in rows if row["difference"] is not None and row["method"] != row["base"]]
    costs = sorted((row for row in known if _sign(row) < 0), key=lambda row: row["difference"])
    gains = sorted((row for row in known if _sign(row) > 0), key=lambda row: -row["difference"])
    level = [row for row in known if _sign(row) == 0]
    found = []
    kinds = (("Clearly below", costs), ("Clearly above", gains), ("No clear difference from", level))
    for verb, group in kinds:
        if group:
            listed = listing([f"{row['title']} ({_difference(row)})" for row in group], 12)
            found.append(f"{verb} the full method: {listed}.")
    return found or ["No ablation gave a number to compare."]


def say_figure2(rows: Rows) -> list[str]:
    """Of one method and shot: how each modality's free energy moves, and which ends lower."""
    ends = {}
    for name in dict.fromkeys(row["modality"] for row in rows):
        line = sorted((row for row in rows if row["modality"] == name and row["free_energy"] is not None), key=_episode)
        if line:
            ends[name] = (line[0], line[-1])
    found = [sentence(f"{shown(name)}: {_moves(*pair)}") for name, pair in ends.items()]
    if len(ends) > 1:
        last = sorted((pair[1]["free_energy"], name) for name, pair in ends.items())
        if number(last[0][0], 2) != number(last[1][0], 2):
            listed = listing([f"{shown(name)} {number(value, 2)}" for value, name in last])
            found.append(f"The lowest at the end, and by it the more reliable, is {shown(last[0][1])} ({listed}).")
        else:
            found.append(f"{shown(last[0][1])} and {shown(last[1][1])} end level at {number(last[0][0], 2)}.")
    return found or ["No free energy was recorded."]


def say_over(rows: Rows, key: str, unit: tuple[str, str]) -> list[str]:
    """Of accuracies over a number (shots, ways): how each method moves, and who leads where.

    Args:
        rows: Of figure3 or figure5.
        key: `shot` or `way`.
        unit: Singular and plural.
    """
    places = sorted({row[key] for row in rows if row["accuracy"] is not None})
    if not places:
        return ["No accuracy was measured."]
    found = leads([(_at(place, unit), scores([r for r in rows if r[key] == place], "title")) for place in places])
    for method in dict.fromkeys(row["method"] for row in rows):
        line = sorted(
            (r for r in rows if r["method"] == method and r["accuracy"] is not None), key=lambda r: float(r[key])
        )
        if len(line) > 1:
            first, last = (score_of(row, _at(row[key], unit)) for row in (line[0], line[-1]))
            if first and last:
                found.append(sentence(change(line[0]["title"], first, last)))
    return found


def leads(tables: Sequence[tuple[str, Sequence[Score]]]) -> list[str]:
    """Say who leads at which place: clearly, or with whom no clear difference shows.

    Args:
        tables: Name of the place ("1 shot"), and its scores, the highest first.
    """
    clear: dict[str, list[str]] = {}
    level: dict[str, list[str]] = {}
    for place, ordered in tables:
        if len(ordered) > 1:
            alone = all(apart(ordered[0], score) for score in ordered[1:])
            (clear if alone else level).setdefault(ordered[0].label, []).append(place)
    found = [sentence(f"{name} is clearly highest at {listing(places, 8)}") for name, places in clear.items()]
    for name, places in level.items():
        rivals = [
            score.label
            for place, ordered in tables
            if place in places and ordered[0].label == name
            for score in ordered[1:]
            if not apart(ordered[0], score)
        ]
        found.append(
            sentence(f"at {listing(places, 8)}, {name} is highest with no clear difference from {listing(rivals)}")
        )
    return found


def say_chance(rows: Rows) -> list[str]:
    """Of figure5: how far above chance the highest is where there are most classes."""
    known = [row for row in rows if row["accuracy"] is not None]
    if not known:
        return []
    most = max(row["way"] for row in known)
    best = scores([row for row in known if row["way"] == most], "title")[0]
    chance = 100 / most
    return [f"At {most:g} ways chance is {number(chance)} %; {best} is {number(best.accuracy / chance)} times that."]


def say_figure4(rows: Rows) -> list[str]:
    """Of one shot: which strategy is highest, and how mutual distillation stands to none."""
    ordered = scores(rows, "title")
    found = [sentence(leader(ordered))]
    none = next((score for row in rows if row["strategy"] == "none" and (score := score_of(row, row["title"]))), None)
    mutual = next(
        (score for row in rows if row["strategy"] == "mutual" and (score := score_of(row, row["title"]))), None
    )
    # Where mutual leads clearly, that is said already.
    if none and mutual and len(ordered) > 2 and not all(clearly_above(mutual, s) for s in ordered if s != mutual):
        found.append(sentence(against(mutual, none)))
    return found


def _best_of_each(rows: Rows) -> list[Score]:
    """Each method at its best arrangement, the highest first."""
    found: dict[str, Score] = {}
    for row in rows:
        score = score_of(row, row["label"])
        if score and (row["method"] not in found or score.accuracy > found[row["method"]].accuracy):
            found[row["method"]] = score
    return sorted(found.values(), key=lambda score: -score.accuracy)


def _entry(row: Mapping[str, Any]) -> str:
    arrangement = {"rgb": "RGB", "own": "", **{name: name.upper() for name in FUSED}}
    name = arrangement.get(row["arrangement"], row["arrangement"])
    return f"{row['title']}, {name}" if name and row["method"] not in (OURS, "amfar") else str(row["title"])


def _sign(row: Mapping[str, Any]) -> int:
    """Direction of a paired difference; 0 where its interval or its adjusted p does not settle it."""
    width, p = row["difference_ci95"], row.get("p")
    if width is None or abs(row["difference"]) <= width or (p is not None and p >= LEVEL):
        return 0
    return 1 if row["difference"] > 0 else -1


def _difference(row: Mapping[str, Any]) -> str:
    return points(row["difference"], row["difference_ci95"])


def _moves(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    start, end = (number(row["free_energy"], 2) for row in (first, last))
    if first is last:
        return f"{end} after {last['episode']:,} episodes"
    if start == end:
        return f"as after {first['episode']:,} episodes, so after {last['episode']:,}: {end}"
    verb = "falls" if last["free_energy"] < first["free_energy"] else "rises"
    return f"{verb} from {start} after {first['episode']:,} training episodes to {end} after {last['episode']:,}"


def _episode(row: Mapping[str, Any]) -> float:
    return float(row["episode"])


def _at(place: float, unit: tuple[str, str]) -> str:
    return shots(place) if unit[0] == "shot" else f"{place:g} {unit[0] if place == 1 else unit[1]}"
