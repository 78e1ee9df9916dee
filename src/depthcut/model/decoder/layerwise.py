"""Forward pass of a batch through a decoder, one layer at a time: the inputs, each layer, the output.

A metric chooses the cheapest order: one batch through all layers, or all batches through a layer just read from disk;
several hidden states through a layer at once; skipping a layer or one of its sublayers.

Legend: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from depthcut.cut.plan import Unit
from depthcut.model.decoder import layers, sublayers
from depthcut.runtime.errors import UserError

MEND = "use prune=deepest or prune=plan, which need no scores"


class DryRunDone(Exception):  # noqa: N818  not an error
    """Stops a dry run at its last layer."""


@dataclass
class LayerwiseForward:
    """Layer-by-layer forward pass of one batch, starting at the first layer.

    Attributes:
        model: the model; its layers may be on the meta device until they are run.
        stack: its layer list.
        inputs: keyword arguments of the model.
        returns_tuple: whether layers return their output in a tuple.
        h_BTD: input of the first layer.
        layer_arguments: for each layer, its arguments other than the hidden state: masks, positions.
    """

    model: nn.Module
    stack: nn.ModuleList
    inputs: dict[str, Any]
    returns_tuple: bool
    h_BTD: Tensor = field(init=False)
    layer_arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list[Any])

    def step(self, index: int, h_BTD: Tensor, without: Unit | None = None) -> Tensor:
        """Return the hidden state after layer ``index``, or after that layer without its attention or MLP."""
        layer = self.stack[index]
        args, kwargs = self.layer_arguments[index]
        with sublayers.bypass_sublayer(layer, without):
            output = layer(h_BTD, *args, **kwargs)
        self.returns_tuple = isinstance(output, tuple)
        return output[0] if isinstance(output, tuple) else output

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Return the logits (B x T x V) for a hidden state after the last layer, or after any other (logit lens)."""
        output = (h_BTD, None) if self.returns_tuple else h_BTD
        with stub_layers(self.stack, lambda _: lambda *_, **__: output):
            return self.model(**self.inputs).logits


def start_forward(model: nn.Module, inputs: dict[str, Any]) -> LayerwiseForward:
    """Run all of the decoder except its layers: embeddings, positions, masks.

    Raises:
        UserError: if the model computes between its layers, which therefore cannot be run one by one.
    """
    name = type(model).__name__
    found = tried(model, inputs, returns_tuple=False) or tried(model, inputs, returns_tuple=True)
    if found is None:
        raise UserError(f"{name}: its layers pass on more than hidden states, so they cannot be scored; {MEND}")
    forward, last_BTD = found
    if last_BTD is not forward.h_BTD or last_BTD.ndim != 3:
        raise UserError(f"{name} computes between its layers, so they cannot be scored one by one; {MEND}")
    return forward


def tried(model: nn.Module, inputs: dict[str, Any], returns_tuple: bool) -> tuple[LayerwiseForward, Tensor] | None:
    """Return the result of :func:`dry_run`; None if the model expects layer outputs of another form."""
    try:
        forward, last_BTD = dry_run(model, inputs, returns_tuple)
    except UserError:
        raise
    except ValueError:  # the model unpacks a tuple of another length
        return None
    if last_BTD.ndim == forward.h_BTD.ndim - 1:  # the model indexed the tensor as if it were a tuple
        return None
    return forward, last_BTD


def dry_run(model: nn.Module, inputs: dict[str, Any], returns_tuple: bool) -> tuple[LayerwiseForward, Tensor]:
    """Run the decoder with layers that return their input.

    Returns:
        The forward pass, and the input of the last layer, or the first input that is not that of layer 0.
    """
    stack = layers.layer_list(model)
    forward = LayerwiseForward(model, stack, inputs, returns_tuple)
    streams: list[Tensor] = []

    def stub(index: int) -> Callable[..., Any]:
        def record_input(*args: Any, **kwargs: Any) -> Any:
            streams.append(args[0] if args else kwargs.pop("hidden_states"))
            forward.layer_arguments.append((args[1:], kwargs))
            if index == len(stack) - 1 or streams[-1] is not streams[0]:
                raise DryRunDone
            return (streams[0], None) if returns_tuple else streams[0]

        return record_input

    with stub_layers(stack, stub), suppress(DryRunDone):
        layers.decoder_stack(model)(**inputs)
    forward.h_BTD = streams[0]
    return forward, streams[-1]


@contextmanager
def stub_layers(stack: nn.ModuleList, forward: Callable[[int], Callable[..., Any]]) -> Generator[None]:
    """Replace the forward of layer i by ``forward(i)`` inside the ``with`` block."""
    own = [vars(layer).get("forward") for layer in stack]
    for index, layer in enumerate(stack):
        vars(layer)["forward"] = forward(index)
    try:
        yield
    finally:
        for layer, before in zip(stack, own, strict=True):
            del vars(layer)["forward"]
            if before is not None:
                vars(layer)["forward"] = before
