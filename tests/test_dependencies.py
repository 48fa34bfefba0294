"""What the package imports is declared: nothing comes along only because something else needs it today."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "flashlight": "flashlight-text"}
"""Where the module is called otherwise than what one installs, but for dashes."""
UNDECLARED = {"whisper"}
"""Optional, and asked for by a message where it is wanted and absent."""


def imported() -> dict[str, str]:
    """Every module from outside that a source file imports, with one such file."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.split(".")[0], path.name)
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"overheard"}}


def declared() -> set[str]:
    """Names in pyproject.toml, of the package itself and of its extras, without those for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower() for line in [*project["dependencies"], *extras]}


def test_every_import_is_declared() -> None:
    known = declared()
    assert len(known) > 20
    missing = {
        name: path
        for name, path in imported().items()
        if DISTRIBUTIONS.get(name, name.replace("_", "-")).lower() not in known | UNDECLARED
    }
    assert missing == {}
