"""Training of a pruned model: recipes, batches, the Lightning module, and checkpoints that survive a kill."""
