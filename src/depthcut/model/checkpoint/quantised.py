"""Detection of weights that are quantised already, whatever their config says."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from depthcut.model.checkpoint.headers import TensorEntry
from depthcut.runtime.errors import UserError

FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
# Tensors that only quantisers write: GPTQ, AWQ, compressed-tensors, Model-Optimizer, FP8, bitsandbytes, HQQ.
QUANTISERS = re.compile(
    r"(?:^|\.)(?:\w+_)?(?:qweight|qzeros|g_idx|weight_packed|weight_scale\w*|weight_zero_point|weight_global_scale"
    r"|input_scale\w*|input_global_scale|activation_scale|scale_inv|SCB|absmax|quant_map|quant_state\.\S+)$"
)
# Tensors that a quantiser adds to the weight ``X.weight`` or ``X``, as ``X.scales`` or ``X_scale``.
COMPANIONS = re.compile(r"[._](?:\w+_)?(?:scales?|scale_inv|zeros|zero_points?|qmin|qmax)$")
MEND = "use the original model"


def check_config(title: str, described: Mapping[str, Any]) -> None:
    """Refuse a config that declares a quantised model.

    Raises:
        UserError: naming the method.
    """
    for part in (described, described.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, dict) and (method := part.get(key)):
                named = method.get("quant_method", "") if isinstance(method, dict) else method
                raise UserError(f"{title} is already quantised ({str(named)[:80]}); {MEND}")


def check_entries(title: str, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse a file with the tensors of a quantised model.

    Raises:
        UserError: naming such a tensor.
    """
    for name, entry in entries.items():
        if QUANTISERS.search(name):
            raise UserError(f"{title} is already quantised: it contains {name}; {MEND}")
        if name.endswith(".weight") and entry.dtype not in FLOATS:
            raise UserError(f"{title} is already quantised: {name} is stored as {entry.dtype}; {MEND}")


def check_strangers(title: str, strangers: Collection[str], held: Collection[str]) -> None:
    """Refuse tensors without a place in the model that change the meaning of tensors with one.

    Raises:
        UserError: naming one.
    """
    for name in sorted(strangers):
        owner = COMPANIONS.sub("", name)
        if owner != name and (owner in held or f"{owner}.weight" in held):
            raise UserError(f"{title} is already quantised: {name} scales its weights; {MEND}")
