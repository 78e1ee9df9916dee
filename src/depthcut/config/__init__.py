"""From the composed config to one checked Experiment."""
