"""Evaluation: pictures drawn from prompt files, metrics, and tables beside the paper's."""
