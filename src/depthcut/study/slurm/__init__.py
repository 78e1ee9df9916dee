"""Points as SLURM jobs."""
