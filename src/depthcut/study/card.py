"""Model cards: origin of a model, licence, measurements, usage, and how it was made."""

import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from depthcut.cut.plan import UNIT_NOUNS, Plan
from depthcut.report import table
from depthcut.runtime import provenance

if TYPE_CHECKING:
    from depthcut.study.view import RunView

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LICENCES = {  # by the start of a hub name, if the repository does not state it
    "huggingfacetb/smollm2": "apache-2.0",
    "meta-llama/llama-2": "llama2",
    "meta-llama/meta-llama-3": "llama3",
    "mistralai/mistral-7b": "apache-2.0",
    "microsoft/phi-2": "mit",
    "qwen/qwen3": "apache-2.0",
    "google/gemma-3": "gemma",
}
TEXTS = {  # by the text of a licence file
    r"Apache License\s+Version 2\.0": "apache-2.0",
    r"MIT License|Permission is hereby granted, free of charge": "mit",
    r"LLAMA 2 COMMUNITY LICENSE": "llama2",
    r"META LLAMA 3 COMMUNITY LICENSE": "llama3",
}
UNKNOWN = {"license": "other", "license_name": "fill-in-the-licence-of-the-base-model"}
CITATION = """```bibtex
@article{gromov2024unreasonable,
  title   = {The Unreasonable Ineffectiveness of the Deeper Layers},
  author  = {Gromov, Andrey and Tirumala, Kushal and Shapourian, Hassan and Glorioso, Paolo and Roberts, Daniel A.},
  journal = {arXiv preprint arXiv:2403.17887},
  year    = {2024}
}
```"""


def model_card(run: "RunView", plan: Plan, alone: bool) -> str:
    """Return the card of an exported model.

    Args:
        run: the run, with its numbers.
        plan: the cut.
        alone: whether transformers loads the model without depthcut.
    """
    load = "AutoModelForCausalLM.from_pretrained(path)" if alone else "depthcut.load(path)"
    imports = "AutoModelForCausalLM, AutoTokenizer" if alone else "AutoTokenizer"
    usage = ["import depthcut"] if not alone else []
    usage += [
        f"from transformers import {imports}",
        f"tokenizer, model = AutoTokenizer.from_pretrained(path), {load}  # path: this folder",
        'print(tokenizer.decode(model.generate(**tokenizer("The capital of France", return_tensors="pt"))[0]))',
    ]
    return render_card(run, plan, {"library_name": "transformers", "pipeline_tag": "text-generation"}, usage)


def adapter_card(run: "RunView", plan: Plan) -> str:
    """Return the card of adapters, which fit the pruned model only."""
    usage = [
        "from peft import PeftModel",
        "# cut: the base model without the layers that plan.json drops (`heal=none export=merged` writes it)",
        "model = PeftModel.from_pretrained(cut, path)  # path: this folder",
    ]
    return render_card(run, plan, {"library_name": "peft", "pipeline_tag": "text-generation"}, usage)


def render_card(run: "RunView", plan: Plan, about: dict[str, Any], usage: list[str]) -> str:
    """Return a card; ``about`` comes first in its front matter."""
    x = run.experiment
    front = about | front_matter(run)
    replace, heal = x.replace.word, x.heal.word
    versions = ", ".join(f"{name} {version}" for name, version in provenance.package_versions().items())
    config = {key: x.composed[key] for key in ("model", "data", "metric", "prune", "replace", "heal", "seed")}
    unlicensed = UNKNOWN.items() <= front.items()
    unknown = ["", "Fill in the licence above: it is that of the base model."] if unlicensed else []
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {base_name(run)}, {plan.words}",
        "",
        f"Made by depthcut from `{base_name(run)}`: "
        f"{plan.fraction:.0%} of the {UNIT_NOUNS[plan.unit]} are removed (`plan.json`).",
        f"In the gaps: `{replace}`.",
        f"Healing: `{heal}` on a base with quantise={x.model.quantise}; the weights here are plain {x.model.dtype}.",
        *unknown,
        *number_rows(run),
        *("", "## Usage", "", "```python", *usage, "```"),
        *("", "## How it was made", "", "```", command_line(run), "```", ""),
        *("<details><summary>Config</summary>", "", "```yaml"),
        *(yaml.safe_dump(config, sort_keys=False).strip(), "```", "", "</details>", ""),
        f"Versions: {versions}.",
        *("", "## Citation", "", CITATION, ""),
    ]
    return "\n".join(lines)


def number_rows(run: "RunView") -> list[str]:
    """Return the lines of the table of measurements, with standard errors; empty without measurements."""
    stages = [stage for stage in table.STAGES if any(key.startswith(f"{stage}/") for key in run.numbers)]
    names = table.measure_names(run.numbers)
    if not names:
        return []
    rows = [
        " | ".join(
            (table.titled(run.numbers, each), *(table.format_cell(run.numbers, f"{stage}/{each}") for stage in stages))
        )
        for each in names
    ]
    heads = [f"| {' | '.join(('measured', *stages))} |", "|---" * (len(stages) + 1) + "|"]
    return ["", *heads, *(f"| {row} |" for row in rows)]


def base_name(run: "RunView") -> str:
    """Return the base model's name: on the hub, or of its folder."""
    return hub_name(run) or table.model_name({"config": run.config})


def hub_name(run: "RunView") -> str | None:
    """Return OWNER/NAME of the base model on the hub; None if unknown."""
    known = run.experiment.model.published or getattr(run.checkpoint.files, "repo", None)
    noted = run.checkpoint.files.read_json("config.json").get("_name_or_path")
    local = isinstance(noted, str) and HUB_NAME.fullmatch(noted) and not Path(noted).exists()
    return known or (str(noted) if local else None)


def front_matter(run: "RunView") -> dict[str, Any]:
    """Return the front matter on the model's origin: base, licence, data sets, tags."""
    base, dataset = hub_name(run), run.experiment.data.train.hub_dataset
    found: dict[str, Any] = {"base_model": base} if base else {}
    found |= base_licence(run, base or "")
    if dataset and run.experiment.heal.trains and HUB_NAME.fullmatch(dataset):
        found["datasets"] = [dataset]
    return found | {"tags": ["depthcut", "pruned"]}


def base_licence(run: "RunView", base: str) -> dict[str, str]:
    """Return the licence of the base model from its card, its config, its licence file or its name."""
    keys = ("license", "license_name", "license_link")
    front = re.match(r"---\n(.*?)\n---", read_base_file(run, "README.md"), re.DOTALL)
    with suppress(yaml.YAMLError):
        given = yaml.safe_load(front[1]) if front else {}
        if isinstance(given, dict) and isinstance(given.get("license"), str):
            return {key: str(given[key]) for key in keys if key in given}
    if isinstance(said := run.checkpoint.files.read_json("config.json").get("license"), str):
        return {"license": said}
    text = next(filter(None, (read_base_file(run, file) for file in ("LICENSE", "LICENSE.txt", "LICENSE.md"))), "")
    known = [word for pattern, word in TEXTS.items() if re.search(pattern, text)]
    known += [word for start, word in LICENCES.items() if base.lower().startswith(start)]
    return {"license": known[0]} if known else dict(UNKNOWN)


def read_base_file(run: "RunView", file: str) -> str:
    """Return the start of a file of the base model; empty if it does not exist or the hub is unreachable."""
    files = run.checkpoint.files
    with suppress(OSError, ValueError):
        if file in files.names:
            return files.path(file).read_text(encoding="utf-8", errors="replace")[:100_000].replace("\r\n", "\n")
    return ""


def command_line(run: "RunView") -> str:
    """Return the command line of this process; for a job without one, the words that choose its methods."""
    script = Path(sys.argv[0])
    if script.name == "run.py":
        return shlex.join(["python", "run.py", *sys.argv[1:]])
    if script.name == "depthcut" or script.parts[-2:] == ("depthcut", "__main__.py"):
        return shlex.join(["depthcut", *sys.argv[1:]])
    composed = run.config
    groups = ("model", "metric", "prune", "replace", "heal")
    words = [f"{group}={table.method_name({'config': composed}, group)}" for group in groups]
    return f"depthcut {' '.join(words)}  # with the config below"
