"""Width pruning: groups of weights, their importance, the schedule of their removal, and the narrower model."""
