"""The house: each layer imports only those below it, and what need not wait for torch does not import it."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import limner

SOURCE = Path(limner.__file__).parent
MODULES = {
    ".".join(("limner", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}

# Layer -> what it may import of ours, besides itself. The longest prefix of a module's name is its layer.
FOUNDATION = {"limner", "limner.device", "limner.errors", "limner.request", "limner.prompts"}
FILES = {*FOUNDATION, "limner.nn", "limner.diffusion", "limner.weights"}
WORLD = "limner.picturebook"
JUDGES = {"limner.picturebook.probe", "limner.picturebook.evaluation"}  # beside the world, not part of it
DRAWING = {*FILES, "limner.adapters", "limner.preprocess", "limner.pose", "limner.pipeline"}
MAY_IMPORT = {
    "limner": {"limner.errors", "limner.request", "limner.pipeline"},  # and limner.face, by name
    "limner.errors": set(),
    "limner.device": {"limner.errors"},
    "limner.memory": set(),
    "limner.preprocess": {"limner.errors"},
    "limner.pose": {"limner.errors", "limner.preprocess"},
    "limner.prompts": {"limner.errors"},
    "limner.request": {"limner.errors", "limner.prompts"},
    "limner.nn": set(),
    "limner.diffusion": set(),
    "limner.weights": FILES,
    "limner.adapters": FILES,
    "limner.pipeline": DRAWING,
    "limner.face": DRAWING,
    "limner.picturebook": {"limner.errors"},
    **{judge: {*FILES, WORLD, *JUDGES} for judge in JUDGES},
    "limner.training": {
        *DRAWING,
        WORLD,
        *JUDGES,
    },  # it draws samples, and pipeline/images.py owns value ranges
    "limner.__main__": {"limner.cli"},
    "limner.cli": {"limner.memory", *DRAWING, WORLD, *JUDGES, "limner.training"},
}

# These, by themselves, import nothing heavy: they serve where nothing is drawn.
LIGHT = {"limner", "limner.errors", "limner.memory", "limner.request", "limner.prompts", "limner.cli", WORLD}
HEAVY = {"torch", "numpy", "safetensors", "huggingface_hub"}


def layer_of(module: str) -> str:
    """Raises ValueError for a module of no layer: a new one must find its place above."""
    layers = [name for name in MAY_IMPORT if name == module or module.startswith(f"{name}.")]
    if layers == ["limner"] and module != "limner":
        raise ValueError(f"{module} has no place in MAY_IMPORT")
    return max(layers, key=len)


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
                yield from walk(
                    child, eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                )

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


@pytest.mark.parametrize("module", MODULES)
def test_each_layer_imports_only_downwards(module):
    layer = layer_of(module)
    ours = {name for name, _ in imports(module) if name.split(".")[0] == "limner"}
    wrong = {name for name in ours if layer_of(name) not in {layer, *MAY_IMPORT[layer]}}
    assert not wrong, f"{module} is of {layer}, which may import only {sorted(MAY_IMPORT[layer])}"


@pytest.mark.parametrize("module", [name for name in MODULES if layer_of(name) in LIGHT])
def test_light_modules_import_nothing_heavy_by_themselves(module):
    heavy = {name for name, eager in imports(module) if eager and name.split(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize("layer", ["limner.nn", "limner.diffusion"])
def test_networks_and_mathematics_need_only_torch(layer):
    roots = {
        name.split(".")[0] for module in MODULES if layer_of(module) == layer for name, _ in imports(module)
    }
    assert roots - set(sys.stdlib_module_names) <= {"torch", "limner"}


def test_the_walk_sees_every_kind_of_import():
    """A guard of this file: what the package surely contains is found."""
    assert ("limner.pipeline.loading", False) in set(imports("limner"))
    assert ("torch", True) in set(imports("limner.nn.unet"))
    assert ("limner.pipeline.calls", True) in set(imports("limner.pipeline.model"))  # relative
    assert ("limner.cli.train", True) in set(imports("limner.cli.main"))  # a module named by `from`


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import limner; limner.LimnerError", HEAVY | {"pydantic", "PIL"}),
        ("import limner; limner.GenerationRequest", HEAVY | {"PIL"}),
        ("import limner.cli.main", HEAVY | {"pydantic", "PIL", "tokenizers"}),
        ("import limner.pipeline.metadata", HEAVY),
        ("import limner.picturebook.world", HEAVY | {"pydantic"}),
    ],
)
def test_nothing_heavy_is_loaded(statement, absent):
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not absent & set(json.loads(done.stdout))
