"""Plans, scores and sub-networks: plain values, without torch."""
