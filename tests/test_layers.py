"""Imports point down, from the command line to bytes; type-only imports and imports inside functions count like all others."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vqlabel"
FLOORS = (  # from the ground up; docs/architecture.md has a line for each
    ("errors", "philox", "progress", "threads", "version"),
    ("dtypes", "storage", "type_checks"),
    ("config", "bitstream"),
    ("container",),
    ("labels",),
    ("views", "metrics"),
    ("codecs",),
    ("vql",),
    ("workflows",),
    ("training",),
    ("report",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
NO_TORCH = (  # what describes dumps and files loads no torch when it is imported
    "labels",
    "bitstream",
    "container",
    "storage",
    "codecs.config",
    "dtypes",
    "codecs.registry",
    "vql.file",
    "vql.columns",
    "vql.column_limits",
    "vql.column_checks",
    "vql.ragged_codes",
    "vql.seeded",
    "vql.writer",
    "cli",
    "report.account",
    "errors",
    "config",
)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that the imports anywhere below `tree` name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "vqlabel":
                yield name if name in MODULES else name.rpartition(".")[0]


def room_of(module: str) -> str:
    room = module.split(".")[1]
    assert room in FLOOR, f"vqlabel/{room} has no floor; give it one here and in docs/architecture.md"
    return room


def climbing(module: str, source: str) -> list[str]:
    """Modules that `source`, the text of `module`, imports from its own floor or above, except from its own room."""
    room = room_of(module)
    others = (other for other in imported(ast.parse(source)) if other == "vqlabel" or room_of(other) != room)
    return [other for other in others if other == "vqlabel" or FLOOR[room_of(other)] >= FLOOR[room]]


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert rooms == set(FLOOR)


def test_the_architecture_has_one_line_for_each_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w.]+)/?` \|", page)
    assert sorted(row.removesuffix(".py") for row in rows) == sorted(room for room in FLOOR if room != "__main__")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "vqlabel"])
def test_imports_point_down(module: str) -> None:
    assert climbing(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from vqlabel.cli import show",
        "if TYPE_CHECKING:\n    from vqlabel.workflows.fit import fit",
        "def f():\n    import vqlabel.vql.file",
        "import vqlabel",
    ],
)
def test_an_import_that_climbs_is_found_wherever_it_stands(line: str) -> None:
    assert len(climbing("vqlabel.codecs.base", f"from vqlabel.errors import require\n{line}\n")) == 1


def test_what_progress_looks_like_is_said_once() -> None:
    for module, file in MODULES.items():
        said = "Callable[[str, int, int, dict[str, float]], None]" in file.read_text()
        assert said == (module == "vqlabel.progress"), f"{module} says it again; import Progress"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        module: {other for other in imported(ast.parse(file.read_text())) if other not in ("vqlabel", module)}
        for module, file in MODULES.items()
        if module != "vqlabel"
    }
    assert sum(map(len, graph.values())) > 50
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("vqlabel.errors") < order.index("vqlabel.config") < order.index("vqlabel.cli.make")


def at_module_level(tree: ast.Module) -> ast.Module:
    """Without functions, and without what only type checkers read."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    kept = ast.Module(body=body, type_ignores=[])

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    stripped: ast.Module = Strip().visit(kept)
    return stripped


@pytest.mark.parametrize("part", NO_TORCH)
def test_what_describes_files_names_torch_inside_functions_only(part: str) -> None:
    modules = [name for name in MODULES if name == f"vqlabel.{part}" or name.startswith(f"vqlabel.{part}.")]
    assert modules
    for module in modules:
        for node in ast.walk(at_module_level(ast.parse(MODULES[module].read_text()))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "torch"], f"{module}, line {node.lineno}"


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh interpreter."""
    shown = "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code + shown], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_files_labels_report_and_command_line_load_no_torch() -> None:
    loaded = loaded_by("import vqlabel, vqlabel.container, vqlabel.labels, vqlabel.cli, vqlabel.report")
    assert "vqlabel" in loaded
    assert "torch" not in loaded
    assert "torch" in loaded_by("import vqlabel; vqlabel.fit") or importlib.util.find_spec("torch") is None


def test_the_package_itself_loads_nothing_but_the_standard_library() -> None:
    assert not {"torch", "numpy", "typer", "zstandard", "safetensors"} & loaded_by("import vqlabel")


def test_every_public_name_is_where_the_package_says() -> None:
    import vqlabel

    assert sorted(vqlabel.__all__) == dir(vqlabel) == sorted(vqlabel._MODULES)
    for name in vqlabel.__all__:
        assert getattr(vqlabel, name) is not None
    with pytest.raises(AttributeError, match="module 'vqlabel' has no attribute 'pixie'"):
        _ = vqlabel.pixie
