"""`amfir search`: the nearest clips of a gallery, by the heads of a trained run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError
from ..console import json_option, print_json, print_table, resumable, say
from ..progress import Bar

if TYPE_CHECKING:
    from ...meta.search import PrototypeIndex
    from ..embedder import Embedder, Progress
    from ..gallery import Gallery
    from ..search_queries import Queries, Tally
    from ..search_rows import RowFile

PATIENCE_SECONDS = 2.0
"""What takes longer shows a bar."""

_path = click.Path(path_type=Path)


@click.command()
@click.argument("gallery", metavar="GALLERY", type=_path)
@click.option(
    "--run",
    "folders",
    metavar="DIR",
    multiple=True,
    required=True,
    type=_path,
    help="What amfir train wrote, of a method with prototypes; several, one for each modality, go together.",
)
@click.option(
    "--queries", metavar="CACHE", type=_path, help="Clips that ask.  [default: each of the gallery asks for the others]"
)
@click.option("--split", help="Take the clips of its test classes only: a file, random:SEED, or a built-in split.")
@click.option("--per", default="clip", show_default=True, help="What a prototype is: clip, or class (its clips' mean).")
@click.option("-k", "--k", default=5, show_default=True, help="Neighbours of each query.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="torch, flat (faiss, exact), ivf, hnsw (faiss, approximate), or auto: the fastest exact one.",
)
@click.option(
    "--index", metavar="DIR", type=_path, help="Where the index is kept.  [default: search in the first --run]"
)
@click.option("--rebuild", is_flag=True, help="Make the index anew.")
@click.option("--out", metavar="FILE", type=_path, help="Write the neighbours: .csv or .parquet, a row each.")
@json_option
def search(gallery: Path, as_json: bool, **settings: Any) -> None:
    """Find the clips of the cache GALLERY that are nearest to each query, as a run's heads embed them.

    Every query weighs the modalities itself, by AMI. Its posteriors are normalised over all prototypes (exact), over
    the nearest ones where the others cannot matter (bounded), or over the nearest ones (candidates). Where the gallery
    knows the queries' labels, the shares of queries are printed whose label is that of the nearest prototype (top 1),
    or among those of the five nearest (top 5): fused, and by each modality alone.

    \b
    The index is kept in RUN/search, and read from there the next time.
    --out has a row a query and rank: ids, labels, distance, psi and weight of each modality.

    \b
    Examples:
      amfir search features --run run
      amfir search features --run run --split random:0 --out neighbours.csv
      amfir search features --run run --queries more-features -k 20 --out neighbours.parquet
      amfir search features --run run --queries more-features --per class --json
      amfir search features --run proto-rgb --run proto-flow --backend ivf --index index
    """
    with resumable():
        found = _run(gallery, **settings)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _run(
    cache: Path,
    *,
    folders: tuple[Path, ...],
    queries: Path | None,
    split: str | None,
    per: str,
    k: int,
    backend: str,
    index: Path | None,
    rebuild: bool,
    out: Path | None,
) -> dict[str, Any]:
    from ..embedder import load_embedder
    from ..gallery import Place, open_gallery, require_backend, take_index
    from ..search_queries import Tally, open_queries
    from ..search_rows import require_suffix

    if k < 1:
        raise UserError(f"k is {k}; -k; ask for at least 1 neighbour")
    require_backend(backend)
    if out:
        require_suffix(out)
    embedder = load_embedder(folders)
    gallery = open_gallery(embedder, cache, split, per)
    asked = open_queries(embedder, gallery, queries)
    tally = Tally(asked, gallery)
    if not tally.labelled and not out:
        raise UserError(
            f"no query has a label that the gallery knows; {queries or cache}; give --out FILE.csv for the neighbours"
        )
    place = Place(index or folders[0] / "search", named=index is not None, rebuild=rebuild)
    with _file(out, embedder, gallery, asked, k) as file:
        started = time.monotonic()
        with _bar("clip") as show:
            ready, loaded = take_index(embedder, gallery, backend, place, say, show)
        built = time.monotonic()
        _ask(embedder, ready, asked, tally, k, file)
    seconds = {"index": built - started, "search": time.monotonic() - built}
    _warn(embedder, ready, gallery, asked, tally)
    return {
        **_describe(gallery, asked, tally, k),
        "index": {**_describe_index(ready), "folder": str(place.folder), "loaded": loaded},
        "seconds": seconds,
        "out": str(out) if out else None,
    }


def _file(
    out: Path | None, embedder: "Embedder", gallery: "Gallery", asked: "Queries", k: int
) -> "AbstractContextManager[RowFile | None]":
    from ..search_rows import RowFile

    return RowFile(out, gallery, asked, tuple(embedder.temperatures), k) if out else nullcontext()


def _ask(
    embedder: "Embedder", index: "PrototypeIndex", asked: "Queries", tally: "Tally", k: int, file: "RowFile | None"
) -> None:
    from ..search_queries import answer

    with _bar("query") as show:
        for answers in answer(embedder, index, asked, k, show):
            tally.add(answers)
            if file:
                file.add(answers)


@contextmanager
def _bar(unit: str) -> "Iterator[Progress]":
    """What progress is told to: a bar, once the work has taken a while."""
    started = time.monotonic()
    with Bar(unit) as bar:

        def show(ready: int, total: int) -> None:
            if time.monotonic() - started > PATIENCE_SECONDS:
                bar.update(ready, total)

        yield show


def _warn(embedder: "Embedder", index: "PrototypeIndex", gallery: "Gallery", asked: "Queries", tally: "Tally") -> None:
    """Say what the figures do not."""
    from ...meta.search.library import MISSING

    # The search itself says, once, that faiss is missing.
    if index.backend.note and index.backend.note != MISSING:
        say(index.backend.note)
    if not tally.labelled:
        say("no query has a label that the gallery knows: there are no accuracies")
    elif trained := asked.of_trained(embedder):
        say(
            f"{trained} of the queries are of classes that trained the run: their accuracy is no estimate for new "
            "classes; --split SPLIT takes those alone"
        )
    if twice := asked.in_gallery(gallery):
        say(f"{twice} of the queries are clips of the gallery, too, by their ids: they are compared with themselves")


def _describe(gallery: "Gallery", asked: "Queries", tally: "Tally", k: int) -> dict[str, Any]:
    return {
        "gallery": {
            "clips": len(gallery.clips),
            "classes": len(gallery.class_ids),
            "prototypes": len(gallery.prototype_labels),
            "per": gallery.per,
            "split": gallery.split,
        },
        "queries": {"clips": len(asked.clips), "labelled": tally.labelled, "leave_one_out": asked.own},
        "k": k,
        "accuracy": tally.accuracy,
        "normaliser": tally.normaliser,
        "normalisers": tally.kinds,
    }


def _describe_index(index: "PrototypeIndex") -> dict[str, Any]:
    backend = index.backend
    return {"backend": backend.name, "exact": backend.exact, "note": backend.note}


def _print(found: Mapping[str, Any]) -> None:
    gallery, queries, index, seconds = (found[name] for name in ("gallery", "queries", "index", "seconds"))
    what = "clips" if gallery["per"] == "clip" else "class means"
    click.echo(
        f"{queries['clips']} queries{', each left out,' if queries['leave_one_out'] else ''} to "
        f"{gallery['prototypes']} {what} of {gallery['classes']} classes by {index['backend']} "
        f"({'exact' if index['exact'] else 'approximate'}): index {'loaded' if index['loaded'] else 'built'} in "
        f"{seconds['index']:.1f} s, searched in {seconds['search']:.1f} s"
    )
    click.echo(f"weights by posteriors over the prototypes: {_kinds(found['normalisers'])}")
    if found["accuracy"]:
        click.echo(f"right, of {queries['labelled']} queries whose label the gallery knows, in %:")
        rows = [(name, f"{top['top1']:.2f}", f"{top['top5']:.2f}") for name, top in found["accuracy"].items()]
        print_table(("", "top 1", "top 5"), rows)
    if found["out"]:
        click.echo(f"neighbours: {found['out']}")


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} for {count}" for kind, count in counts.items() if count)
