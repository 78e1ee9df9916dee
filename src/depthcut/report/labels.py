"""Names of points in figures: the name of each method, and the options that vary among points with that name."""

from collections.abc import Iterable, Sequence
from typing import Any

from depthcut.cut.plan import Plan
from depthcut.record import measured
from depthcut.report import table

Config = dict[str, Any]

# Options that vary along one curve, or change no number.
SIZES = frozenset({"frac", "layers", "parameters", "weight_bytes", "cache_bytes", "path", "drop"})
SEEDS = frozenset({"seed"})
INCIDENTAL = {
    "model": frozenset({"heal", "path", "repo"}),
    "metric": frozenset({"batch"}) | SEEDS,
    "prune": SIZES | SEEDS | {"unit"},
    "recipe": frozenset({"micro_batch", "recompute", "save_every", "strategy", "control"}),
    "evaluation": frozenset({"batch", "tasks"}),
}
GROUPS = ("model", "metric", "prune", "replace", "recipe", "evaluation")


def record_labels(records: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return for each record the names of its model and methods, by GROUPS; empty where a group played no part.

    Two records of a model get the same name only if every option that changes numbers is equal, except for sizes and
    seeds.
    An option that varies among records with one method is appended, such as ``angular token=all``.
    """
    parts = [words_and_knobs(record) for record in records]
    found: list[dict[str, str]] = [{} for _ in records]
    for group in GROUPS:
        varying = varying_knobs((comparison_key(group, words), knobs[group]) for words, knobs in parts)
        for label, (words, knobs) in zip(found, parts, strict=True):
            known = knobs[group]
            more = [f"{key}={known[key]}" for key in varying.get(comparison_key(group, words), ()) if key in known]
            label[group] = " ".join((words[group], *more)).strip()
    return found


def comparison_key(group: str, words: dict[str, str]) -> tuple[str, str]:
    """Return the scope in which names must be unique; options are compared within a model, because recipes differ."""
    return ("" if group == "model" else words["model"], words[group])


def words_and_knobs(record: dict[str, Any]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the method of each group, and its options as text."""
    config = record["config"]
    reads = table.reads_scores(record)
    heals = any(key.startswith("healed/") for key in record)
    words = {
        "model": table.model_name(record),
        "metric": table.method_name(record, "metric") if reads else "",
        "prune": table.method_name(record, "prune"),
        "replace": table.method_name(record, "replace"),
        "recipe": table.method_name(record, "heal") if heals else "",
        "evaluation": "",
    }
    data = as_mapping(config.get("data"))
    texts = {"metric": ("calibration",), "recipe": ("train",), "evaluation": ("validation",)}
    knobs: dict[str, dict[str, str]] = {}
    for group in GROUPS:
        node = {"replace": "replace", "recipe": "heal", "evaluation": "eval"}.get(group, group)
        methods = {
            key: value for key, value in as_mapping(config.get(node)).items() if node != "eval" or as_mapping(value)
        }
        own = {key: value for key, value in config_leaves(methods) if leaf_key(key) not in incidental_knobs(group)}
        for part in texts.get(group, ()):
            own |= {f"{part}.{key}": value for key, value in config_leaves(as_mapping(data.get(part)))}
        if group == "evaluation":
            own |= samples(record)
        knobs[group] = own if words[group] or group == "evaluation" else {}
    return words, knobs


def samples(record: dict[str, Any]) -> dict[str, str]:
    """Return the sample sizes behind the plain names, such as ``harness.limit``, where the record holds them.

    The config holds the last request only; a smaller sample does not replace a larger one.
    """
    seen: dict[str, set[str]] = {}
    for stage in table.STAGES:
        found = measured.measured_from_record(record, stage)
        for digest in {measured.plain_owner(those, name) for name, those in measured.rivals(found).items()}:
            part = {"loss": "validation"}.get(found[digest].part, found[digest].part)
            for option, value in found[digest].sample.items():
                seen.setdefault(f"{part}.{option}", set()).add(str(value))
    return {key: ",".join(sorted(values)) for key, values in seen.items()}


def incidental_knobs(group: str) -> frozenset[str]:
    """Return the options of a group that names leave out."""
    return INCIDENTAL.get(group, frozenset())


def leaf_key(key: str) -> str:
    """Return the last part of a key; for keys nested under ``heal``, the first part."""
    first = key.partition(".")[0]
    return first if first == "heal" else key.rpartition(".")[2]


def varying_knobs(named: Iterable[tuple[tuple[str, str], dict[str, str]]]) -> dict[tuple[str, str], list[str]]:
    """Return the options of each method that vary among its uses."""
    seen: dict[tuple[str, str], dict[str, set[str]]] = {}
    for word, knobs in named:
        for key, value in knobs.items():
            seen.setdefault(word, {}).setdefault(key, set()).add(value)
    return {word: [key for key, values in keys.items() if len(values) > 1] for word, keys in seen.items()}


def config_leaves(node: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield a config's leaves as ``a.b`` and text."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from config_leaves(value, f"{name}.")
        elif key != "_target_":
            yield name, str(value)


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a config node if it is a mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def dropped_layers(record: dict[str, Any]) -> tuple[int, ...]:
    """Return the dropped layers."""
    return Plan.from_dict(record["plan"]).drop
