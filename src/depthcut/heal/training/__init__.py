"""Training a pruned model: the recipe's fields, the batches, the Lightning module, checkpoints that survive a kill."""
