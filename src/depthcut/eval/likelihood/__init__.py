"""Log-likelihoods of tasks."""
