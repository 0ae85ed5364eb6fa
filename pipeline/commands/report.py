"""`amfir report`: studies as pages that people read."""

from pathlib import Path

import click

from ...cache.errors import UserError
from ..console import json_option, print_json, say


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="OUT...", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where it goes.")
@click.option("--title", "titles", multiple=True, help="Heading of each OUT, in their order.  [default: its data set]")
@json_option
def report(folders: tuple[Path, ...], target: Path, titles: tuple[str, ...], as_json: bool) -> None:
    """Write what `amfir study` found in OUT as a page, as Markdown with pictures, and as LaTeX.

    DIR/report.html is one file that needs no network: tables that sort, plots that answer the mouse, a conclusion in
    words above each. DIR/report.md with DIR/figures/ says the same for READMEs, DIR/tables/ holds LaTeX. Nothing is
    trained or measured.

    \b
    Examples:
      amfir report studies --to report
      amfir report studies-hmdb51 studies-ucf101 --to report --title HMDB51 --title UCF101
    """
    from ..report.build import build_report
    from ..report.read import read_folder
    from ..report.write import LIMIT, write_report

    if len(titles) > len(folders):
        raise UserError(f"{len(titles)} titles for {len(folders)} folders; --title; give one for each OUT at most")
    made = build_report([read_folder(folder) for folder in folders], titles)
    sizes = write_report(made, target)
    for group in made.groups:
        for title in group.missing:
            say(f"{group.title}, not run: {title}")
    if sizes["report.html"] > LIMIT:
        say(f"report.html has {sizes['report.html'] / 1e6:.1f} MB; fewer folders at a time make smaller pages")
    if as_json:
        print_json({"to": str(target), "files": sizes})
        return
    click.echo(f"{target / 'report.html'}  {sizes['report.html'] / 1e6:.2f} MB")
    click.echo(f"{target / 'report.md'}  with {sum(name.startswith('figures/') for name in sizes)} pictures")
    click.echo(f"{target / 'tables'}  {sum(name.startswith('tables/') for name in sizes)} LaTeX tables")
