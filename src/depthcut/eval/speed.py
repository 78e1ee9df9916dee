"""Speed and memory of generation and of forward passes, as Shortened LLaMA measures them (arXiv:2402.02834).

Latency is the time of one ``generate`` call that continues a prompt by a fixed number of tokens; throughput is the
number of tokens per second of a batch of such prompts; prefill is a plain forward pass. Each number is the mean of the
timed runs, with its standard error. It holds for one otherwise idle machine. The machine's name is part of the cache
key, and another machine measures again.

A healed model is timed as it is exported: with its adapters merged, unless the base is quantised. Unmerged adapters
cost time (some 54 %, LoRAPrune, arXiv:2305.18403). On a quantised base they stay unmerged, because merging into 4 bits
would make another model.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.eval.timing import clock
from depthcut.runtime import devices as runtime_devices
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import nn

    from depthcut.eval import Bench

SAMPLING = {"do_sample": True, "top_k": 50, "top_p": 0.95}  # as in the paper
PACKAGES = ("torch", "transformers", "bitsandbytes")
Count = Annotated[int, Field(gt=0)]
log = logging.getLogger("depthcut")


@strict
class Speed(Eval):
    """Latency, throughput and peak memory of generation at several batch sizes; tokens per second of prefill.

    Attributes:
        batches: batch sizes, in copies of the prompt, each measured. Empty: generation is not measured.
        prompt: the prompt.
        tokens: tokens generated per copy, exactly.
        prefill_batch: sequences per forward pass; None: prefill is not measured.
        prefill_length: tokens per sequence.
        warm_up: runs before the first timed run.
        runs: timed runs; their spread gives the standard error.
    """

    batches: list[int]
    prompt: Annotated[str, Field(min_length=1)]
    tokens: Count
    prefill_batch: Annotated[int | None, Field(gt=0)]
    prefill_length: Count
    warm_up: Annotated[int, Field(ge=0)]
    runs: Annotated[int, Field(gt=1)]
    needs_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if any(batch < 1 for batch in self.batches) or len(set(self.batches)) < len(self.batches):
            raise UserError(f"eval.speed.batches must be distinct batch sizes of at least 1, got {self.batches}")
        if not self.batches and self.prefill_batch is None:
            raise UserError("eval.speed measures nothing: set batches or prefill_batch")

    def parts(self) -> tuple[Eval, ...]:
        """Return one part for prefill, and one per batch size."""
        reading = [] if self.prefill_batch is None else [dataclasses.replace(self, batches=[])]
        writing = [dataclasses.replace(self, batches=[batch], prefill_batch=None) for batch in self.batches]
        return (*reading, *writing)

    @override
    def lengths(self, bench: "Bench") -> dict[str, int]:
        prompt: int = len(bench.tokenizer(self.prompt)["input_ids"])
        reading = {} if self.prefill_batch is None else {"prefill_length": 0}
        return reading | ({"tokens": prompt - 1} if self.batches else {})  # the last token is never read

    def reads(self, bench: "Bench") -> Any:
        """Return the machine and the versions of the packages that do the work; no text is read."""
        from importlib.metadata import version

        return {"machine": machine_name(bench.asked_device), "versions": [version(package) for package in PACKAGES]}

    def prepare(self, bench: "Bench") -> None:
        """Do nothing: no input has to be fetched."""
        del bench

    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> list[dict[str, float]] | None:
        """Measure ``speed/tokens_per_second``, and ``speed/latency_s@8``, ``speed/throughput@8``, ``speed/peak_gib@8``.

        Returns:
            One dictionary of numbers. Memory is that of a GPU and has no key on a CPU; neither has a batch that does
            not fit. None for cuts, which must be loaded and timed one by one.
        """
        import torch

        from depthcut.model.decoder.merging import unwrapped_model

        if cuts is not FULL_ONLY:
            return None
        numbers: dict[str, float] = {}
        devices = [torch.cuda.current_device()] if bench.device != "cpu" else []
        with unwrapped_model(model) as plain, torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            if self.prefill_batch is not None:
                numbers |= self.reading(plain, bench, self.prefill_batch)
            for batch in self.batches:
                numbers |= self.writing(plain, bench, batch)
        return [numbers]

    def reading(self, model: "nn.Module", bench: "Bench", batch: int) -> dict[str, float]:
        """Time forward passes over random tokens."""
        import torch

        from depthcut.eval.loss import vocabulary_size

        ids_BT = torch.randint(vocabulary_size(model), (batch, self.prefill_length)).to(bench.device)
        what = f"prefill of {batch} x {self.prefill_length} tokens"
        seconds = self.timed(bench, what, lambda: model(input_ids=ids_BT, use_cache=False))
        return clock.tokens_per_second("speed/tokens_per_second", ids_BT.numel(), seconds) if seconds else {}

    def writing(self, model: Any, bench: "Bench", batch: int) -> dict[str, float]:
        """Time the continuation of a batch of prompts."""
        import torch
        from transformers import GenerationConfig

        tokenizer: Any = bench.tokenizer
        prompt_1T = tokenizer(self.prompt, return_tensors="pt").input_ids.to(bench.device)
        length = prompt_1T.shape[1] + self.tokens
        exact = {"min_new_tokens": self.tokens, "max_new_tokens": self.tokens, "use_cache": True}
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id or 0}
        config = GenerationConfig(**SAMPLING, **exact, **ends)

        def write() -> None:
            ids_BT = prompt_1T.repeat(batch, 1)
            written = model.generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config)
            assert written.shape == (batch, length)

        reset_peak_memory(bench)
        seconds = self.timed(bench, f"generation at batch {batch}", write, caching=batch * length)
        if not seconds:
            return {}
        latency, error = clock.sample_mean_and_stderr(seconds)
        numbers = {f"speed/latency_s@{batch}": latency, f"speed/latency_s@{batch}_stderr": error}
        numbers |= clock.tokens_per_second(f"speed/throughput@{batch}", batch * self.tokens, seconds)
        if bench.device != "cpu":
            numbers[f"speed/peak_gib@{batch}"] = torch.cuda.max_memory_allocated() / runtime_devices.GIB
        return numbers

    def timed(self, bench: "Bench", what: str, run: Callable[[], object], caching: int = 0) -> list[float]:
        """Return the seconds of each timed run; warn and return none if memory does not suffice.

        Args:
            bench: provides the device.
            what: the work, for messages.
            run: does the work.
            caching: tokens whose keys and values are cached during the work.
        """
        from depthcut.runtime.progress import track

        seconds: list[float] = []
        # On a CPU the system may kill the process before an allocation fails.
        if bench.device != "cpu" or caching * bench.dense.sizes("layer").total[
            "cache_bytes"
        ] <= runtime_devices.free_memory("cpu"):
            times = range(self.warm_up + self.runs)
            with clock.suppress_out_of_memory():
                seconds = [clock.time_run(run, bench.device) for _ in track(times, f"speed of {what}", len(times))]
        if not seconds:
            log.warning("speed of %s: not measured, because it does not fit in memory", what)
        return seconds[self.warm_up :]


def reset_peak_memory(bench: "Bench") -> None:
    """Note the run's peak GPU memory, then reset the counter."""
    import torch

    if bench.device != "cpu":
        bench.numbers.note_peak_memory()
        torch.cuda.reset_peak_memory_stats()


def machine_name(device: str) -> str:
    """Return the name of the CPU or GPU that a run with this ``device`` uses, without torch if possible.

    A CPU's name includes the number of threads if the environment sets it.
    """
    from depthcut.runtime import provenance

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if device != "cpu" and not hidden and any(list(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "dxg", "kfd")):
        files = Path("/proc/driver/nvidia/gpus").glob("*/information")
        names = {line.partition(":")[2].strip() for file in files for line in file.read_text().splitlines()[:1]}
        if len(names) == 1:
            return names.pop()
        import torch

        if torch.cuda.is_available():
            return provenance.device_name("cuda")
    return f"{provenance.device_name('cpu')} {os.environ.get('OMP_NUM_THREADS', '')}".strip()
