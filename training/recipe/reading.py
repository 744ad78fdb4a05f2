"""A recipe from its TOML file, with changes from the command line and what the bridge that it starts from says."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...lavi_core.config import from_dict
from ...lavi_core.importers import read_any_config
from ...lavi_core.prompt import PromptRecipe
from .recipe import Recipe

SAID = ("kind", "inner_width", "tokens", "depth", "heads")  # of the adapter, by the bridge that a run starts from


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``overrides`` are ``key.sub=value`` with TOML values (a bare word is taken as a string).

    Raises ValueError naming the file and the key for anything that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no recipe at {path}")
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {override!r}")
        *parents, last = key.strip().split(".")
        table = data
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ValueError(f"--set {key}: {parent} is a value in {path}, not a table")
        table[last] = toml_value(value.strip())
    try:
        return from_dict(Recipe, _begun(data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _begun(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's plain data, with the prompt and the adapter of the bridge that it starts from, if any.

    Raises ValueError for a value that says otherwise than the bridge.
    """
    table = data.get("adapter", {})
    path = table.get("from", table.get("from_", "")) if isinstance(table, Mapping) else ""
    if not path or not isinstance(path, str):
        return data
    if not isinstance(data.get("prompt", {}), Mapping):
        return data  # which is refused with its key
    found = read_any_config(path, table.get("preset"))
    recipe = copy.deepcopy(dict(data))
    ours, theirs = asdict(found.prompt), dict(recipe.get("prompt", {}))
    given = asdict(from_dict(PromptRecipe, ours | theirs, "prompt"))
    _agree(path, "prompt", given, ours)
    recipe["prompt"] = ours
    said = {key: getattr(found.adapter, key) for key in SAID}
    _agree(path, "adapter", {key: table[key] for key in SAID if table.get(key) is not None}, said)
    recipe["adapter"] |= {key: value for key, value in said.items() if value is not None}
    return recipe


def _agree(path: str, section: str, given: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if value != said[key]:
            raise ValueError(
                f"{section}.{key} is {value!r}, {path}, which the run starts from, has {said[key]!r}: leave it out"
            )


def toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def override_prompt(recipe: PromptRecipe, overrides: Sequence[str]) -> PromptRecipe:
    """``recipe`` with each KEY=VALUE put in, values as in TOML. Raises ValueError for what does not fit."""
    values = asdict(recipe)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--prompt takes KEY=VALUE, got {override!r}")
        values[key.strip()] = toml_value(value.strip())
    return from_dict(PromptRecipe, values, "prompt")
