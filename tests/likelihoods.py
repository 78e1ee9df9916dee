"""Requests with shared contexts, and the log-likelihood of each from a pass of its own."""

import torch

CONTEXTS = [(3, 4, 5, 6), (7, 8, 9), (10, 11, 12, 13, 14)]
FOLLOWS = [[(20, 21), (22, 23, 24), (25,)], [(30,), (31,), (32,)], [(40, 41, 42), (43, 44)]]
REQUESTS = [(context, follow) for context, many in zip(CONTEXTS, FOLLOWS, strict=True) for follow in many]


def alone(model, request) -> tuple[float, bool]:
    """Score one request in one pass that shares nothing."""
    context, follow = request
    ids = torch.tensor([[*context, *follow]])
    with torch.no_grad():
        log_p = model(ids).logits[0, len(context) - 1 : -1].double().log_softmax(-1)
    return log_p[range(len(follow)), list(follow)].sum().item(), log_p.argmax(-1).tolist() == list(follow)
