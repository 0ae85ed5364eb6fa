"""Folders as `amfir study` writes them, with invented numbers: what reports are tested on."""

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

HEADS = (
    ("protonet", "ProtoNet"),
    ("otam", "OTAM"),
    ("trx", "TRX"),
    ("arn[pooled]", "ARN [pooled] (re-implementation)"),
)
ARRANGEMENTS = {"rgb": 62.0, "flow": 58.0, "ec": 71.0, "ea": 70.0, "lf": 69.0, "ami": 72.5}
HARMS = {"noise": (0.1, 0.25), "blur": (0.02, 0.05), "dark": (0.6, 0.9), "drop": (0.5, 0.9)}
FUSIONS = {"ami": 0.0, "late": -1.0, "select": -3.0, "rgb alone": -9.0, "flow alone": -13.0}
SETTINGS = {"way": 5, "query": 2, "episodes": 5000, "train_episodes": 500, "profile": "fair", "seed": 0}


def write_study(out: Path, name: str, rows: list[dict[str, Any]], **parts: Any) -> Path:
    """Write a result.json, and study.json where there is none yet."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **{"format": 1, "study": name, "title": f"Title of {name}", "settings": SETTINGS, "rows": rows},
        **{"skipped": [], "notes": [], "failures": [], "extra": {}, "seconds": 1.0, "fingerprint": "0"},
    }
    (folder / "result.json").write_text(json.dumps({**content, **parts}), encoding="utf-8")
    if not (out / "study.json").exists():
        (out / "study.json").write_text(json.dumps(study_info()), encoding="utf-8")
    return folder


def study_info() -> dict[str, Any]:
    """What study.json holds, but for the list of studies."""
    return {
        "format": 1,
        "config": {
            **SETTINGS,
            "cache": "features",
            "split": "made/split.toml",
            "streams": ["rgb", "flow"],
            "shots": [1, 5],
        },
        "versions": {"amfir": "0.1.0", "torch": "2.11.0", "python": "3.12.1"},
        "specs": {"rgb": {"backbone": "resnet18", "frames": 8}, "flow": {"backbone": "flow-cnn", "frames": 8}},
        "provenance": {"clips": 480, "classes": 24, "split": {"train": ["a", "b"], "test": ["c", "d"]}},
        "commands": ["amfir study /home/somebody/features --split /home/somebody/made/split.toml --out studies"],
    }


def write_all(out: Path) -> Path:
    """Write every study, as large as a real one."""
    draw = random.Random(0)
    _write_paper(out, draw)
    _write_reliability(out, draw)
    _write_robustness(out, draw)
    rows = [transfer_row(source, shot, draw) for shot in (1, 5) for source in ("synth", "weizmann")]
    write_study(out, "transfer", rows, title="Transfer: tested on other data")
    _write_examples(out)
    return out


def entry(method: str, accuracy: float | None, ci95: float | None = 0.4, **more: Any) -> dict[str, Any]:
    """A row of a method with an accuracy."""
    row = {"method": method, "title": method.upper(), "arrangement": "own", "way": 5, "shot": 1}
    return {**row, "accuracy": accuracy, "ci95": ci95, **more}


def accuracy_row(draw: random.Random, mean: float, **keys: Any) -> dict[str, Any]:
    """A row with an accuracy near `mean`."""
    return {**keys, "way": 5, "accuracy": mean + draw.uniform(-1.5, 1.5), "ci95": draw.uniform(0.3, 0.5)}


def transfer_row(source: str, shot: int, draw: random.Random) -> dict[str, Any]:
    """A row of transfer to weizmann."""
    row = accuracy_row(
        draw, 70.0 if source == "weizmann" else 61.0, source=source, target="weizmann", method="amfir", shot=shot
    )
    return {**row, "untrained": 60.0, "untrained_ci95": 0.4}


def _write_paper(out: Path, draw: random.Random) -> None:
    rows = [
        accuracy_row(
            draw, mean + 4 * (shot > 1) + 2 * place, method=head, title=title, arrangement=name, shot=shot, seed=0
        )
        for shot in (1, 5)
        for place, (head, title) in enumerate(HEADS)
        for name, mean in ARRANGEMENTS.items()
    ]
    for method in ("amfar", "amfir"):
        rows += [
            accuracy_row(draw, 76.0, method=method, title=method.upper(), arrangement="ami", shot=shot, seed=0)
            for shot in (1, 5)
        ]
    rows.append({**rows[0], "method": "lost", "title": "Lost", "accuracy": None, "ci95": None})
    theirs = {"method": "amfir", "title": "AMFIR", "dataset": "ucf101", "arrangement": "ami", "shot": 1}
    published = [{**theirs, "accuracy": 94.9, "source": "AMFIR, Table 1"}]
    write_study(
        out,
        "table1",
        rows,
        title="Table 1: every method",
        extra={"published": published},
        skipped=["TRX, ami: too few clips"],
        notes=["every method is trained with one seed"],
    )
    write_study(out, "table2", [row for shot in (1, 5) for row in _ablations(draw, shot)], title="Table 2: each part")
    energies = [
        {
            "method": "amfir",
            "shot": 1,
            "seed": 0,
            "modality": name,
            "episode": 50 * step,
            "free_energy": -slope * step**0.5,
        }
        for name, slope in (("rgb", 0.8), ("flow", 0.6))
        for step in range(1, 11)
    ]
    write_study(out, "figure2", energies, title="Figure 2: free energy over training")
    methods = (("amfir", "AMFIR", 73.0), ("amfar", "AMFAR", 72.8), ("strm[pooled]-lf", "STRM [pooled], LF", 69.0))
    over_shots = [
        {**accuracy_row(draw, mean + 14 * (1 - 1 / shot), method=name, title=title, shot=shot), "episodes": 5000}
        for shot in (1, 2, 3, 4, 5, 10)
        for name, title, mean in methods
    ]
    write_study(out, "figure3", over_shots, title="Figure 3: accuracy over the number of support clips")
    strategies = (("none", "no distillation"), ("rgb-teacher", "RGB teaches flow (T-RGB)"), ("mutual", "mutual (AMD)"))
    taught = [
        accuracy_row(draw, 70.0 + 2 * place + 10 * (shot > 1), strategy=name, title=title, shot=shot)
        for shot in (1, 5)
        for place, (name, title) in enumerate(strategies)
    ]
    write_study(out, "figure4", taught, title="Figure 4: who teaches whom")
    over_ways = [
        {**accuracy_row(draw, mean * 5**0.5 / way**0.5, method=name, title=title, shot=1), "way": way}
        for way in (5, 6, 7, 8, 9)
        for name, title, mean in (*methods, ("strm[pooled]-rgb", "STRM [pooled], RGB", 62.0))
    ]
    write_study(out, "figure5", over_ways, title="Figure 5: accuracy over the number of classes")


def _ablations(draw: random.Random, shot: int) -> list[dict[str, Any]]:
    arms = {
        "amfir": "AMFIR, whole",
        "amfir:no-rd": "without the RGB-dominant group (RD)",
        "amfir:no-amd": "without distillation (AMD)",
        "amfir:no-ami": "without adaptive inference (AMI)",
    }
    rows = []
    for (method, title), change in zip(arms.items(), (None, -0.1, 1.2, -2.5), strict=True):
        difference = {"difference": change, "difference_ci95": None if change is None else 0.3}
        row = accuracy_row(draw, 73.0 + (change or 0.0), base="amfir", method=method, title=title, shot=shot)
        rows.append({**row, **difference, "p": None if change is None else 0.0004 if abs(change) > 0.3 else 0.61})
    return rows


def _write_reliability(out: Path, draw: random.Random) -> None:
    names = ("free-energy", "max-prob", "entropy", "belief", "evidence-raw", "always-rgb", "always-flow")
    shares = (72.0, 71.3, 71.1, 74.2, 40.0, 66.0, 34.0)
    rows = [
        {
            "criterion": name,
            "shot": shot,
            "selection_accuracy": share + shot,
            "auroc": None if "always" in name else share / 100,
        }
        for shot in (1, 5)
        for name, share in zip(names, shares, strict=True)
    ]
    weights = [
        {
            **{"shot": shot, "modality": "rgb", "low": place / 20, "high": (place + 1) / 20, "count": 400 - 20 * place},
            **{"weight": place / 20 + 0.025, "gain": 8.0 * (place - 9), "fused_gain": draw.uniform(-1, 3)},
        }
        for shot in (1, 5)
        for place in range(5, 16)
    ]
    calibration = [
        {
            **{"shot": shot, "view": view, "temperatures": kind, "ece": error, "accuracy": 70.0, "nll": 0.9},
            "bins": [_bin(place, error) for place in range(2, 15)],
        }
        for shot in (1, 5)
        for view in ("rgb", "flow", "ami", "late")
        for kind, error in (("none", 12.3), ("folds", 3.1), ("validation", 4.0))
    ]
    extra = {"weights": weights, "calibration": calibration}
    write_study(out, "reliability", rows, title="Reliability: which modality to trust, and how far", extra=extra)


def _bin(place: int, error: float) -> dict[str, Any]:
    middle = (place + 0.5) / 15
    count = 10 + place**3
    return {
        **{"low": place / 15, "high": (place + 1) / 15, "count": count},
        **{"confidence": 100 * middle, "accuracy": max(0.0, 100 * middle - error)},
    }


def _write_robustness(out: Path, draw: random.Random) -> None:
    rows = []
    conditions = [(harm, on) for harm in HARMS for on in ("both", "rgb", "flow")] + [
        ("missing", "rgb"),
        ("missing", "flow"),
    ]
    for harm, on in conditions:
        for place, level in enumerate((0.0, *HARMS.get(harm, (1.0,)))):
            for fusion, below in FUSIONS.items():
                lost = 0.0 if on != "both" and fusion.endswith("alone") and not fusion.startswith(on) else 9.0 * place
                row = accuracy_row(draw, 73.0 + below - lost, harm=harm, level=level, applied_to="videos", modality=on)
                weight = 0.52 - 0.03 * place * {"both": 0, "rgb": 1, "flow": -1}[on]
                rows.append(
                    {
                        **row,
                        "shot": 1,
                        "method": "amfir",
                        "fusion": fusion,
                        "weight_rgb": weight,
                        "weight_flow": 1 - weight,
                    }
                )
    levels = {"videos": {"noise": "deviation of the Gaussian noise, as a share of 255"}}
    write_study(out, "robustness", rows, title="Robustness: harmed and missing modalities", extra={"levels": levels})


def _write_examples(out: Path) -> None:
    rows = []
    folder = out / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for right, other in (("rgb", "flow"), ("flow", "rgb")):
        for place in range(3):
            files = {kind: f"{right}-{place}-{kind}.png" for kind in ("frame", "flow")}
            for kind, file in files.items():
                (folder / file).write_bytes(picture(64, 48, (40 * place, 120, 200 if kind == "flow" else 60)))
            rows.append(
                {
                    **{"clip_id": f"{right}/clip_{place}.mp4", "label": "wave", "right": right, "shot": 1},
                    "predictions": {right: "wave", other: "jump"},
                    "weights": {right: 0.55 + 0.02 * place, other: 0.45 - 0.02 * place},
                    "free_energy": {right: -2.5, other: -1.5},
                    **{"episodes": 120, "alone": 80, "share": 66.7, **files},
                }
            )
    write_study(out, "examples", rows, title="Examples: clips that one modality got right alone")


def write_one_modality(out: Path) -> Path:
    """Write the studies that features of RGB alone allow, as `amfir study --streams rgb` does."""
    criteria = [
        {"criterion": name, "shot": 1, "selection_accuracy": None, "auroc": None, "auroc_rgb": 0.7}
        for name in ("free-energy", "entropy")
    ]
    write_study(out, "reliability", criteria, extra={"weights": [], "calibration": []})
    rows = [
        {
            **{"harm": "noise", "level": level, "applied_to": "features", "modality": "rgb", "shot": 1},
            **{"method": "amfir", "fusion": fusion, "accuracy": 61.0 - level, "ci95": 0.4, "weight_rgb": 1.0},
        }
        for level in (0.0, 1.0)
        for fusion in ("ami", "rgb alone")
    ]
    write_study(out, "robustness", rows)
    return out


def picture(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour, written by hand: RGB, 8 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = (b"\0" + bytes(colour) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
