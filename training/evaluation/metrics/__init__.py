"""The metrics: what each needs and how it measures a run."""
