"""The node schema, on every host since 0.3.64, and the types of our wires."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

CATEGORY = "LaVi-Bridge"

LanguageModelWire = io.Custom("LAVI_LANGUAGE_MODEL")
BridgeWire = io.Custom("LAVI_BRIDGE")
AttentionWire = io.Custom("LAVI_ATTENTION")


def advanced(field: io.Input) -> io.Input:
    """The input, shown under "advanced" where the host has that; older hosts have no argument for it."""
    field.extra_dict["advanced"] = True
    return field


def schema(**kwargs: Any) -> io.Schema:
    """``io.Schema`` in our category, without the fields that this host does not know yet (they only decorate)."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{"category": CATEGORY, **{key: value for key, value in kwargs.items() if key in known}})
