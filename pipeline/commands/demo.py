"""`amfir demo`: the whole idea in three minutes."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import json_option, print_json, print_table, resumable, say

if TYPE_CHECKING:
    from ..demo import Demo


@click.command()
@click.option(
    "--out", default="amfir-demo", show_default=True, metavar="DIR", type=click.Path(path_type=Path), help="Where."
)
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Make synthetic clips, extract features, train, and classify classes never seen in training.

    Nothing is downloaded. The clips are a demonstration and a test bed; no figure on them is a benchmark result. Run
    again, it goes on with what is missing.

    \b
    Examples:
      amfir demo
      amfir demo --out demo --json
    """
    with resumable():
        result = _run(out)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result, out)


def _run(out: Path) -> "Demo":
    from ..demo import run_demo
    from ..progress import Bar

    with contextlib.ExitStack() as stack:
        stages: dict[str, Bar] = {}

        def show(stage: str, ready: int, total: int, note: str) -> None:
            if stage not in stages:
                say(f"{len(stages) + 1}. {stage}")
                stack.close()
                stages[stage] = stack.enter_context(Bar("clip" if stage in ("clips", "features") else "episode"))
            stages[stage].update(ready, total, note=note)

        return run_demo(out, show)


def _print(result: "Demo", out: Path) -> None:
    first = result.results[0]
    click.echo(
        f"{first['way']}-way {first['shot']}-shot accuracy on held-out classes, {first['episodes']} episodes, "
        "in % with 95 % intervals (synthetic clips: a demonstration, no benchmark)"
    )
    rows = []
    for found in result.results:
        shares = [*found["modalities"].values(), found]
        rows.append([found["method"], *(f"{share['accuracy']:.1f} +- {share['ci95']:.1f}" for share in shares)])
    print_table(["method", *first["modalities"], "fused"], rows)
    selection = result.results[-1]["selection_accuracy"]
    best = max((name for name in selection if not name.startswith("always")), key=selection.__getitem__)
    better = max((name for name in selection if name.startswith("always")), key=selection.__getitem__)
    click.echo(
        f"where exactly one modality is right, ASI picks it in {selection[best]:.1f} % (criterion {best}); "
        f"max-prob in {selection['max-prob']:.1f} %, {better} in {selection[better]:.1f} %"
    )
    click.echo(f"{result.seconds:.0f} s; picture: {result.picture}; training curves: {out}/runs/*/curves.png")
