"""What a run left in its workdir, read for the page: whatever is there, in whatever state."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from vimoe_jax.base.errors import UserError
from vimoe_jax.moe.options import MoEOptions, moe_layers
from vimoe_jax.scores import predictions as predictions_lib
from vimoe_jax.scores import vqa
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PLAIN, PROFILES, Profile

_LARGEST_IMAGE = 4 << 20  # bytes; the page embeds thumbnails, not photographs
_MOST_LAYERS = 1024  # of a part; a file with more is broken
_LAYER_FACTS = ("max_load", "drop_fraction", "unserved_fraction", "entropy")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass
class Split:
    """One evaluated split.

    Attributes:
      name: its folder's name under `eval/`, or what its metrics are called.
      metrics: by name without prefix, such as `vqa/accuracy`.
      scoring: how texts were compared, as `metrics.json` has it; {} if it has not.
      predictions: all of them; [] if their file is missing or broken.
      images: thumbnails' paths by the picture's index.
      experts: the MoE reports, one per layer, as `experts.json` has them, checked.
    """

    name: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    scoring: dict[str, str] = dataclasses.field(default_factory=dict)
    predictions: list[Prediction] = dataclasses.field(default_factory=list)
    images: dict[int, Path] = dataclasses.field(default_factory=dict)
    experts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """The name, readable."""
        return self.name.replace("_", " ")

    @property
    def profile(self) -> Profile:
        """What texts were compared under."""
        return PROFILES.get(self.scoring.get("profile", ""), PLAIN)


@dataclasses.dataclass
class Run:
    """All of a workdir that a page shows.

    Attributes:
      config: nested dict, {} if missing.
      summary: `summary.json`, {} if missing.
      curves: (steps, values) of each metric logged while training.
      layer_curves: the same of each metric logged as `NAME_by_layer`, under NAME: lists of one
        value per layer (None where it was not finite), all of one length.
      splits: the evaluated splits, the main one first.
      problems: one sentence for each file that could not be read.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    curves: dict[str, tuple[list[int], list[float]]]
    layer_curves: dict[str, tuple[list[int], list[list[float | None]]]]
    splits: list[Split]
    problems: list[str]

    def moe(self, part: str) -> tuple[int, list[int]]:
        """A part's number of experts and which of its layers have them; (0, []) if not known."""
        try:
            options = self.config["model"][part]["moe"]
            depth = self.config["model"][part].get("depth", 1)
            place = options.get("placement", "all")
            place = tuple(place) if isinstance(place, list) else place
            count, cuts = options["num_experts"], options.get("granularity", 1)
            known = MoEOptions(
                num_experts=count, experts_per_token=1, granularity=cuts, placement=place
            )
            if not (1 <= known.experts < 1e6 and 1 <= depth <= _MOST_LAYERS):
                return 0, []
            layers = moe_layers(known, depth)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            return 0, []
        return known.experts, [i for i, is_moe in enumerate(layers) if is_moe]


def load(workdir: Path) -> Run:
    """Reads a workdir. Missing files are empty, broken ones a sentence in `problems`.

    Raises:
      UserError: there is no such folder.
    """
    if not workdir.is_dir():
        raise UserError(f"--workdir: no such folder: {workdir}")
    problems: list[str] = []
    config = _object(workdir / "config.json", workdir, problems)
    summary = _object(workdir / "summary.json", workdir, problems)
    curves, layer_curves, scores = _metrics(workdir / "metrics.jsonl", problems)
    splits = _splits(workdir, config, scores, problems)
    return Run(config, summary, curves, layer_curves, splits, problems)


def _object(path: Path, workdir: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        reason = "no JSON object"
    except (OSError, ValueError, RecursionError) as e:
        reason = str(e)
    problems.append(f"{path.relative_to(workdir)} cannot be read: {reason}")
    return {}


def finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be drawn.

    JSON's integers have no bound and floats end at 1.8e308: beyond 1e300, sums, per cents and
    axes would overflow.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _metrics(path: Path, problems: list[str]) -> tuple[dict, dict, dict[str, dict[str, float]]]:
    """Curves and layers' curves by name, evaluations' scores by prefix (`eval`, `eval_…`)."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    layers: dict[str, dict[int, list[float | None]]] = defaultdict(dict)
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as e:
        problems.append(f"metrics.jsonl cannot be read: {e.strerror}")
        lines = []
    broken = 0
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            read = row.pop("step")
            if not finite(read):
                raise TypeError
            step = int(read)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # A last line without its end is what a killed run leaves; others are counted as broken.
            broken += bool(line.strip()) and (i < len(lines) - 1 or line.endswith(b"\n"))
            continue
        for name, value in row.items():
            if isinstance(value, list) and value and name.endswith("_by_layer"):
                values = [v if finite(v) else None for v in value[:_MOST_LAYERS]]
                layers[name.removesuffix("_by_layer")][step] = values
            if not finite(value):
                continue
            prefix, _, rest = name.partition("/")
            if prefix == "eval" or prefix.startswith("eval_"):
                scores[prefix][rest] = value
            else:
                curves[name][step] = value  # a step done again counts once
    if broken:
        problems.append(f"metrics.jsonl: {broken} unreadable line{'s' * (broken > 1)} left out")
    # A run's layers stay as many; lists of another length than the last are broken.
    even = {
        name: {s: v for s, v in points.items() if len(v) == len(points[max(points)])}
        for name, points in layers.items()
    }
    return _ordered(curves), _ordered(even), dict(scores)


def _ordered(curves: dict[str, dict[int, Any]]) -> dict[str, tuple[list[int], list[Any]]]:
    points = {name: sorted(values.items()) for name, values in curves.items()}
    return {n: ([s for s, _ in p], [v for _, v in p]) for n, p in points.items()}


def _splits(
    workdir: Path, config: dict, scores: dict[str, dict[str, float]], problems: list[str]
) -> list[Split]:
    """Folders under `eval/` and metrics in `metrics.jsonl`, matched as the main job names them."""
    root = workdir / "eval"
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    data = config.get("data")
    listed = data.get("test_splits") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not all(isinstance(s, str) for s in listed):
        listed = []
    listed = [s or "all" for s in listed]
    first = next((s for s in [*listed, "test", *folders] if s in folders), None)
    main = listed[0] if listed else first or "test"
    splits = []
    # In a mixture a folder is DATASET_SPLIT: every dataset's main split before the others.
    for name in sorted(folders, key=lambda s: (s != main, not s.endswith(f"_{main}"), s)):
        prefix = "eval" if name == main else f"eval_{name.removeprefix('test_')}"
        split = Split(name, scores.pop(prefix, {}))
        _read_split(split, root / name, workdir, problems)
        splits.append(split)
    for prefix, metrics in scores.items():  # scored, but the folder is gone
        name = main if prefix == "eval" else prefix.removeprefix("eval_")
        splits.append(Split(name, metrics))
    return sorted(splits, key=lambda s: s.name != main)


def _read_split(split: Split, folder: Path, workdir: Path, problems: list[str]) -> None:
    # Written together with the predictions: newer after a second evaluation.
    own = _object(folder / "metrics.json", workdir, problems)
    split.metrics = {n: v for n, v in own.items() if finite(v)} or split.metrics
    label = own.get("scoring")
    if isinstance(label, dict):
        split.scoring = {n: v for n, v in label.items() if isinstance(v, str)}
    if (folder / "predictions.jsonl").exists():
        try:
            split.predictions = predictions_lib.read(folder / "predictions.jsonl")
        except UserError as e:
            problems.append(str(e).removeprefix(f"{workdir}/"))
    images = folder / "images"
    for path in sorted(images.glob("*.png")) if images.is_dir() else []:
        if path.stem.isascii() and path.stem.isdigit():
            split.images[int(path.stem)] = path
    layers = _object(folder / "experts.json", workdir, problems).get("layers", [])
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and _shares(layer.get("load")):
            count = len(layer["load"])
            kinds = layer.get("by_kind")
            kinds = kinds if isinstance(kinds, dict) else {}
            kinds = {k: v for k, v in kinds.items() if _shares(v) and len(v) == count}
            facts = {k: layer[k] for k in _LAYER_FACTS if finite(layer.get(k))}
            drops = layer.get("drop_fraction_by_kind")
            if isinstance(drops, dict):
                facts["drop_fraction_by_kind"] = {k: v for k, v in drops.items() if finite(v)}
            name = str(layer.get("name", "layer"))
            split.experts.append({"name": name, "load": layer["load"], "by_kind": kinds, **facts})


def _shares(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(finite(v) and v >= 0 for v in value)


def png(path: Path) -> bytes | None:
    """A thumbnail's bytes; None if it is no PNG or too large to embed."""
    try:
        if path.stat().st_size > _LARGEST_IMAGE:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(_PNG) else None


def right(p: Prediction, profile: Profile = PLAIN) -> bool:
    """Whether an answer counts as exactly right (a caption: equal to a reference)."""
    return bool(p.answers) and vqa.accuracy(p.prediction, p.answers, profile) == 1


def half_width(predictions: Sequence[Prediction], profile: Profile = PLAIN) -> float | None:
    """Half of accuracy's 95% interval; None for fewer than two pictures.

    Questions about one picture are not independent, so pictures are what is resampled: the
    linearised variance of a ratio of sums over pictures.
    """
    pictures: dict[int, list[bool]] = defaultdict(list)
    for p in vqa.scorable(predictions):
        pictures[p.record_index].append(right(p, profile))
    m, n = len(pictures), sum(map(len, pictures.values()))
    if m < 2:
        return None
    mean = sum(map(sum, pictures.values())) / n
    spread = sum((sum(v) - mean * len(v)) ** 2 for v in pictures.values())
    return 1.96 * math.sqrt(spread * m / (m - 1)) / n


def confusions(
    predictions: Sequence[Prediction], profile: Profile = PLAIN, most: int = 12
) -> list[tuple[str, str, str, int]]:
    """The most frequent wrong answers: (type, reference, prediction, how often), twice or more."""
    counts = Counter(
        (p.type or p.task, profile(p.answers[0]), profile(p.prediction))
        for p in vqa.scorable(predictions)
        if not right(p, profile)
    )
    return [(*pair, n) for pair, n in counts.most_common(most) if n > 1]


def gallery(split: Split, most: int, tasks: Collection[str]) -> list[tuple[int, list[Prediction]]]:
    """Pictures spread evenly over those with a thumbnail, each with its predictions of some tasks.

    The rule looks at no prediction. Where there are no thumbnails, pictures are spread over the
    split.
    """
    by_picture: dict[int, list[Prediction]] = defaultdict(list)
    for p in split.predictions:
        if p.task in tasks:
            by_picture[p.record_index].append(p)
    indices = sorted(i for i in by_picture if i in split.images or not split.images)
    if len(indices) > most:
        indices = [indices[k * len(indices) // most] for k in range(most)]
    return [(i, by_picture[i]) for i in indices]
