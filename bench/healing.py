"""Healing on one GPU: tokens per second and peak memory of depthcut and of alternatives, on the same shapes.

    python bench/healing.py                         # all cases that can run here, one process each
    python bench/healing.py --markdown docs/benchmarks.md
    python bench/healing.py --cases 7b16_depthcut,7b16_hf
    python bench/healing.py --parity                # the first 50 losses on SmolLM2, compared with plain HF and peft

Random weights of the true shapes: speed and memory do not depend on the values. 2,048 tokens per sequence, 8 sequences
per step, LoRA of rank 64 on the FFN, AdamW. depthcut runs its real healing code, planner and trainer included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthcut.data.text.parts import GivenText
from depthcut.study.standalone import Standalone

SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
}
TITLES = {"7b": "Llama-2-7B", "70b": "Llama-2-70B"}
VOCABULARY, LENGTH, BATCH, RANK = 32000, 2048, 8, 64
FFN = ["gate_proj", "up_proj", "down_proj"]
WARM, STEPS = 3, 5
MATMUL, PEAK = 790e12, 989e12
"""An H100's bf16 products: as measured on large matrices, and as its maker says."""


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        shape: of one layer.
        layers: number of kept layers.
        who: depthcut, hf, liger or unsloth.
        nf4: whether the base has 4-bit weights.
        micro: sequences per pass; None: the planner's choice.
        recompute: layers with gradient checkpointing, as in the recipe.
        packing: as in the recipe; documents have 512 tokens.
        rank: of the adapters.
        optimiser: as in the recipe.
    """

    shape: str
    layers: int
    who: str
    nf4: bool = True
    micro: int | None = None
    recompute: str = "auto"
    packing: str = "crossed"
    rank: int = RANK
    optimiser: str = "adamw"


CASES = {
    "7b16_depthcut_bf16": Case("7b", 16, "depthcut", nf4=False),
    "7b16_depthcut": Case("7b", 16, "depthcut"),
    "7b16_depthcut_all": Case("7b", 16, "depthcut", recompute="all"),
    "7b16_depthcut_apart": Case("7b", 16, "depthcut", packing="separate"),
    "7b16_unsloth": Case("7b", 16, "unsloth", micro=8),
    "7b16_liger": Case("7b", 16, "liger", micro=8),
    "7b16_hf": Case("7b", 16, "hf", micro=8),
    "7b32_depthcut": Case("7b", 32, "depthcut"),
    "7b32_unsloth": Case("7b", 32, "unsloth", micro=8),
    "70b40_depthcut": Case("70b", 40, "depthcut"),
    "70b40_hf": Case("70b", 40, "hf", micro=4),
    "70b40_depthcut_least": Case("70b", 40, "depthcut", micro=1, recompute="all"),
    "70b40_depthcut_24gb": Case(
        "70b", 40, "depthcut", micro=1, recompute="all", rank=8, optimiser="paged_adamw_8bit"
    ),  # rank and optimiser as conf/model/llama2_70b.yaml and conf/heal/qlora.yaml have them
}


def llama(case: Case) -> Any:
    """Return a Llama of the case's shape, built layer by layer on the GPU, in NF4 (double quantised) or bfloat16."""
    import bitsandbytes as bnb
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[case.shape], num_hidden_layers=case.layers, vocab_size=VOCABULARY)  # pyright: ignore
    config.max_position_embeddings, config.use_cache = 4096, False
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).cuda()
    for name, part in list(model.named_modules()):
        if not isinstance(part, torch.nn.Linear) or name == "lm_head":
            continue
        weight = torch.randn(part.out_features, part.in_features, device="cuda", dtype=torch.bfloat16) * 0.02
        new: Any
        if case.nf4:
            kinds = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": True}
            new = bnb.nn.Linear4bit(part.in_features, part.out_features, bias=False, device="meta", **kinds)
            new.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
            )
            new = new.cuda()
        else:
            new = torch.nn.Linear(part.in_features, part.out_features, bias=False, device="meta")
            new.weight = torch.nn.Parameter(weight, requires_grad=False)
        home, _, last = name.rpartition(".")
        setattr(model.get_submodule(home), last, new)
    for name, weight in list(model.named_parameters()):
        if weight.is_meta:
            made = torch.ones if "norm" in name else torch.randn
            value = made(weight.shape, device="cuda", dtype=torch.bfloat16) * (1.0 if "norm" in name else 0.02)
            home, _, last = name.rpartition(".")
            setattr(model.get_submodule(home), last, torch.nn.Parameter(value, requires_grad=False))
    model.is_loaded_in_4bit = case.nf4
    return model


def with_adapters(model: Any, rank: int = RANK) -> Any:
    """Return the model with adapters on its FFN."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=FFN, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def ours(case: Case) -> dict[str, Any]:
    """Measure a healing run of depthcut."""
    import lightning as L

    from depthcut.data.text.tokens import Tokens
    from depthcut.heal.qlora import QLora
    from depthcut.heal.training import fit, memory_plan

    class Clock(L.Callback):
        """Records the time after the warm-up and at the end."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (WARM, WARM + STEPS) and trainer.global_step not in seen:
                torch.cuda.synchronize()
                seen[trainer.global_step] = time.perf_counter()

    recipe = recipe_of(
        QLora,
        steps=WARM + STEPS,
        micro_batch=case.micro or "auto",
        recompute=case.recompute,
        packing=case.packing,
        rank=case.rank,
        alpha=case.rank,
        optimiser=case.optimiser,
    )
    seen: dict[int, float] = {}
    model = with_adapters(llama(case), case.rank)
    base = torch.cuda.memory_allocated()
    rows = np.random.default_rng(0).integers(0, VOCABULARY, ((WARM + STEPS) * BATCH, LENGTH)).astype(np.int32)
    rows[:, 511::512] = 2
    text = Tokens(rows, np.full(len(rows), LENGTH, np.int32), np.array([], np.uint64), "random", 2)
    space = memory_plan.MemoryPlan.of(model, recipe, "cuda:0")
    layout = memory_plan.choose_layouts(space, recipe, True)[0]
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Standalone(texts=GivenText(text), folder=Path(folder), device="cuda:0")
        fit.fit_model(model, recipe, workspace, callbacks=[Clock()])
    seconds = (seen[WARM + STEPS] - seen[WARM]) / STEPS
    said = f"{layout.micro_batch} x {LENGTH}, {layout.recompute} of {case.layers} recomputed"
    return numbers(case, model, seconds, base) | {"how": said, "foreseen_gib": (base + space.needs(layout)) / 2**30}


def recipe_of(kind: Any, **knobs: Any) -> Any:
    """Return the recipe of all cases."""
    from dataclasses import fields

    usual: dict[str, Any] = {
        "steps": 50,
        "batch": BATCH,
        "micro_batch": "auto",
        "length": LENGTH,
        "lr": 1e-4,
        "warmup": 0,
        "weight_decay": 0.0,
        "clip": 0.3,
        "optimiser": "adamw",
        "recompute": "auto",
        "compile": True,
        "save_every": 1000,
        "packing": "crossed",
        "strategy": "ddp",
        "rank": RANK,
        "alpha": RANK,
        "dropout": 0.0,
        "modules": "ffn",
        "layers": "all",
        "betas": (0.9, 0.999),
        "reach": 1,
        "init_from": None,
        "control": False,
    }
    known = {each.name for each in fields(kind)}
    return kind(**{key: value for key, value in (usual | knobs).items() if key in known})


def theirs(case: Case) -> dict[str, Any]:
    """Measure a training loop with another library, with gradient checkpointing in all layers as recommended."""
    model = unsloth(case) if case.who == "unsloth" else usual(case)
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert case.micro is not None
    start = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            torch.cuda.synchronize()
            start = time.perf_counter()
        for _ in range(BATCH // case.micro):
            ids = torch.randint(0, VOCABULARY, (case.micro, LENGTH), device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss / (BATCH // case.micro)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.3)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / STEPS
    how = "its own checkpointing" if case.who == "unsloth" else "all recomputed"
    return numbers(case, model, seconds, base) | {"how": f"{case.micro} x {LENGTH}, {how}"}


def usual(case: Case) -> Any:
    """Return a model of HF, peft and bitsandbytes, with Liger's kernels if the case says so."""
    model = llama(case)
    if case.who == "liger":
        from liger_kernel.transformers import monkey_patch

        monkey_patch._apply_liger_kernel_to_instance(model=model)
    model = with_adapters(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model


def unsloth(case: Case) -> Any:
    """Return the same model, loaded and adapted by Unsloth."""
    os.environ |= {"UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1"}
    from unsloth import FastLanguageModel  # pyright: ignore  # isort: skip
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = Path(tempfile.mkdtemp())
    sizes: Any = SHAPES[case.shape] | {"num_hidden_layers": case.layers, "vocab_size": VOCABULARY}
    config = LlamaConfig(**sizes, max_position_embeddings=4096, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        LlamaForCausalLM(config).save_pretrained(path)
    torch.set_default_dtype(torch.float32)
    torch.cuda.empty_cache()
    words = {f"t{i}": i for i in range(VOCABULARY - 3)} | {"<unk>": 31997, "<s>": 31998, "</s>": 31999}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(words, [], unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
    ).save_pretrained(path)
    model, _ = FastLanguageModel.from_pretrained(
        str(path), max_seq_length=LENGTH, dtype=torch.bfloat16, load_in_4bit=True
    )
    knobs = {"lora_alpha": RANK, "lora_dropout": 0, "bias": "none", "use_gradient_checkpointing": True}
    return FastLanguageModel.get_peft_model(model, r=RANK, target_modules=FFN, **knobs)


def numbers(case: Case, model: Any, seconds: float, base: int) -> dict[str, Any]:
    """Return speed and memory, and utilisation, for the arithmetic without recomputation."""
    rate = BATCH * LENGTH / seconds
    sizes = SHAPES[case.shape]
    wide, key = (
        sizes["hidden_size"],
        sizes["hidden_size"] * sizes["num_key_value_heads"] // sizes["num_attention_heads"],
    )
    linear = case.layers * (2 * wide * wide + 2 * wide * key + 3 * wide * sizes["intermediate_size"])
    adapters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    attention = 2 * wide * LENGTH * case.layers
    flops = 4 * linear + 4 * VOCABULARY * wide + 3.5 * attention + 6 * adapters
    return {
        "tokens_s": rate,
        "step_s": seconds,
        "weights_gib": base / 2**30,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "mfu": rate * flops / PEAK,
        "floor": rate * flops / MATMUL,
        "trained": adapters,
    }


def parity() -> dict[str, Any]:
    """Compare the losses of the first 50 steps on SmolLM2 with those of plain HF and peft on the same batches.

    Also compare HF with itself, with the sequences of each batch in another order, and in float32, to show the effect
    of rounding.
    """
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    compiled = ("depthcut", "depthcut uncompiled") if device != "cpu" else ("depthcut uncompiled",)
    losses = {who: curve(who, device) for who in (*compiled, "hf", "hf turned round", "hf in float32")}
    return {"device": device, "last": {who: each[-1] for who, each in losses.items()}} | {
        f"{who} beside {other}": apart(losses[who], losses[other])
        for other in ("hf", "hf in float32")
        for who in losses
        if who != other
    }


def curve(who: str, device: str) -> list[float]:
    """Return the losses of 50 steps of adapters on SmolLM2 without layers 11 to 18, trained by ``who``."""
    import csv

    from depthcut.cut.plan import Plan
    from depthcut.data.demo import Demo
    from depthcut.data.text.tokenize import tokenize_source
    from depthcut.heal.lora import Lora
    from depthcut.heal.training import adapter_modules, fit
    from depthcut.heal.training.batches import MicroBatchLoader
    from depthcut.model.smollm2 import SmolLM2

    heal: Any = {"rank": 32, "lr": 1e-3, "length": 256}
    cache = Path("outputs/cache")
    files = SmolLM2(quantise="none", dtype="bfloat16", separator="<|endoftext|>", heal=heal).open(cache)
    recipe = recipe_of(
        Lora, lr=1e-3, length=256, warmup=5, rank=32, alpha=32, modules="all", clip=1.0, compile=who == "depthcut"
    )
    source = Demo(span=(0.0, 0.9), sequences=None, length=256, pack=True)
    text = tokenize_source(source, files.tokenizer, files.separator, cache, recipe.sequences)
    plan = Plan(30, tuple(range(11, 19)))
    torch.manual_seed(0)
    base = files.load(plan, quantise="none", dtype="bfloat16", device=device)
    model = adapter_modules.add_adapters(base.float() if who == "hf in float32" else base, recipe, plan)
    if who.startswith("hf"):
        batches = MicroBatchLoader(text, recipe.batch, recipe.steps, 0)
        return plain(model, recipe, batches, device, turned=who == "hf turned round")
    with tempfile.TemporaryDirectory() as folder:
        fit.fit_model(model, recipe, Standalone(texts=GivenText(text), folder=Path(folder), device=device))
        with (Path(folder) / "heal.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]


def apart(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the differences between two curves, and the step of the largest."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {"steps": len(gaps), "mean": sum(gaps) / len(gaps), "largest": max(gaps), "at_step": gaps.index(max(gaps))}


def plain(model: Any, recipe: Any, batches: Any, device: str, turned: bool) -> list[float]:
    """Train with plain HF and peft: the model's own loss, AdamW, cosine."""
    from transformers import get_cosine_schedule_with_warmup

    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, recipe.warmup, recipe.steps)
    losses: list[float] = []
    for batch in batches:
        ids = (batch.ids_BT.flip(0) if turned else batch.ids_BT).to(device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| shape | layers | who | base | per pass | tokens/s | peak GiB | MFU | of practical peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        case = CASES[name]
        start = f"| {TITLES[case.shape]} | {case.layers} | {case.who} | {'NF4' if case.nf4 else 'bf16'} | "
        if "error" in row:
            lines.append(f"{start}{row['error']} | | | | |")
            continue
        lines.append(
            f"{start}{row['how']} | {row['tokens_s']:,.0f} | {row['peak_gib']:.1f} | "
            f"{row['mfu']:.1%} | {row['floor']:.0%} |"
        )
    return "\n".join(lines)


def versions() -> str:
    """Return the versions of the packages."""
    found: list[str] = []
    for package in ("torch", "transformers", "peft", "bitsandbytes", "lightning", "liger_kernel", "unsloth"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Run each case in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help=f"any of: {', '.join(CASES)}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    if asked.parity:
        print(json.dumps(parity()))
        return
    if not torch.cuda.is_available():
        sys.exit("error: no GPU found; this benchmark needs one")
    if asked.one:
        case = CASES[asked.one]
        print(json.dumps((ours if case.who == "depthcut" else theirs)(case)))
        return
    unknown = set(asked.cases.split(",")) - set(CASES)
    if unknown:
        sys.exit(f"error: --cases: {', '.join(sorted(unknown))} must be among: {', '.join(CASES)}")
    rows: dict[str, dict[str, Any]] = {}
    for name in asked.cases.split(","):
        call = [sys.executable, __file__, "--one", name]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        line = done.stdout.strip().rpartition("\n")[2]
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        rows[name] = json.loads(line) if not done.returncode and line.startswith("{") else {"error": reason[:200]}
        print(name, json.dumps(rows[name]), flush=True)
    text = f"{torch.cuda.get_device_name()}; {versions()}\n\n{table(rows)}\n"
    print(text)
    if asked.markdown:
        command = f"    python bench/healing.py --cases {asked.cases}\n"
        asked.markdown.write_text(f"# Healing on one GPU\n\n{command}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
