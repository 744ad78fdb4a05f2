"""The dry run: a recipe checked against its data, its models, the disk and the memory, before a weight is loaded."""

from .report import Report
from .run import dry_run

__all__ = ["Report", "dry_run"]
