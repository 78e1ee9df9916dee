"""Check a run against its model before a weight is loaded: from config, headers and tokenizer alone."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from depthcut.data.text.tokens import Tokens, separator_id
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from depthcut.study.lab import Lab

# Names of modules and buffers that hold a row for each position: OPT, GPT-2, GPT-Neo; GPT-J, CodeGen.
POSITIONS = re.compile(r"(^|\.)(wpe|\w*position\w*)$")
MOST_UNQUANTISED = 0.5
log = logging.getLogger("depthcut")


def check_run(lab: "Lab") -> None:
    """Refuse what can be known to fail, or not to do what was asked.

    Raises:
        UserError: naming the key or the file, and what to do.
    """
    from depthcut.model.checkpoint import loading

    if lab.settled:
        log.info(lab.settled)
    loading.read_generation_config(lab.checkpoint.files)
    model = lab.checkpoint.bare
    check_quantised(lab, model)
    check_lengths(lab, model)
    check_separator(lab, model)


def check_quantised(lab: "Lab", model: "PreTrainedModel") -> None:
    """Report the share of the layers' weights that bitsandbytes does not quantise; refuse it above one half.

    Raises:
        UserError: if the larger part would stay as it is: fused experts are no linear layers.
    """
    from depthcut.model.decoder import layers, linear

    described = lab.experiment.model
    if described.quantise == "none":
        return
    parts = [linear.weight_matrices(layer) for layer in layers.layer_list(model)]
    covered = {id(each.weight) for each in linear.linear_layers(model).values()}
    share, names = linear.uncovered_share(parts, covered)
    if not names:
        return
    stays = f"{share:.0%} of the layers' weights in {described.dtype} ({', '.join(names)})"
    if share > MOST_UNQUANTISED:
        why = "bitsandbytes quantises linear layers, and fused experts are none"
        raise UserError(f"model.quantise={described.quantise} would leave {stays}: {why}; take model.quantise=none")
    log.warning("model.quantise=%s leaves %s", described.quantise, stays)


def check_lengths(lab: "Lab", model: "PreTrainedModel") -> None:
    """Refuse sequences that are longer than a table of positions.

    Raises:
        UserError: naming the key.
    """
    most = position_count(model)
    if most is None:
        return
    for key, length, more in requested_lengths(lab):
        if length + more > most:
            beside = f", {more} of which are taken" if more else ""
            raise UserError(f"{key}={length}, but the model has {most} positions{beside}; take at most {most - more}")


def requested_lengths(lab: "Lab") -> Iterator[tuple[str, int, int]]:
    """Go through the lengths of sequences that a run asks for: their keys, tokens, and the tokens that come on top."""
    x = lab.experiment
    read = {
        "validation": True,
        "calibration": (x.prune.reads_scores and x.metric.reads_text) or x.replace.part == "calibration",
        "train": x.heal.trains or x.replace.part == "train",
    }
    for part in (part for part, wanted in read.items() if wanted):
        yield f"data.{part}.length", getattr(x.data, part).length, 0
    for name, evaluation in x.eval.items():
        for key, more in evaluation.lengths(lab).items():
            yield f"eval.{name}.{key}", getattr(evaluation, key), more


def position_count(model: "PreTrainedModel") -> int | None:
    """Return how many positions a model has a row for; None where they are computed, as in rotary models."""
    from torch import nn

    from depthcut.model.decoder import layers

    decoder, text = layers.decoder_stack(model), layers.text_config(model.config)
    tables = [name for name, part in decoder.named_modules() if isinstance(part, nn.Embedding)]
    tables += [name for name, _ in decoder.named_buffers()]
    known = any(POSITIONS.search(name) for name in tables)
    return int(text.max_position_embeddings) if known else None


def check_separator(lab: "Lab", model: "PreTrainedModel") -> None:
    """Refuse a separator, or a token that the tokenizer puts before a text, without a row in the embedding.

    Raises:
        UserError: naming the token.
    """
    tokenizer, separator = lab.checkpoint.tokenizer, lab.checkpoint.separator
    rows = embedding_rows(model)
    for number in (separator_id(tokenizer, separator), *tokenizer("")["input_ids"]):
        if number >= rows:
            word = tokenizer.convert_ids_to_tokens(number)
            mend = "name another with model.separator, or resize the embedding"
            raise UserError(f"token {number} ({word}) has no row in an embedding of {rows}; {mend}")


def check_tokens(lab: "Lab", parts: Mapping[str, Tokens]) -> None:
    """Refuse texts with tokens that have no row in the embedding; they are read only where the tokenizer has such.

    Raises:
        UserError: naming the text and the token.
    """
    tokenizer, rows = lab.checkpoint.tokenizer, embedding_rows(lab.checkpoint.bare)
    if len(tokenizer) <= rows:
        return
    for part, text in parts.items():
        if (number := int(text.ids.max())) >= rows:
            word = tokenizer.convert_ids_to_tokens(number)
            where = f"data.{part}: token {number} ({word})"
            raise UserError(f"{where} has no row in an embedding of {rows}; resize the embedding to {len(tokenizer)}")


def embedding_rows(model: "PreTrainedModel") -> int:
    """Return the number of rows of the input embedding."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]
