"""Tensors out of a foreign pickle, which is opened for its tensors alone: no code in it is run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU. Raises ValueError for a file that is missing, cut short, no pickle of
    torch's, or that holds more than tensors and plain data."""
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is cut short or was not written by torch.save; fetch it again") from error
        raise ValueError(f"{path} holds more than tensors, which could run code, so it is not opened") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(f"{path} is cut short or damaged; fetch it again") from error
