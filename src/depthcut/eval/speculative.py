"""Self-speculative decoding: acceptance of a model's own drafts, and the speed-up from them (arXiv:2501.14713).

The model without its shared layers drafts a few tokens. The full model reads the draft in one pass, accepts the tokens
that it would have generated itself, and adds one (Leviathan et al., arXiv:2211.17192; transformers' assisted
generation). The draft model shares the full model's weights: nothing more is loaded. Greedy output equals that of the
full model alone, except where rounding breaks a tie: in 16 bits, one pass over several tokens rounds differently than
passes over single tokens.

Times hold for one machine, as in ``eval=speed``. A healed model is timed as it is exported: with its adapters merged,
unless the base is quantised.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from depthcut.eval import FULL_ONLY, Eval, Subnetworks
from depthcut.eval.speed import PACKAGES, machine_name
from depthcut.eval.timing import clock
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from depthcut.eval import Bench

AtLeastTwo = Annotated[int, Field(gt=1)]


@strict
class Speculative(Eval):
    """Acceptance and speed-up of greedy decoding at batch 1, for models with shared layers only.

    Attributes:
        prompts: number of prompts, each the start of a sequence of ``data.validation``.
        length: tokens per prompt.
        tokens: tokens generated per prompt, exactly.
        draft: tokens drafted before each pass of the full model.
        runs: timed runs over all prompts, after one that counts passes.
    """

    needs_shared_layers: ClassVar[bool] = True
    prompts: AtLeastTwo
    length: Annotated[int, Field(gt=0)]
    tokens: AtLeastTwo
    draft: Annotated[int, Field(gt=0)]
    runs: AtLeastTwo

    @override
    def lengths(self, bench: "Bench") -> dict[str, int]:
        return {"length": 0, "tokens": self.length - 1}  # the last token is never read

    def reads(self, bench: "Bench") -> Any:
        """Return the validation text, the machine and the versions of the packages that generate."""
        from importlib.metadata import version

        versions = [version(package) for package in PACKAGES]
        return {
            "text": bench.texts.identity("validation"),
            "machine": machine_name(bench.asked_device),
            "versions": versions,
        }

    def prepare(self, bench: "Bench") -> None:
        """Check that the validation text is long enough for the prompts.

        Raises:
            UserError: if it is too short.
        """
        self.begun(bench)

    def begun(self, bench: "Bench") -> "list[Tensor]":
        """Return the prompts, 1 x T each.

        Raises:
            UserError: if the text yields too few of them.
        """
        import numpy as np
        import torch

        text = bench.texts.validation()
        rows = np.flatnonzero(np.asarray(text.lengths) >= self.length)[: self.prompts]
        if len(rows) < self.prompts:
            wanted = f"{self.prompts} prompts of {self.length} tokens"
            raise UserError(
                f"eval.speculative needs {wanted}; data.validation has {len(rows)}. Lower eval.speculative.prompts"
            )
        return [torch.from_numpy(np.asarray(text.ids[row, : self.length], dtype=np.int64))[None] for row in rows]

    def __call__(
        self, model: "nn.Module", bench: "Bench", cuts: Subnetworks = FULL_ONLY
    ) -> list[dict[str, float]] | None:
        """Measure ``speculative/acceptance``, ``accepted_per_draft``, ``same``, ``speedup`` and tokens per second.

        Returns:
            One dictionary of numbers, empty for a model without shared layers; None for cuts, which must be timed one
            by one.
        """
        import torch
        from peft import PeftModel

        from depthcut.model.checkpoint import loading
        from depthcut.model.decoder.merging import merged_model
        from depthcut.model.surgery import drafting, shared

        if cuts is not FULL_ONLY:
            return None
        if not shared.shared_layer_bases(model):
            return [{}]
        with merged_model(model) as plain, loading.quiet_transformers(), torch.inference_mode():
            whole: Any = plain.get_base_model() if isinstance(plain, PeftModel) else plain
            drafts = drafting.draft_model(whole, self.draft)
            prompts = [prompt_1T.to(bench.device) for prompt_1T in self.begun(bench)]
            return [self.counted(whole, drafts, prompts, bench) | self.timed(whole, drafts, prompts, bench)]

    def counted(
        self, whole: Any, drafts: "PreTrainedModel", prompts: "list[Tensor]", bench: "Bench"
    ) -> dict[str, float]:
        """Measure the acceptance of drafts over prompts; the full model generates the other tokens, one per pass."""
        rows: list[tuple[float, ...]] = []
        for prompt_1T in prompts:
            alone = self.write(whole, prompt_1T, bench)
            with recorded_passes(d=drafts, w=whole) as seen:
                helped = self.write(whole, prompt_1T, bench, drafts)
            trace = "".join(seen)
            accepted = self.tokens - trace.count("w")
            rows.append((accepted / trace.count("d"), accepted / trace.count("dw"), alone.equal(helped)))
        numbers: dict[str, float] = {}
        for name, values in zip(("acceptance", "accepted_per_draft", "same"), zip(*rows, strict=True), strict=True):
            mean, error = clock.sample_mean_and_stderr(list(values))
            numbers |= {f"speculative/{name}": mean, f"speculative/{name}_stderr": error}
        return numbers

    def timed(self, whole: Any, drafts: "PreTrainedModel", prompts: "list[Tensor]", bench: "Bench") -> dict[str, float]:
        """Time the continuation of the prompts with drafts and without."""
        from depthcut.runtime.progress import track

        ways: dict[str, tuple[PreTrainedModel | None, list[float]]] = {"plain_": (None, []), "": (drafts, [])}
        for _ in track(range(self.runs), "speculative decoding", self.runs):
            for helper, seconds in ways.values():  # in turn, because other load on the machine then affects both

                def write(helper: "PreTrainedModel | None" = helper) -> None:
                    for prompt_1T in prompts:
                        self.write(whole, prompt_1T, bench, helper)

                seconds.append(clock.time_run(write, bench.device))
        numbers: dict[str, float] = {}
        for way, (_, seconds) in ways.items():
            numbers |= clock.tokens_per_second(
                f"speculative/{way}tokens_per_second", self.tokens * len(prompts), seconds
            )
        (alone, error), (helped, other) = (clock.sample_mean_and_stderr(seconds) for _, seconds in ways.values())
        spread = math.hypot(error / alone, other / helped)
        return numbers | {"speculative/speedup": alone / helped, "speculative/speedup_stderr": alone / helped * spread}

    def write(
        self, whole: Any, prompt_1T: "Tensor", bench: "Bench", helper: "PreTrainedModel | None" = None
    ) -> "Tensor":
        """Return a prompt and its continuation."""
        import torch
        from transformers import GenerationConfig

        tokenizer: Any = bench.tokenizer
        exact = {"do_sample": False, "min_new_tokens": self.tokens, "max_new_tokens": self.tokens, "use_cache": True}
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id or 0}
        return whole.generate(
            input_ids=prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            generation_config=GenerationConfig(**exact, **ends),
            assistant_model=helper,
        )


@contextmanager
def recorded_passes(**models: "nn.Module") -> Generator[list[str]]:
    """Inside the ``with``, record the name of a model at each of its forward passes."""
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: seen.append(name)

    handles = [model.register_forward_pre_hook(note(name)) for name, model in models.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
