"""The page of all keys is what the recipe reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from lavi_bridge.training.recipe.keys import PAGE, page

RECIPES = Path(PAGE).parent / "recipes"


def test_the_committed_page_is_what_the_recipe_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m lavi_bridge.training.recipe.keys"


def test_every_key_of_a_committed_recipe_is_on_it() -> None:
    sections = dict(re.findall(r"^## (?:\[(\w+)\]|At the top)\n\n((?:\|.*\n)+)", page(), re.MULTILINE))
    found = 0
    for path in [*RECIPES.glob("paper/*.toml"), *RECIPES.glob("modern/*.toml")]:
        whole = tomllib.loads(path.read_text())
        tables = {name: table for name, table in whole.items() if isinstance(table, dict)}
        tables[""] = {key: value for key, value in whole.items() if key not in tables}
        for name, table in tables.items():
            for key in table:
                assert f"| `{key}` |" in sections[name], (path, name, key)
                found += 1
    assert found > 300
