"""Run every method of every group on a tiny model, and record what a refactoring must not change.

    python tests/records.py before.json                          about four minutes on two cores
    python tests/records.py after.json --against before.json     and compare: status 1 where something differs

Kept of each run: its record without times, bytes, versions, commit, device and date, and the names of all that it left
in the cache. Only what `before` holds is compared, so that new keys are no difference.
"""

import argparse
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from running import ROOT, run, text_files

BASE = ("model=pico", "data=files", "device=cpu", "eval=[loss]", "data.validation.sequences=8", "prune.layers=3")
HEALED = ("heal.steps=6", "heal.warmup=1", "heal.batch=4", "heal.micro_batch=2")
UNHEALED = ("heal=none",)
VOLATILE = ("seconds/", "bytes/")
LEFT_OUT = {"versions", "commit", "finished", "device", "config"}

METRICS = {path.stem: () for path in sorted((ROOT / "conf/metric").glob("*.yaml"))} | {
    "angular_all_tokens": ("metric=angular", "metric.token=all"),
    "task": ("metric=task", "metric.items=8"),
}
PRUNERS = {
    "block": (),
    "blocks": (),
    "deepest": (),
    "every": (),
    "evolution": ("prune=evolution", "metric=kl", "prune.generations=3"),
    "greedy": ("prune=greedy", "metric=kl"),
    "greedy_mlp": ("prune=greedy", "metric=kl", "prune.unit=mlp"),
    "greedy_attention": ("prune=greedy", "metric=perplexity", "prune.unit=attention"),
    "lowest": (),
    "lowest_bytes": ("prune=lowest", "metric=magnitude", "prune.layers=null", "prune.weight_bytes=600000"),
    "random": (),
}
REPLACEMENTS = {
    "extend": ("replace=extend", "prune.layers=0", "heal=lora", *HEALED),
    "layer": ("replace=layer", "replace.steps=6"),
    "linear": (),
    "linear_fused": ("replace=linear", "replace.fuse=true"),
    "linear_low_rank": ("replace=linear", "replace.map=low_rank", "replace.rank=4"),
    "mean": (),
    "merge": (),
    "shared": ("replace=shared", "heal=lora", *HEALED),
}
RECIPES = {
    "boundary": (),
    "distill": (),
    "full": (),
    "lora": (),
    "lora_around_the_cut": ("heal=lora", "heal.layers=around_cut"),
    "lora_separate": ("heal=lora", "heal.packing=separate"),
    "loraprune": ("heal=loraprune", "heal.prune_every=2"),
    "partial": (),
    "qlora": ("heal=qlora", "model.quantise=nf4"),
}
OTHERS = {
    "nf4": ("model.quantise=nf4",),
    "int8": ("model.quantise=int8",),
    "bfloat16": ("model.dtype=bfloat16",),
    "streamed": ("stream=always",),
    "adapter": ("heal=lora", *HEALED, "export=adapter"),
    "harness": ("eval=[loss,harness]", "eval.limit=8"),
    "speed": ("eval=[speed]", "eval.speed.batches=[1]", "eval.speed.tokens=4", "eval.speed.warm_up=1"),
    "speculative": ("eval=[speculative]", "replace=shared", "eval.speculative.prompts=2", "eval.speculative.length=16"),
    "wandb": ("log=wandb",),
}


def cases() -> dict[str, tuple[str, ...]]:
    """Return each run's arguments by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for group, choices, more in (
        ("metric", METRICS, UNHEALED),
        ("prune", PRUNERS, UNHEALED),
        ("replace", REPLACEMENTS, UNHEALED),
        ("heal", RECIPES, HEALED),
    ):
        for name, words in choices.items():
            found[f"{group}={name}"] = (*more, *(words or (f"{group}={name}",)))
    return found | {name: (*UNHEALED, *words) for name, words in OTHERS.items()}


def main() -> int:
    """Run all, write them, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as two:
        texts = text_files(Path(scratch))
        runs = {
            name: two.submit(left_by, Path(scratch) / str(n), *texts, *words)
            for n, (name, words) in enumerate(cases().items())
        }
        found = {name: each.result() for name, each in runs.items()}
    text = json.dumps(found, indent=1, sort_keys=True).replace(scratch, "SCRATCH") + "\n"
    asked.out.write_text(text, encoding="utf-8")
    print(f"{len(found)} runs, sha256 {hashlib.sha256(text.encode()).hexdigest()}")
    if not asked.against:
        return 0
    wrong = differences(json.loads(asked.against.read_text(encoding="utf-8")), json.loads(text))
    print("\n".join(wrong) or "no difference")
    return bool(wrong)


def left_by(outputs: Path, *words: str) -> dict[str, Any]:
    """Run one point and return its record and files."""
    done = run(*BASE, f"outputs={outputs}", *deduplicated(words), WANDB_MODE="offline")
    if done.returncode:
        return {"status": done.returncode, "error": done.stderr.splitlines()[-1:]}
    (path,) = outputs.glob("main/*/record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in record.items() if key not in LEFT_OUT and not key.startswith(VOLATILE)}
    kept = {key: value for key, value in kept.items() if not is_timing(key)}
    for stage in kept["measured"].values():
        for each in stage.values():
            each["numbers"] = {key: value for key, value in each["numbers"].items() if not is_timing(key)}
    return {"record": kept, "cache": sorted(names(outputs / "cache"))}


def is_timing(key: str) -> bool:
    """Tell whether a number depends on how busy the machine is."""
    return "speed/" in key or "speculative/" in key


def deduplicated(words: tuple[str, ...]) -> list[str]:
    """Keep the last of several values of one key."""
    return list({word.partition("=")[0]: word for word in words}.values())


def names(cache: Path) -> list[str]:
    """Return the cache's entries as KIND/KEY, without fetched models and question sets, which no run changes."""
    return [str(path.relative_to(cache)) for path in cache.glob("*/*") if not path.name.startswith(".")]


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the differences between ``before`` and ``after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key, value in before.items()
            for line in (differences(value, after[key], f"{path} {key}") if key in after else [f"{path} {key}: gone"])
        ]
    return [] if before == after else [f"{path}: {before} is now {after}"]


if __name__ == "__main__":
    sys.exit(main())
