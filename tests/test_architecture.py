"""The arrows of the house and the wall: who may import whom."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "overheard"

LAYERS = {
    "errors": set(),
    "storage": {"errors"},
    "metering": {"errors"},
    "speech": {"errors", "storage"},
    "recognition": {"errors", "storage", "speech"},
    "federation": {"errors", "storage", "speech", "recognition", "metrics", "training"},
    "attacks": {"errors", "storage", "metering", "speech", "recognition", "federation"},
    "metrics": {"errors", "storage", "speech", "recognition"},
    "training": {"errors", "storage", "metering", "speech", "recognition", "metrics"},
    "audit": {"errors", "storage", "metering", "speech", "recognition", "federation", "attacks", "metrics"},
    "report": {
        "errors", "storage", "audit.records", "audit.curves", "metrics.alignment", "metrics.identification",
        "metrics.intervals",
    },
    "benchmarks": {
        "errors", "storage", "metering", "speech", "recognition", "federation", "attacks", "metrics", "training",
        "audit",
    },
    "commands": {
        "errors", "storage", "metering", "speech", "recognition", "federation", "attacks", "metrics", "training",
        "audit", "report", "benchmarks",
    },
    "notebook": {
        "errors", "storage", "speech", "recognition", "federation", "attacks", "metrics", "audit", "report",
    },
    "options": {"errors", "speech", "federation"},
    "cli_training": {"errors", "commands", "options", "recognition", "training", "benchmarks"},
    "cli_benchmarks": {"commands", "options", "benchmarks"},
    "cli_federation": {"errors", "commands", "options", "federation"},
    "cli_grid": {"commands", "options", "audit"},
    "cli": {
        "errors", "commands", "options", "cli_benchmarks", "cli_federation", "cli_grid", "cli_training", "speech",
        "federation", "audit",
    },
}  # fmt: skip
"""What each part may import besides itself and the version."""

ATTACK_LAYERS = {
    "entries": set(),
    "spans": {"entries"},
    "noise": {"spans", "entries"},
    "decoding": {"spans"},
    "words": set(),
    "gradient_matching": {"spans"},
    "certificates": {"words", "gradient_matching"},
    "local_steps": {"words", "certificates"},
    "deepspeech2": set(),
    "silence": set(),
}
"""Which folders of attacks each of them may import, besides what all see: `ATTACK_BASE`."""
ATTACK_BASE = {
    "conjugate_gradients", "observation", "output_layer", "pointwise", "rank", "received_update", "windows",
}  # fmt: skip
"""Files beside the folders that hold no attack."""

BEHIND_THE_WALL = ("overheard.speech.corpus", "overheard.speech.synthetic", "overheard.metrics", "overheard.audit")
"""Where truth is; no attack may import it."""


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports from the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("overheard.")}


def part_of(path: Path) -> str:
    """The folder, or the single file, that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return
    for name in imports(path):
        target = name.removeprefix("overheard.")
        if target.split(".")[0] in (part, "__version__"):
            continue
        allowed = any(target == each or target.startswith(f"{each}.") for each in LAYERS[part])
        assert allowed, f"{path.name} in {part} imports {name}"


ATTACKS = SOURCE / "attacks"


@pytest.mark.parametrize("path", sorted(ATTACKS.rglob("*/*.py")), ids=lambda path: str(path.relative_to(ATTACKS)))
def test_folders_of_attacks_import_one_way(path: Path) -> None:
    folder = path.relative_to(ATTACKS).parts[0]
    allowed = ATTACK_LAYERS[folder] | ATTACK_BASE | {folder}
    for name in imports(path):
        _, part, *inner = name.split(".")
        assert part != "attacks" or not inner or inner[0] in allowed, f"{path.name} in {folder} imports {name}"


def test_the_wall_holds_for_everything_an_attack_reaches() -> None:
    """Followed through every module that an attack imports, directly or not."""
    waiting = [path for path in FILES if part_of(path) == "attacks"]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path):
            assert not name.startswith(BEHIND_THE_WALL), f"{path.relative_to(SOURCE)} imports {name}"
            candidate = SOURCE.joinpath(*name.split(".")[1:])
            waiting += [file for file in (candidate.with_suffix(".py"), candidate / "__init__.py") if file.is_file()]
    assert SOURCE / "storage.py" in seen, "nothing was followed"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_hold_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.name} has {lines} lines: two ideas"
    assert path.stem not in ("utils", "helpers", "common", "misc")


def test_the_readme_tree_is_true() -> None:
    """Every file and folder in README.md's tree is there, and every folder of the package is in it."""
    readme = (SOURCE.parents[1] / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1].split("<!-- /tree -->")[0]
    names = {word.strip("`,():;") for word in tree.split()}
    files = {name for name in names if name.endswith(".py") and "*" not in name}
    assert files
    assert files <= {path.name for path in FILES}
    folders = {name.rstrip("/") for name in names if name.endswith("/")} - {"src/overheard", "tests", "docs"}
    assert folders == {path.name for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__"}
