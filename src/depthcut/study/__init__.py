"""What knows a whole run."""
