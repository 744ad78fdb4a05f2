"""The page of every key of a recipe, from the dataclasses that read it: ``python -m lavi_bridge.training.recipe.keys``
writes ``training/KEYS.md``."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...lavi_core.files import write_text
from .recipe import Recipe

PAGE = Path(__file__).parents[1] / "KEYS.md"
HEAD = """# Every key of a recipe

A recipe is a TOML file: the keys of the first table stand at its top, the others under their `[section]`; on the
command line a key is `--set section.key=value`. A key without a default has to be there. A key that is not known is
refused by name. [What a recipe can ask for](README.md#what-a-recipe-can-ask-for) has them by purpose."""


def page() -> str:
    hints = get_type_hints(Recipe)
    sections = {f.name: hints[f.name] for f in fields(Recipe) if is_dataclass(hints[f.name])}
    parts = [HEAD, "## At the top", *_section(Recipe, leave_out=sections)]
    for name, cls in sections.items():
        parts += [f"## [{name}]", *_section(cls)]
    return "\n\n".join(parts) + "\n"


def _section(cls: Any, leave_out: Any = ()) -> list[str]:
    hints = get_type_hints(cls)
    kept = [f for f in fields(cls) if f.name not in leave_out]
    rows = [f"| `{f.name.rstrip('_')}` | {_kind(hints[f.name])} | {_default(f)} |" for f in kept]
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.cleandoc(cls.__doc__ or ""))
    names = {f.name for f in fields(cls)}

    def marked(found: re.Match[str]) -> str:
        keys = found[1].split(", ")
        return found[0] if set(keys) - names else ", ".join(f"`{key.rstrip('_')}`" for key in keys) + ":"

    text = re.sub(r"\b(\w+(?:, \w+)*):(?=\s)", marked, text)
    text = re.sub(r"^(?=`\w+`(?:, `\w+`)*:)", "- ", text, flags=re.MULTILINE)
    return ["\n".join(["| key | | default |", "|---|---|---|", *rows]), text]


def _kind(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in args)
    if origin is tuple:
        return "list of " + _kind(args[0])
    if origin is dict:
        return "table of " + _kind(args[1])
    if args:  # a union
        return " or ".join(_kind(arg) for arg in args if arg is not type(None))
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[hint.__name__]


def _default(f: Field[Any]) -> str:
    if f.default is MISSING and f.default_factory is MISSING:
        return "**needed**"
    value = f.default_factory() if f.default_factory is not MISSING else f.default
    return "none" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    write_text(PAGE, page())
