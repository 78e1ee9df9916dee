"""Stand-in servers for the Hugging Face hub and W&B."""
