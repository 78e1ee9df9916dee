"""How fast a model writes and reads, and in how much memory, as Shortened LLaMA measures it (arXiv:2402.02834).

Latency is the time of one ``generate`` that continues a prompt by a fixed number of tokens; throughput is what a batch
of such prompts gives, in tokens a second; reading is a plain forward pass. Each number is the mean of the timed runs,
with its standard error. It holds for one machine that has nothing else to do, so that machine's name is a part of what
it is kept under: on another one it is measured again.

A healed model is timed as it is exported, with its adapters merged, where the base is not quantised: unmerged ones cost
time (some 54 %, LoRAPrune, arXiv:2305.18403). On a quantised base they stay unmerged, for so it is used: what is merged
into 4 bits is another model.
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

SAMPLING = {"do_sample": True, "top_k": 50, "top_p": 0.95}  # the paper's
PACKAGES = ("torch", "transformers", "bitsandbytes")
Count = Annotated[int, Field(gt=0)]
log = logging.getLogger("depthcut")


@strict
class Speed(Eval):
    """Latency, throughput and peak memory of writing at some batch sizes; tokens a second of reading.

    Attributes:
        batches: how many copies of the prompt are continued at a time; each size is measured. Empty: writing is not.
        prompt: what is continued.
        tokens: by how many tokens each copy is, neither more nor fewer.
        prefill_batch: sequences of the forward pass; None: reading is not measured.
        prefill_length: tokens of each of them.
        warm_up: runs before the first that is timed.
        runs: timed runs; what they differ by is the standard error.
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
            raise UserError(f"eval.speed.batches must be numbers of sequences from 1, each once, got {self.batches}")
        if not self.batches and self.prefill_batch is None:
            raise UserError("eval.speed measures nothing: give batches, or a prefill_batch")

    def parts(self) -> tuple[Eval, ...]:
        """One part for reading, and one a batch size."""
        reading = [] if self.prefill_batch is None else [dataclasses.replace(self, batches=[])]
        writing = [dataclasses.replace(self, batches=[batch], prefill_batch=None) for batch in self.batches]
        return (*reading, *writing)

    @override
    def lengths(self, bench: "Bench") -> dict[str, int]:
        prompt: int = len(bench.tokenizer(self.prompt)["input_ids"])
        reading = {} if self.prefill_batch is None else {"prefill_length": 0}
        return reading | ({"tokens": prompt - 1} if self.batches else {})  # the last token is never read

    def reads(self, bench: "Bench") -> Any:
        """No text, but the machine, and the versions of what does the work on it."""
        from importlib.metadata import version

        return {"machine": machine_name(bench.asked_device), "versions": [version(package) for package in PACKAGES]}

    def prepare(self, bench: "Bench") -> None:
        """Nothing is fetched."""
        del bench

    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> list[dict[str, float]] | None:
        """Measure ``speed/tokens_per_second``, and ``speed/latency_s@8``, ``speed/throughput@8``, ``speed/peak_gib@8``.

        The memory is an accelerator's; on a CPU it has no key, and neither has what does not fit. None of cuts: each is
        to be timed by itself, as it is loaded.
        """
        import torch

        from depthcut.model.decoder.unwrapped import unwrapped_model

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
        what = f"reading {batch} x {self.prefill_length} tokens"
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
        seconds = self.timed(bench, f"writing at batch {batch}", write, caching=batch * length)
        if not seconds:
            return {}
        latency, error = clock.sample_mean_and_stderr(seconds)
        numbers = {f"speed/latency_s@{batch}": latency, f"speed/latency_s@{batch}_stderr": error}
        numbers |= clock.tokens_per_second(f"speed/throughput@{batch}", batch * self.tokens, seconds)
        if bench.device != "cpu":
            numbers[f"speed/peak_gib@{batch}"] = torch.cuda.max_memory_allocated() / runtime_devices.GIB
        return numbers

    def timed(self, bench: "Bench", what: str, run: Callable[[], object], caching: int = 0) -> list[float]:
        """Seconds of each timed run; none, and that is said, if memory does not suffice.

        Args:
            bench: knows the device.
            what: is done, in words.
            run: does it.
            caching: tokens whose keys and values are kept meanwhile.
        """
        from depthcut.runtime.progress import track

        seconds: list[float] = []
        # On a CPU the system may end the process before an allocation fails.
        if bench.device != "cpu" or caching * bench.dense.sizes("layer").total[
            "cache_bytes"
        ] <= runtime_devices.free_memory("cpu"):
            times = range(self.warm_up + self.runs)
            with clock.suppress_out_of_memory():
                seconds = [clock.time_run(run, bench.device) for _ in track(times, f"speed of {what}", len(times))]
        if not seconds:
            log.warning("speed of %s: it does not fit in memory, and is not measured", what)
        return seconds[self.warm_up :]


def reset_peak_memory(bench: "Bench") -> None:
    """Begin to count a GPU's peak memory anew; the run's so far is noted."""
    import torch

    if bench.device != "cpu":
        bench.numbers.note_peak_memory()
        torch.cuda.reset_peak_memory_stats()


def machine_name(device: str) -> str:
    """The processor or the GPU that a run with this ``device`` is on, where possible without torch.

    A CPU's name comes with the number of threads where the environment says it.
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
