"""What a part of the library may import: everything flows from operators up to training."""
import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "ops": {"models", "data", "training", "evaluation", "weights"},
    "models": {"data", "training", "evaluation", "weights"},
    "evaluation": {"training"},
    "weights": {"training"},
}


@functools.cache
def imports():
    """{module: modules of htd_jax that it imports}, imports within functions included."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in (ROOT / "htd_jax").rglob("*.py")}
    return {module: set(imported(path, files)) & files.keys() for module, path in files.items()}


def imported(path, modules):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in inner)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_a_part_imports_nothing_above_it(part):
    parts = {name.split(".")[1] for module, names in imports().items() if module.startswith(f"htd_jax.{part}")
             for name in names if "." in name}
    assert parts and not parts & FORBIDDEN[part]


def test_no_module_imports_itself_through_others():
    rest = dict(imports())
    while leaves := [module for module, names in rest.items() if not names & rest.keys()]:
        for module in leaves:
            del rest[module]
    assert not rest
