"""Numbers into phrases, and what may be said of two of them.

Two accuracies are called apart only where their 95 % intervals do not overlap. The interval of a difference is never
wider than both intervals together, however the two are correlated, so this holds for results on the same episodes as
well; where a study stored the paired difference, that decides instead.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MINUS = "\N{MINUS SIGN}"
MOST_NAMES = 4
"""Longer lists end with "and N others"."""


@dataclass(frozen=True)
class Score:
    """An accuracy with a name."""

    label: str
    """Who got it."""
    accuracy: float
    """Percent."""
    ci95: float | None
    """Half-width of its 95 % interval in points; None: not known."""

    def __str__(self) -> str:
        return f"{self.label} ({measure(self.accuracy, self.ci95)})"


def scores(rows: Sequence[Mapping[str, Any]], label: str) -> list[Score]:
    """Scores of the rows that have an accuracy, the highest first.

    Args:
        rows: With `accuracy` and `ci95`.
        label: The key that names them.
    """
    found = [score_of(row, str(row[label])) for row in rows]
    return sorted((score for score in found if score), key=lambda score: -score.accuracy)


def score_of(row: Mapping[str, Any], label: str) -> Score | None:
    """The score of a row; None where its accuracy is missing."""
    accuracy = row.get("accuracy")
    return None if accuracy is None else Score(label, accuracy, row.get("ci95"))


def apart(first: Score, second: Score) -> bool:
    """Whether two scores' intervals do not overlap; never where one is not known."""
    if first.ci95 is None or second.ci95 is None:
        return False
    return abs(first.accuracy - second.accuracy) > first.ci95 + second.ci95


def clearly_above(first: Score | None, second: Score | None) -> bool:
    """Whether the first is higher, and apart from the second."""
    return first is not None and second is not None and first.accuracy > second.accuracy and apart(first, second)


def leader(ordered: Sequence[Score]) -> str:
    """Say who is highest, and from whom that cannot be told apart.

    Args:
        ordered: The highest first.

    >>> leader([Score("A", 80.1, 0.4), Score("B", 79.9, 0.4), Score("C", 70.0, 0.4)])
    'A (80.1 ± 0.4 %) is highest, with no clear difference from B (79.9 ± 0.4 %)'
    """
    if not ordered:
        return "no accuracy was measured"
    best, rest = ordered[0], ordered[1:]
    if not rest:
        return f"only {best} was measured"
    level = [score for score in rest if not apart(best, score)]
    if not level:
        return f"{best} is clearly highest, ahead of {rest[0]}"
    return f"{best} is highest, with no clear difference from {listing([str(score) for score in level])}"


def against(first: Score, second: Score) -> str:
    """Say how the first stands to the second."""
    return f"{first} {stand(first, second)}"


def stand(first: Score, second: Score) -> str:
    """The same without naming the first."""
    if not apart(first, second):
        return f"shows no clear difference from {second}"
    return f"is clearly {'above' if first.accuracy > second.accuracy else 'below'} {second}"


def change(label: str, first: Score, last: Score) -> str:
    """Say how a value moves from its first point to its last, whose labels name the points.

    >>> change("A", Score("1 shot", 70.0, 0.4), Score("5 shots", 92.0, 0.2))
    'A rises from 70.0 ± 0.4 % at 1 shot to 92.0 ± 0.2 % at 5 shots'
    """
    start, end = (f"{measure(score.accuracy, score.ci95)} at {score.label}" for score in (first, last))
    if not apart(first, last):
        return f"{label} shows no clear change from {start} to {end}"
    return f"{label} {'rises' if last.accuracy > first.accuracy else 'falls'} from {start} to {end}"


def measure(accuracy: float, ci95: float | None) -> str:
    """An accuracy and its interval, in percent."""
    return f"{number(accuracy)} ± {_width(ci95)} %" if ci95 is not None else f"{number(accuracy)} %"


def points(difference: float, ci95: float | None) -> str:
    """A difference of two accuracies, with its sign and as many digits as tables give it: it may be small."""
    text = f"+{number(difference, 2)}" if difference > 0 else number(difference, 2)
    return f"{text} ± {number(ci95, 2)} points" if ci95 is not None else f"{text} points"


def number(value: float, digits: int = 1) -> str:
    r"""A number with a true minus, and no minus before a zero.

    >>> ascii(number(-1.25, 2)), number(-0.01)
    ("'\\u22121.25'", '0.0')
    """
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def listing(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Names in a sentence: "A", "A and B", "A, B and C", "A, B, C, D and 2 others"."""
    names = list(dict.fromkeys(names))
    if len(names) > most:
        rest = len(names) - most
        return f"{', '.join(names[:most])} and {rest} other{'s' if rest > 1 else ''}"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def shots(count: float) -> str:
    """A number of support clips."""
    return f"{count:g} shot" if count == 1 else f"{count:g} shots"


def shown(name: str) -> str:
    """A modality or view as texts call it.

    >>> shown("ami without rgb")
    'AMI without RGB'
    """
    name = "late fusion" if name == "late" else name
    return re.sub(r"\b(?:rgb|ami|amfir|amfar)\b", lambda match: match[0].upper(), name)


def slug(text: str) -> str:
    """Letters, digits and hyphens, for ids and file names.

    >>> slug("HMDB51, split 1/3")
    'hmdb51-split-1-3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


def at_shot(count: float, claims: Sequence[str]) -> str:
    """Claims about one number of shots, as one."""
    return f"{shots(count).capitalize()}: {' '.join(claims)}"


def sentence(text: str) -> str:
    """Begin with a capital, unless the first word is a name in code, and end with a full stop."""
    if not text.split(" ", 1)[0].isalpha():
        return text if text.endswith((".", "?", "!")) else f"{text}."
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def _width(ci95: float) -> str:
    return number(ci95) if ci95 >= 0.05 or ci95 == 0 else "less than 0.05"
