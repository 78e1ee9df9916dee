"""Checks of a run against its model before any weight is loaded: from config, headers and tokenizer alone."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from depthcut.data.text.tokens import check_disjoint
from depthcut.runtime.errors import UserError
from depthcut.study.tokenizer_checks import check_questions, check_separator, check_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from depthcut.study.run import Run

MOST_UNQUANTISED = 0.5
log = logging.getLogger("depthcut")


def prepare_run(run: "Run") -> None:
    """Fetch, tokenise and check all inputs of this point, before any weight is loaded.

    Raises:
        UserError: if a text or a task is unavailable, a text is too short, or a document is in two parts.
    """
    x = run.experiment
    check_run(run)
    for evaluation in x.eval.values():
        evaluation.prepare(run)
    x.heal.prepare(run)
    x.replace.prepare(run)
    parts = {"validation": run.texts.validation()}
    if x.prune.reads_scores:
        x.metric.prepare(run, x.prune.unit)
        check_questions(x.metric, x.eval.values(), run.cache)
    if x.prune.reads_scores and x.metric.reads_text:
        parts["calibration"] = run.texts.calibration()
    if x.heal.trains:
        parts["train"] = run.texts.train()
    for part, text in x.replace.text(run).items():
        parts[part] = max(parts.get(part, text), text, key=len)
    check_tokens(run, parts)
    check_disjoint(parts)


def check_run(run: "Run") -> None:
    """Refuse a run that is known to fail, or to ignore an option.

    Raises:
        UserError: naming the key or the file, and a remedy.
    """
    from depthcut.model.checkpoint import loading

    if run.settled:
        log.info(run.settled)
    loading.read_generation_config(run.checkpoint.files)
    model = run.checkpoint.bare
    check_quantised(run, model)
    check_lengths(run, model)
    check_separator(run, model)


def check_quantised(run: "Run", model: "PreTrainedModel") -> None:
    """Log the share of the layers' weights that bitsandbytes does not quantise; refuse more than one half.

    Raises:
        UserError: if most weights would stay unquantised: fused experts are not linear layers.
    """
    from depthcut.model.decoder import layers, linear

    described = run.experiment.model
    if described.quantise == "none":
        return
    parts = [linear.weight_matrices(layer) for layer in layers.layer_list(model)]
    covered = {id(each.weight) for each in linear.linear_layers(model).values()}
    share, names = linear.uncovered_share(parts, covered)
    if not names:
        return
    stays = f"{share:.0%} of the layers' weights in {described.dtype} ({', '.join(names)})"
    if share > MOST_UNQUANTISED:
        why = "bitsandbytes only quantises linear layers, not fused experts"
        raise UserError(f"model.quantise={described.quantise} would leave {stays}: {why}; use model.quantise=none")
    log.warning("model.quantise=%s leaves %s", described.quantise, stays)


def check_lengths(run: "Run", model: "PreTrainedModel") -> None:
    """Refuse sequences that exceed the model's position table.

    Raises:
        UserError: naming the key.
    """
    from depthcut.model.decoder import inputs

    most = inputs.position_count(model)
    if most is None:
        return
    for key, length, more in requested_lengths(run):
        if length + more > most:
            beside = f", {more} of which are reserved" if more else ""
            raise UserError(f"{key}={length}, but the model has {most} positions{beside}; use at most {most - more}")


def requested_lengths(run: "Run") -> Iterator[tuple[str, int, int]]:
    """Yield the sequence lengths that a run requests: key, tokens, and the tokens added to them."""
    x = run.experiment
    read = {
        "validation": True,
        "calibration": (x.prune.reads_scores and x.metric.reads_text) or x.replace.part == "calibration",
        "train": x.heal.trains or x.replace.part == "train",
    }
    for part in (part for part, wanted in read.items() if wanted):
        yield f"data.{part}.length", getattr(x.data, part).length, 0
    for name, evaluation in x.eval.items():
        for key, more in evaluation.lengths(run).items():
            yield f"eval.{name}.{key}", getattr(evaluation, key), more
