"""Examples: clips of novel classes that one modality alone gets right, with the weights AMI gave and pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.errors import UserError
from ...extract.clips import Clip
from ...extract.decode import DecodeError, Want, decode_clip
from ...extract.flow import HOST_BACKENDS, FarnebackParameters
from ...extract.flow.wheel import colour
from ...extract.frames import resize
from ...extract.sampling import Sampling
from ...meta.active import Observation, adaptive_weights, free_energy
from ...meta.checkpoint import load_model
from ...meta.episodes import Episodes, EpisodeSampler
from ...meta.evaluate import EvaluationConfig, observations
from ...meta.threads import one_thread
from ..compare_cells import Cell
from ..datasets import open_source
from ..features import FeatureSet, apply_projections
from ..progress import Bar
from .base import Context, Result

NUM_CLIPS = 6
"""Clips of each modality."""

MIN_SHOWN = 20
"""Episodes that a clip has to be a query of, where any is one of so many: a share of three says little."""

WIDTH = 192
"""Of the pictures, pixels; a portrait clip's are as high instead."""

QUALITY = 80
"""Of the JPEGs: some 8 KB each."""

NOTES = (
    "A clip is counted in the episodes in which it is a query. Weights, free energies and the usual mistake of the "
    "other modality are those of the episodes in which this one alone was right.",
)
PICTURED = (
    "Flow: between the frame shown and its successor; the colour is the direction (red right, yellow down, blue up), "
    "its strength the speed, full at the clip's 99th percentile and at least at 1 pixel a frame."
)


def run(context: Context) -> Result:
    """Observe AMFIR, trained for the first of the shots, on the novel episodes of the tables, clip by clip."""
    if len(context.modalities) < 2:
        return Result([], [f"all of it: it needs two modalities; the cache has {context.modalities[0]} only"])
    shot = context.config.shots[0]
    cell = Cell("amfir", "amfir", "ami", context.modalities, shot, context.config.seed)
    outcome = context.train([cell])[cell]
    if isinstance(outcome, str):
        return Result([], failures=[f"{shot}-shot: {outcome}"])
    (folder,) = context.folders(cell)
    with one_thread():
        tally, clips = _watch(context, folder, shot)
    result = Result(_rows(tally, clips, context.data, shot), notes=list(NOTES))
    found = {row["right"] for row in result.rows}
    result.skipped.extend(
        f"{name} is never right alone, in {context.config.compare.episodes} episodes"
        for name in context.modalities
        if name not in found
    )
    return _with_pictures(result, context)


# --- Which clips ----------------------------------------------------------------------------------------------------


class _Tally:
    """Counts of every clip as a query; memory grows with clips times classes, not with episodes.

    Args:
        modalities: M of them.
        positions: Of each clip [V], the position of its class among the novel ones.
        num_classes: Novel classes.
    """

    def __init__(self, modalities: Sequence[str], positions: Tensor, num_classes: int) -> None:
        count, num = len(modalities), len(positions)
        self.modalities = tuple(modalities)
        self.positions = positions
        self.shown = torch.zeros(num, dtype=torch.int64)
        """Episodes in which the clip is a query."""
        self.alone = torch.zeros(count, num, dtype=torch.int64)
        """Those in which this modality alone is right."""
        self.weights = torch.zeros(count, count, num, dtype=torch.float64)
        """Sums over those of modality [0]: AMI's weight of modality [1]."""
        self.energies = torch.zeros(count, count, num, dtype=torch.float64)
        """Likewise, its free energy."""
        self.mistakes = torch.zeros(count, count, num, num_classes, dtype=torch.int32)
        """Likewise, what it predicts."""

    def add(self, episodes: Episodes, seen: Observation) -> None:
        """Take a chunk of episodes whose clips are numbered as in `positions`."""
        query = episodes.query.flatten(1)
        labels = torch.arange(episodes.query.shape[1]).repeat_interleave(episodes.query.shape[2])
        predicted = seen.psi.argmin(-1)
        right = predicted == labels
        classes = self.positions[episodes.query[:, :, 0]]
        self.shown += torch.bincount(query.flatten(), minlength=len(self.shown))
        weights, energies = adaptive_weights(seen), free_energy(seen)
        for m in range(len(self.modalities)):
            alone = right[m] & (right.sum(0) == 1)
            clips = query[alone]
            self.alone[m] += torch.bincount(clips, minlength=len(self.shown))
            for n in range(len(self.modalities)):
                named = classes.gather(1, predicted[n])[alone]
                self.weights[m, n].index_add_(0, clips, weights[n][alone].double())
                self.energies[m, n].index_add_(0, clips, energies[n][alone].double())
                self.mistakes[m, n].index_put_((clips, named), torch.ones_like(clips, dtype=torch.int32), True)

    def best(self, m: int) -> list[int]:
        """Clips that modality m alone gets right in the largest share of their episodes, the surest first."""
        least = min(MIN_SHOWN, int(self.shown.max()))
        fit = ((self.shown >= least) & (self.alone[m] > 0)).nonzero().flatten().tolist()
        return sorted(fit, key=lambda clip: (-int(self.alone[m, clip]) / int(self.shown[clip]), clip))[:NUM_CLIPS]


def _watch(context: Context, folder: Path, shot: int) -> tuple[_Tally, Tensor]:
    """The tally of the novel clips, and which clips of the data these are."""
    config = EvaluationConfig(context.config.compare.shape(shot), context.config.compare.episodes)
    model, _ = load_model(folder)
    data = apply_projections(context.data, model.projections)
    clips, ids = data.clips_of(context.split.test), data.ids(context.split.test)
    labels = data.labels[clips]
    sampler = EpisodeSampler(labels, ids, config.shape, data.class_names)
    positions = torch.searchsorted(torch.tensor(sorted(ids)), labels)
    tally, ready = _Tally(model.modalities, positions, len(ids)), 0
    with Bar("episodes") as bar:
        scorer = model.scorer(data.features, clips)
        for episodes, seen in observations(scorer, sampler, config, range(config.num_blocks)):
            tally.add(episodes, seen)
            ready += len(episodes)
            bar.update(ready, config.episodes)
    return tally, clips


def _rows(tally: _Tally, clips: Tensor, data: FeatureSet, shot: int) -> list[dict[str, Any]]:
    # Class ids ascend, as the positions that stand for them.
    names = [data.class_names[label] for label in torch.unique(data.labels[clips]).tolist()]
    return [
        _row(tally, m, clip, data.clip_ids[int(clips[clip])], names, shot)
        for m in range(len(tally.modalities))
        for clip in tally.best(m)
    ]


def _row(tally: _Tally, m: int, clip: int, clip_id: str, names: Sequence[str], shot: int) -> dict[str, Any]:
    shown, alone = int(tally.shown[clip]), int(tally.alone[m, clip])

    def means(sums: Tensor) -> dict[str, float]:
        return dict(zip(tally.modalities, (sums[m, :, clip] / alone).tolist(), strict=True))

    usual = tally.mistakes[m, :, clip].argmax(-1).tolist()
    return {
        "clip_id": clip_id,
        "label": names[int(tally.positions[clip])],
        "right": tally.modalities[m],
        "shot": shot,
        "predictions": {name: names[k] for name, k in zip(tally.modalities, usual, strict=True)},
        "weights": means(tally.weights),
        "free_energy": means(tally.energies),
        "episodes": shown,
        "alone": alone,
        "share": 100 * alone / shown,
        "frame": "",
        "flow": "",
    }


# --- Their pictures -------------------------------------------------------------------------------------------------


def _with_pictures(result: Result, context: Context) -> Result:
    """Fill in `frame` and `flow` of the rows, and put the files into `extra`."""
    videos = context.config.videos
    if not result.rows:
        return result
    if videos is None:
        result.skipped.append("pictures of the clips: the videos are not given; add --videos DIR")
        return result
    try:
        wanted = {row["clip_id"] for row in result.rows}
        places = {clip.id: clip for clip in open_source(videos) if clip.id in wanted}
    except UserError as error:
        result.skipped.append(f"pictures of the clips: {error}")
        return result
    frames = max(spec.frames for spec in context.data.specs.values())
    result.extra["files"] = _files(result, places, frames)
    result.notes.append(PICTURED)
    return result


def _files(result: Result, places: Mapping[str, Clip], frames: int) -> dict[str, bytes]:
    """Name -> JPEG; what cannot be made is noted."""
    flow = HOST_BACKENDS["opencv"](FarnebackParameters())
    files: dict[str, bytes] = {}
    counts = dict.fromkeys((row["right"] for row in result.rows), 0)
    for row in result.rows:
        number = counts[row["right"]]
        counts[row["right"]] += 1
        if row["clip_id"] not in places:
            result.notes.append(f"No picture of {row['clip_id']}: it is not among the videos.")
            continue
        try:
            pictures = clip_pictures(places[row["clip_id"]], frames, flow)
        except DecodeError as error:
            result.notes.append(f"No picture of {row['clip_id']}: {error}.")
            continue
        for kind, picture in pictures.items():
            row[kind] = f"{row['right']}-{number}-{kind}.jpg"
            files[row[kind]] = picture
    return files


def clip_pictures(
    clip: Clip, frames: int, flow: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> dict[str, bytes]:
    """The middle one of a clip's sampled frames, and its flow, as JPEGs of at most `WIDTH` pixels a side.

    Args:
        clip: Where it lies.
        frames: How many the features were made of.
        flow: Grey pairs `[N, 2, H, W]` to flow `[N, H, W, 2]`.

    Returns:
        `frame` and, but for a clip of one frame, `flow`.

    Raises:
        DecodeError: If the clip is gone or broken.
    """
    wants = {"frame": Want(WIDTH), "flow": Want(WIDTH, pairs=True)}
    arrays = decode_clip(clip.path, Sampling(frames=frames), wants, clip_id=clip.id, span=clip.span).arrays
    pictures = {"frame": _jpeg(arrays["frame"][0, frames // 2])}
    if "flow" in arrays:
        field = flow(arrays["flow"][0, frames // 2][None])[0]
        full = max(1.0, float(np.percentile(np.hypot(field[..., 0], field[..., 1]), 99)))
        pictures["flow"] = _jpeg(colour(field, full))
    return pictures


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Encode RGB `[H, W, 3]`, its long side shrunk to `WIDTH`."""
    height, width = picture.shape[:2]
    factor = WIDTH / max(height, width)
    small = resize(picture, max(1, round(height * factor)), max(1, round(width * factor)))
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return encoded.tobytes()
