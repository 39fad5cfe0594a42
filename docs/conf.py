"""Sphinx configuration. `make docs` builds the pages into build/docs, warnings being errors."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer

sys.path.insert(0, str(Path(__file__).parent))
from generate import generate  # noqa: E402

project = "RACE"
author = "RACE authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "RACE"
html_static_path: list[str] = []
exclude_patterns = ["_generated"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False


def setup(app) -> None:
    app.add_lexer("lammps", TextLexer)


generate(Path(__file__).parent / "_generated")
