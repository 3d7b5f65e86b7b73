"""Imports point down: errors, config, then files and bits, then codecs, then what joins them, then what is built on that, then the CLI."""

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
LAYERS = (
    ("errors",),
    ("config", "files", "filetypes", "progress", "threads", "typed"),
    ("labels", "bitstream", "container"),
    (
        "augment",
        "column_checks",
        "column_limits",
        "columns",
        "counts",
        "crops",
        "seeded",
        "vql",
        "teachers",
        "preprocessing",
        "codecs",
    ),
    ("packing", "fitting", "unpacking", "converting", "verifying", "pruning", "journal"),
    ("tuning", "relabeling", "dataset", "training", "dropin", "losses", "report", "demo"),
    ("cli", "__main__"),
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that the imports below `tree` name."""
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


def at_module_level(tree: ast.Module) -> ast.Module:
    """Without functions, and without what only type checkers read."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    kept = ast.Module(body=body, type_ignores=[])

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    stripped: ast.Module = Strip().visit(kept)
    return stripped


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    assert part in LAYER, f"vqlabel/{part} has no layer; give it one here and in docs/architecture.md"
    return LAYER[part]


def test_every_part_of_the_package_has_a_layer_and_every_layer_its_parts() -> None:
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    assert parts == set(LAYER)


def test_the_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = [file for file in MODULES.values() if not file.name.startswith("__") and file.parent.name != "demo"]
    assert len(files) > 30
    assert [file.name for file in files if not re.search(rf"[`/]{file.name}`", page)] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "vqlabel"])
def test_imports_point_down(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for other in imported(tree):
        if other == "vqlabel":  # the version, or names that are resolved when they are used
            assert layer_of(module) >= 4, f"{module} imports the package itself, which may bring in anything"
            continue
        assert other in MODULES, f"{module} imports {other}, which is not there"
        assert layer_of(other) <= layer_of(module), f"{module} (layer {layer_of(module)}) imports {other} (layer {layer_of(other)})"


def test_what_progress_looks_like_is_said_once() -> None:
    for module, file in MODULES.items():
        said = "Callable[[str, int, int, dict[str, float]], None]" in file.read_text()
        assert said == (module == "vqlabel.progress"), f"{module} says it again; import Progress"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {}
    for module, file in MODULES.items():
        if module != "vqlabel":
            tree = at_module_level(ast.parse(file.read_text()))
            graph[module] = {other for other in imported(tree) if other not in ("vqlabel", module)}
    assert sum(map(len, graph.values())) > 50
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("vqlabel.errors") < order.index("vqlabel.config") < order.index("vqlabel.cli.commands")


@pytest.mark.parametrize(
    "part", ["labels", "bitstream", "container", "columns", "counts", "vql", "cli", "report.account", "errors", "config"]
)
def test_parts_that_data_pipelines_use_name_torch_inside_functions_only(part: str) -> None:
    for module, file in MODULES.items():
        if module == f"vqlabel.{part}" or module.startswith(f"vqlabel.{part}."):
            for node in ast.walk(at_module_level(ast.parse(file.read_text()))):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not [name for name in names if str(name).split(".")[0] == "torch"], f"{module}, line {node.lineno}"


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

    assert sorted(vqlabel.__all__) == dir(vqlabel) == sorted(vqlabel._HOME)
    for name in vqlabel.__all__:
        assert getattr(vqlabel, name) is not None
    with pytest.raises(AttributeError, match="module 'vqlabel' has no attribute 'pixie'"):
        _ = vqlabel.pixie
