"""Evolutionary search over all cuts of one size (EvoPress, Sieberling et al., arXiv:2410.14649, algorithm 1)."""

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
MAX_SWAPS = 3  # per child
log = logging.getLogger("depthcut")


@strict
class Evolution(SizedPrune):
    """One parent; its children swap a few dropped units for kept ones and are selected in steps, on increasing text.

    The search starts from the cut of :mod:`depthcut.prune.lowest` on the text of the first step. The parent takes part
    in the last step, so no generation is worse than the one before. All cuts are measured on the same text: no cut is
    measured twice on the same amount of it, and a cut that has reached the last step once has lost and is not generated
    again.

    Attributes:
        generations: maximum number of generations; the search ends earlier if every cut within reach has been measured.
        offspring: children per generation.
        survivors: number of cuts left after each selection step; 1, the next parent, after the last.
        samples: sequences of calibration text that each step reads, increasing from step to step.
        seed: seed of the children.
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
            wanted = f"decreasing numbers from at most prune.offspring={self.offspring} to 1"
            raise UserError(f"prune.survivors must be {wanted}, got {self.survivors}")
        if any(b <= a for a, b in pairwise([0, *self.samples])):
            raise UserError(f"prune.samples must increase from step to step, got {self.samples}")

    def __call__(self, score: ScoreFunction, shape: ModelSize) -> Plan:
        """Search for the cut with the lowest value."""
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
        """Return the amount of text on which the start is chosen."""
        return {"start": self.samples[0]}

    def children(self, parent: Candidate, free: range, found: "CandidateScores", random: Random) -> list[Candidate]:
        """Return distinct cuts near ``parent`` that have not reached the last step; fewer if no more are in reach."""
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
        """Return the next parent."""
        left = children
        for step, (survivors, samples) in enumerate(zip(self.survivors, self.samples, strict=True), start=1):
            contest = [*left, parent] if step == len(self.samples) else left
            left = found.ranked(contest, samples)[:survivors]
        return left[0]


@dataclass
class CandidateScores:
    """Values of the cuts measured so far.

    Attributes:
        score: measures cuts.
        values: the value of each pair of a cut and a number of sequences.
    """

    score: ScoreFunction
    values: dict[tuple[Candidate, int], float] = field(default_factory=dict[tuple[Candidate, int], float])

    def ranked(self, cuts: list[Candidate], samples: int) -> list[Candidate]:
        """Return the cuts, best first; measure together those not yet measured on this many sequences."""
        new = [cut for cut in cuts if (cut, samples) not in self.values]
        if new:
            known = self.score.without(new, samples)
            self.values |= {(cut, samples): value for cut, value in zip(new, known, strict=True)}
        return sorted(cuts, key=lambda cut: (self.values[cut, samples], cut))

    def value(self, cut: Candidate, samples: int) -> float:
        """Return the value of one cut."""
        self.ranked([cut], samples)
        return self.values[cut, samples]

    def met(self, samples: int) -> set[Candidate]:
        """Return the cuts measured on this many sequences."""
        return {cut for cut, sequences in self.values if sequences == samples}


def mutate_candidate(parent: Candidate, free: range, random: Random) -> Candidate:
    """Return a child by level switch: k dropped units return and k kept ones go.

    k is the lower of two draws of 1, 2 or 3.
    """
    kept = [layer for layer in free if layer not in parent]
    k = min(random.randint(1, MAX_SWAPS), random.randint(1, MAX_SWAPS), len(parent), len(kept))
    return tuple(sorted({*parent} - {*random.sample(parent, k)} | {*random.sample(kept, k)}))
