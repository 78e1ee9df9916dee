"""Evolutionary search among all cuts of one size (EvoPress, Sieberling et al., arXiv:2410.14649, algorithm 1)."""

import logging
from dataclasses import dataclass, field
from itertools import pairwise
from math import comb
from random import Random
from typing import Annotated, Any, ClassVar

from pydantic import Field

from depthcut.cut.plan import Plan
from depthcut.model.surgery.sizes import ModelSize
from depthcut.prune import ScoreFunction, SizedPrune
from depthcut.runtime.errors import UserError
from depthcut.runtime.strict import strict

Candidate = tuple[int, ...]
MAX_SWAPS = 3  # of a child, at most
log = logging.getLogger("depthcut")


@strict
class Evolution(SizedPrune):
    """One parent; its children swap a few dropped units for kept ones and are selected in steps, on more and more text.

    The start is the cut of :mod:`depthcut.prune.lowest` on the text of the first step. The parent takes part in the
    last step, so a generation is never worse than the one before. All cuts meet the same text, so no cut is measured
    twice on as much of it, and what has met the last step once is not born again: it has lost.

    Attributes:
        generations: at most; the search ends sooner where every cut within reach has been measured.
        offspring: children of a generation.
        survivors: how many are left after each selection step; 1, the next parent, after the last.
        samples: sequences of calibration text that each step reads: more each time.
        seed: other seeds, other children.
    """

    generations: Annotated[int, Field(gt=0)]
    offspring: Annotated[int, Field(gt=0)]
    survivors: list[int]
    samples: list[int]
    seed: Annotated[int, Field(ge=0)]
    reads_scores: ClassVar[bool] = True
    rescores: ClassVar[bool] = True
    searches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.survivors) != len(self.samples):
            both = f"got {self.survivors} and {self.samples}"
            raise UserError(f"prune.survivors and prune.samples must have one entry for each selection step, {both}")
        if self.survivors[-1:] != [1] or any(b > a for a, b in pairwise([self.offspring, *self.survivors])):
            wanted = f"numbers that fall from at most prune.offspring={self.offspring} to 1"
            raise UserError(f"prune.survivors must be {wanted}, got {self.survivors}")
        if any(b <= a for a, b in pairwise([0, *self.samples])):
            raise UserError(f"prune.samples must be numbers that increase from step to step, got {self.samples}")

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Search."""
        n, free = self.count(shape), self.free(shape.depth)
        if n == 0:
            return Plan(shape.depth, (), self.unit)
        found, random = CandidateScores(score), Random(self.seed)
        alone = CandidateScores(score).ranked([(layer,) for layer in free], self.samples[0])
        parent: Candidate = tuple(sorted(layer for (layer,) in alone[:n]))
        history = [found.value(parent, self.samples[-1])]
        for generation in range(self.generations):
            children = self.children(parent, free, found, random)
            if not children:
                break
            parent = self.selected(children, parent, found)
            history.append(found.value(parent, self.samples[-1]))
            if history[-1] < history[-2]:
                log.info("evolution: generation %d of %d: %.6g", generation + 1, self.generations, history[-1])
        notes: dict[str, Any] = {
            "value": history[-1],
            "generations": len(history) - 1,
            "evaluations": len(found.values),
            "improved": history[-1] < history[0],
            "history": history,
        }
        return Plan(shape.depth, parent, self.unit, notes=notes)

    def content(self) -> Any:
        """On how much text the start is chosen."""
        return {"start": self.samples[0]}

    def children(self, parent: Candidate, free: range, found: "CandidateScores", random: Random) -> list[Candidate]:
        """Cuts near ``parent``, no two the same, none that has met the last step; fewer where no more are in reach."""
        kept = len(free) - len(parent)
        past = found.met(self.samples[-1])
        near = sum(comb(len(parent), swaps) * comb(kept, swaps) for swaps in range(1, MAX_SWAPS + 1))
        near -= sum(1 <= len({*parent} - {*cut}) <= MAX_SWAPS for cut in past)
        born: dict[Candidate, None] = {}
        while len(born) < min(self.offspring, near):
            child = mutate_candidate(parent, free, random)
            if child not in past:
                born[child] = None
        return list(born)

    def selected(self, children: list[Candidate], parent: Candidate, found: "CandidateScores") -> Candidate:
        """The next parent."""
        left = children
        for step, (survivors, samples) in enumerate(zip(self.survivors, self.samples, strict=True), start=1):
            contest = [*left, parent] if step == len(self.samples) else left
            left = found.ranked(contest, samples)[:survivors]
        return left[0]


@dataclass
class CandidateScores:
    """What is known of the cuts so far.

    Attributes:
        score: measures them.
        values: of a cut on so many sequences.
    """

    score: ScoreFunction
    values: dict[tuple[Candidate, int], float] = field(default_factory=dict[tuple[Candidate, int], float])

    def ranked(self, cuts: list[Candidate], samples: int) -> list[Candidate]:
        """The best first; those not measured on so many sequences are measured, together."""
        new = [cut for cut in cuts if (cut, samples) not in self.values]
        if new:
            known = self.score.without(new, samples)
            self.values |= {(cut, samples): value for cut, value in zip(new, known, strict=True)}
        return sorted(cuts, key=lambda cut: (self.values[cut, samples], cut))

    def value(self, cut: Candidate, samples: int) -> float:
        """Of one cut."""
        self.ranked([cut], samples)
        return self.values[cut, samples]

    def met(self, samples: int) -> set[Candidate]:
        """The cuts measured on so many sequences."""
        return {cut for cut, sequences in self.values if sequences == samples}


def mutate_candidate(parent: Candidate, free: range, random: Random) -> Candidate:
    """Level switch: k dropped units return and k kept ones go, k the lower of two draws of 1, 2 or 3."""
    kept = [layer for layer in free if layer not in parent]
    k = min(random.randint(1, MAX_SWAPS), random.randint(1, MAX_SWAPS), len(parent), len(kept))
    return tuple(sorted({*parent} - {*random.sample(parent, k)} | {*random.sample(kept, k)}))
