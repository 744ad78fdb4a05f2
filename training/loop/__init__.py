"""The training loop and what serves it: step, optimizers, schedules, EMA, checkpoints, processes, logs."""
