"""Every method of the field on one cache: the same features, the same episodes, one table.

`compare` decides which cells there are (`compare_cells`), looks up those that are finished (`compare_store`), runs the
others (`compare_run`, here or in processes: `compare_pool`), and puts them into a table (`compare_entries`,
`compare_table`, `compare_plot`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..cache.errors import UserError
from ..cache.files import file_errors
from ..meta.episodes import EpisodeSampler
from ..meta.heads import head_config
from ..meta.methods import parse_method
from .compare_cells import Cell, Wish, plan_cells
from .compare_entries import Entry, Setting, make_entries
from .compare_plot import plot_comparison
from .compare_pool import run_cells
from .compare_progress import CellBar, Forecast
from .compare_run import Runner, open_bench
from .compare_store import CellStore, CompareConfig, Measured, origin, write_whole
from .compare_table import markdown, records, to_csv
from .features import FeatureSet, load_features
from .splits import ClassSplit, load_split

MakeRunner = Callable[[CellStore], Callable[[], Runner]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A finished table."""

    setting: Setting
    entries: list[Entry]
    notes: list[str]
    """What the reader should know about what is not in it."""
    files: dict[str, Path]
    """Kind -> where it was written."""

    @property
    def failures(self) -> int:
        """Entries that failed."""
        return sum(entry.failed for entry in self.entries)

    def to_markdown(self) -> str:
        """The tables."""
        return markdown(self.entries, self.setting, self.notes)

    def to_json(self) -> dict[str, Any]:
        """The object that `compare --json` prints."""
        return {
            "setting": {**asdict(self.setting), "backbones": dict(self.setting.backbones)},
            "entries": records(self.entries, self.setting),
            "notes": self.notes,
            "files": {kind: str(path) for kind, path in self.files.items()},
        }


def compare(
    cache: Path,
    split_name: str,
    out: Path,
    wish: Wish,
    config: CompareConfig,
    *,
    streams: Sequence[str] = (),
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
    make_runner: MakeRunner | None = None,
) -> Comparison:
    """Train and evaluate what is not finished yet, and write the table.

    Args:
        cache: Features.
        split_name: As `load_split` reads it.
        out: Where runs, cells and the tables go.
        wish: Which methods, arrangements, shots and seeds.
        config: What they have in common.
        streams: Modalities to use; empty: all of the cache.
        jobs: Cells at a time, a process and a thread each.
        say: Told what the user should know at once.
        make_runner: Instead of the real one, in tests.

    Raises:
        UserError: If something asked for is unknown, episodes do not fit the classes, or `out` cannot be written;
            before anything is run.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; --jobs; give 1 or more")
    data = load_features(cache, streams)
    split = load_split(split_name, data.class_names)
    names = tuple(data.features)
    cells, notes = plan_cells(wish, names, tokens=all(spec.tokens for spec in data.specs.values()))
    check_config(cells, config)
    check_episodes(data, split, config, wish.shots)
    make_folder(out)
    store = CellStore(out, config, origin(cache, data, split), cells)
    setting = Setting(split.name, config.way, config.query, config.episodes, backbones_of(data))
    del data  # processes read it for themselves
    for note in notes:
        say(note)
    maker = make_runner(store) if make_runner else partial(open_bench, cache, names, split_name, store)
    results = finish_cells(cells, store, maker, jobs, say)
    entries = make_entries(results, setting)
    return Comparison(setting, entries, notes, _write(out, entries, setting, notes))


def finish_cells(
    cells: Sequence[Cell], store: CellStore, make_runner: Callable[[], Runner], jobs: int, say: Callable[[str], None]
) -> dict[Cell, Measured | str]:
    """Look up the cells that are finished and run the others.

    Args:
        cells: Each after its parts.
        store: Knows all of them.
        make_runner: As `run_cells` has it.
        jobs: Processes.
        say: Told how many are finished.

    Returns:
        The outcome of every cell, in their order, or the line of the error that ended it.
    """
    results: dict[Cell, Measured | str] = {}
    forecast = Forecast()
    for cell in cells:
        if (found := store.find(cell)) is not None:
            results[cell] = found
            forecast.note(cell, found)
    todo = [cell for cell in cells if cell not in results]
    if results:
        say(f"{len(results)} of {len(cells)} cells are finished already")
    with CellBar(todo, forecast) as bar:
        for cell, outcome in run_cells(todo, list(results), make_runner, jobs, bar.tick):
            results[cell] = outcome
            if isinstance(outcome, Measured):
                store.save(cell, outcome)
                forecast.note(cell, outcome)
            bar.end(cell)
    return {cell: results[cell] for cell in cells}


def check_config(cells: Sequence[Cell], config: CompareConfig) -> None:
    """Refuse numbers that make no sense, and settings that suit none of the heads.

    Where settings suit some heads, the cells of the others fail when they are run.

    Raises:
        UserError: In one line.
    """
    if config.episodes < 2:
        raise UserError(f"episodes is {config.episodes}; an interval needs at least 2; raise --episodes")
    if config.train_episodes < 0 or config.project < 0:
        name, value = (
            ("train-episodes", config.train_episodes) if config.train_episodes < 0 else ("project", config.project)
        )
        raise UserError(f"{name} is {value}; it cannot be negative; give 0 or more to --{name}")
    heads = {parse_method(cell.method).head: cell for cell in cells}
    faults = []
    for head, cell in heads.items():
        plan = config.plan(cell)
        try:
            plan.train_config()
            head_config(head, plan.read_profile().head)
        except UserError as fault:
            faults.append(fault)
    if len(faults) == len(heads):
        raise faults[0]


def check_episodes(data: FeatureSet, split: ClassSplit, config: CompareConfig, shots: Sequence[int]) -> None:
    """Refuse episodes that the novel classes cannot fill, hours before the first one would.

    Raises:
        UserError: If there are too few classes, or clips in one.
    """
    for shot in shots:
        EpisodeSampler(data.labels, data.ids(split.test), config.shape(shot), data.class_names)


def make_folder(out: Path) -> None:
    """Make the folder that `--out` names.

    Raises:
        UserError: If it cannot be made, or is none.
        MachineError: If the disk is full or fails.
    """
    with file_errors(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{out} is no directory; --out; choose another one") from None


def backbones_of(data: FeatureSet) -> dict[str, str]:
    """Stream -> name of its network, as far as its spec says."""
    found = {}
    for name, spec in data.specs.items():
        backbone = spec.settings.get("backbone")
        found[name] = str(backbone.get("name", "")) if isinstance(backbone, Mapping) else ""
    return found


def _write(out: Path, entries: Sequence[Entry], setting: Setting, notes: Sequence[str]) -> dict[str, Path]:
    files = {kind: out / f"table.{kind}" for kind in ("md", "csv", "json", "png")}
    with file_errors(out):
        write_whole(files["md"], markdown(entries, setting, notes))
        write_whole(files["csv"], to_csv(entries, setting))
        write_whole(files["json"], json.dumps(records(entries, setting), indent=2))
        plot_comparison(entries, setting, files["png"])
    return files
