"""The layout: each package imports only those below it, without circles; what can do without torch does."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import limner

SOURCE = Path(limner.__file__).parent
MODULES = {
    ".".join(("limner", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}

# The packages from the bottom up. Each may import those of the tiers below its own, and nothing beside it but
# what ALSO says.
TIERS = (
    {
        "limner.allocator",
        "limner.errors",
        "limner.files",
        "limner.forks",
        "limner.logs",
        "limner.settings",
        "limner.nn",
        "limner.openvino_runtime",
        "limner.studio",
    }
    | {"limner.diffusion"},
    {"limner.prompts", "limner.images", "limner.request", "limner.catalogue"},
    {"limner.weights", "limner.adapters", "limner.picturebook", "limner.safety"},
    {"limner.generation"},
    {"limner.backends"},
    {"limner.model"},
    {"limner.engine"},
    {"limner.grids", "limner.compat", "limner.training", "limner.pipeline"},  # the last is an old import path
    {"limner.service"},
    {"limner.server"},
    {"limner.cli"},
    {"limner.__main__"},
)
ALSO = {
    "limner.files": {"limner.forks"},
    "limner.images": {"limner.request"},
    "limner.request": {"limner.prompts"},
    # A model's facts are what a request is resolved against, with the sizes of its images.
    "limner.catalogue": {"limner.request", "limner.images"},
    "limner.adapters": {"limner.weights"},
    "limner.picturebook": {"limner.weights"},  # its judges are networks
    "limner.safety": {"limner.weights"},  # of image checkers
}
# These stand alone at the bottom.
ALONE = {"limner.errors", "limner.files", "limner.forks", "limner.logs", "limner.nn", "limner.diffusion"}
ALONE |= {"limner.openvino_runtime", "limner.settings", "limner.studio"}
ROOT = {"limner"}  # names everything, and imports it when it is first used

# These, by themselves, import nothing heavy: they serve where nothing is drawn.
LIGHT = {"limner", "limner.errors", "limner.logs", "limner.settings", "limner.request", "limner.prompts"}
LIGHT |= {"limner.catalogue", "limner.cli", "limner.picturebook.world"}
HEAVY = {"torch", "numpy", "safetensors", "huggingface_hub"}


def package_of(module: str) -> str:
    """The package of a module: the first two parts of its name."""
    return ".".join(module.split(".")[:2])


def allowed(package: str) -> set[str]:
    """The packages that one may import, besides itself. Raises StopIteration for one without a tier."""
    tier = next(index for index, tier in enumerate(TIERS) if package in tier)
    below = set().union(*TIERS[:tier]) if package not in ALONE else {"limner.errors"}
    if package in ("limner.nn", "limner.diffusion", "limner.errors"):
        below = set()
    return below | ALSO.get(package, set()) | {"limner"}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Every import statement's module, and whether it runs when this one is imported."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, eager: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue  # names for the type checker alone
            if isinstance(child, ast.Import):
                yield from ((alias.name, eager) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - child.level + 1]) if child.level else ""
                source = ".".join(filter(None, (base, child.module)))
                for alias in child.names:
                    inner = f"{source}.{alias.name}"
                    yield (inner if inner in MODULES else source), eager
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                yield from walk(child, eager and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ROOT))
def test_each_package_imports_only_downwards(module):
    package = package_of(module)
    ours = {name for name, _ in imports(module) if name.split(".")[0] == "limner"}
    wrong = {name for name in ours if package_of(name) not in {package, *allowed(package)}}
    assert not wrong, f"{package} may import only {sorted(allowed(package))}"


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count too. The root, which names everything, is left out."""
    graph = {
        module: {name for name, _ in imports(module) if name in MODULES and name != module} - ROOT
        for module in MODULES.keys() - ROOT
    }
    for module in graph:  # importing a module runs the __init__ of its package, unless it belongs to it
        graph[module] -= {module.rpartition(".")[0]}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name in LIGHT or (package_of(name) in LIGHT and name != "limner")]
)
def test_light_modules_import_nothing_heavy_by_themselves(module):
    heavy = {name for name, eager in imports(module) if eager and name.split(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize("package", ["limner.nn", "limner.diffusion"])
def test_networks_and_mathematics_need_only_torch(package):
    roots = {
        name.split(".")[0]
        for module in MODULES
        if package_of(module) == package
        for name, _ in imports(module)
    }
    assert roots - set(sys.stdlib_module_names) <= {"torch", "limner"}


def test_the_walk_sees_every_kind_of_import():
    """A guard of this file: what the package surely contains is found."""
    assert ("limner.engine.loaded", False) in set(imports("limner"))
    assert ("torch", True) in set(imports("limner.nn.unet"))
    assert ("limner.generation.calls", True) in set(imports("limner.generation.story"))  # relative
    assert ("limner.cli.terminal", True) in set(imports("limner.cli.main"))  # a module named by `from`


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import limner; limner.LimnerError", HEAVY | {"pydantic", "PIL"}),
        ("import limner; limner.GenerationRequest", HEAVY | {"PIL"}),
        ("import limner.cli.main", HEAVY | {"pydantic", "PIL", "tokenizers"}),
        ("import limner.images.metadata", HEAVY),
        ("import limner.images.assets, limner.images.inputs, limner.images.result", {"torch", "safetensors"}),
        ("import limner.safety.provenance", {"torch", "safetensors", "c2pa", "cryptography"}),
        ("import limner.picturebook.world", HEAVY | {"pydantic"}),
    ],
)
def test_nothing_heavy_is_loaded(statement, absent):
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not absent & set(json.loads(done.stdout))
