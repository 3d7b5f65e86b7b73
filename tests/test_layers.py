"""Imports point down, from the command line to bytes; type-only imports and imports inside functions count, too."""

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
LAYERS = (  # from the lowest up; docs/architecture.md has a line for each package
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
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
NO_TORCH = (  # modules that describe dumps and files; importing them does not import torch
    "labels",
    "bitstream",
    "container",
    "storage",
    "codecs.config",
    "dtypes",
    "codecs.registry",
    "vql.file",
    "vql.column_writer",
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
    """Modules of the package that are imported anywhere in `tree`."""
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


def package_of(module: str) -> str:
    """The folder or file directly in vqlabel/ that a module belongs to."""
    package = module.split(".")[1]
    assert package in LAYER, f"vqlabel/{package} is in no layer; add it to LAYERS and to docs/architecture.md"
    return package


def upward_imports(module: str, source: str) -> list[str]:
    """Modules that `source`, the text of `module`, imports from its own or a higher layer, its own package excepted."""
    package = package_of(module)
    others = (other for other in imported(ast.parse(source)) if other == "vqlabel" or package_of(other) != package)
    return [other for other in others if other == "vqlabel" or LAYER[package_of(other)] >= LAYER[package]]


def test_every_package_is_in_a_layer_and_every_layer_names_existing_packages() -> None:
    packages = {name.split(".")[1] for name in MODULES if "." in name}
    assert packages == set(LAYER)


def test_the_architecture_page_has_one_line_for_each_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w.]+)/?` \|", page)
    assert sorted(row.removesuffix(".py") for row in rows) == sorted(package for package in LAYER if package != "__main__")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "vqlabel"])
def test_imports_point_down(module: str) -> None:
    assert upward_imports(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from vqlabel.cli import show",
        "if TYPE_CHECKING:\n    from vqlabel.workflows.fit import fit",
        "def f():\n    import vqlabel.vql.file",
        "import vqlabel",
    ],
)
def test_upward_imports_are_detected_everywhere_in_a_file(line: str) -> None:
    assert len(upward_imports("vqlabel.codecs.base", f"from vqlabel.errors import require\n{line}\n")) == 1


def test_the_type_of_progress_callbacks_is_defined_once() -> None:
    for module, file in MODULES.items():
        defines_it = "Callable[[str, int, int, dict[str, float]], None]" in file.read_text()
        assert defines_it == (module == "vqlabel.progress"), f"{module} repeats the type; import Progress"


def test_imports_have_no_cycles() -> None:
    graph = {
        module: {other for other in imported(ast.parse(file.read_text())) if other not in ("vqlabel", module)}
        for module, file in MODULES.items()
        if module != "vqlabel"
    }
    assert sum(map(len, graph.values())) > 50
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("vqlabel.errors") < order.index("vqlabel.config") < order.index("vqlabel.cli.pack")


def at_module_level(tree: ast.Module) -> ast.Module:
    """The module without functions and type-only imports."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    kept = ast.Module(body=body, type_ignores=[])

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    stripped: ast.Module = Strip().visit(kept)
    return stripped


@pytest.mark.parametrize("name", NO_TORCH)
def test_modules_that_describe_files_import_torch_only_inside_functions(name: str) -> None:
    modules = [module for module in MODULES if module == f"vqlabel.{name}" or module.startswith(f"vqlabel.{name}.")]
    assert modules
    for module in modules:
        for node in ast.walk(at_module_level(ast.parse(MODULES[module].read_text()))):
            imports = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imports += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [other for other in imports if other.split(".")[0] == "torch"], f"{module}, line {node.lineno}"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a new interpreter."""
    report = "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_container_labels_report_and_cli_do_not_import_torch() -> None:
    loaded = loaded_by("import vqlabel, vqlabel.container, vqlabel.labels, vqlabel.cli, vqlabel.report")
    assert "vqlabel" in loaded
    assert "torch" not in loaded
    assert "torch" in loaded_by("import vqlabel; vqlabel.fit") or importlib.util.find_spec("torch") is None


def test_importing_the_package_loads_only_the_standard_library() -> None:
    assert not {"torch", "numpy", "typer", "zstandard", "safetensors"} & loaded_by("import vqlabel")


def test_every_public_name_can_be_imported() -> None:
    import vqlabel

    assert sorted(vqlabel.__all__) == dir(vqlabel) == sorted(vqlabel._MODULES)
    for name in vqlabel.__all__:
        assert getattr(vqlabel, name) is not None
    with pytest.raises(AttributeError, match="module 'vqlabel' has no attribute 'pixie'"):
        _ = vqlabel.pixie
