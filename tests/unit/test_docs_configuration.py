"""docs/configuration.md describes every key as the code has it."""

from __future__ import annotations

from pathlib import Path

from natwork_ray.config import ENV_OTHER, configuration_table, known_keys, load_config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert configuration_table() in text, "run configuration_table() and put it into the page"
    assert all(f"`{name}`" in text for name in ENV_OTHER)


def test_every_row_names_a_variable_that_works() -> None:
    rows = configuration_table().splitlines()[2:]
    assert len(rows) == len(known_keys())
    for row in rows:
        key, default, _, variable = (cell.strip().strip("`") for cell in row.split("|")[1:5])
        if default != "none":
            assert load_config(environ={variable: default}) == load_config(environ={}), key
