"""What the documents name exists: files, modules, functions, keys, links. Rooms import what the map says."""
import ast
import functools
import pathlib
import re

import pytest

from htd_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAP = ROOT / "docs/architecture.md"
PICTURE = ROOT / "docs/images/data_flow.svg"
PAGES = ("README.md", "CONTRIBUTING.md", "tests/golden/README.md")
DOCUMENTS = [ROOT / page for page in PAGES] + sorted(ROOT.glob("docs/*.md"))
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs"}
KEYS = set(config_lib.flatten(config_lib.default_config()))

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code(document):
    """All code of a document: its fenced blocks, then what stands between backticks outside of them."""
    fence = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.S | re.M)
    text = document.read_text()
    return fence.findall(text) + re.findall(r"`([^`]+)`", fence.sub("", text))


def names_file(word):
    """Whether a word claims to be a file or folder of ours, not of a user's."""
    first, slash, rest = word.partition("/")
    return word.endswith((".py", ".md", ".toml")) or (slash and rest and first in FOLDERS)


def is_file(word):
    """A word may be a glob and may leave out htd_jax/; a bare name may lie in any folder of ours."""
    if next(ROOT.glob(word), None) or next((ROOT / "htd_jax").glob(word), None):
        return True
    visible = (ROOT / folder for folder in FOLDERS if not folder.startswith("."))
    return "/" not in word and any(next(folder.rglob(word), None) for folder in visible)


@each_document
def test_files_exist(document):
    words = [word.strip(".,:;/") for span in code(document) for word in re.findall(r"[\w./*-]+", span)]
    assert [word for word in words if names_file(word) and not is_file(word)] == []


def source_of(module):
    """The file of a dotted name, or None where it is no module."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_module_or_name(dotted):
    """Whether `a.b.c` is a module, or `a.b` is one that has the name c."""
    module, _, name = dotted.rpartition(".")
    source = source_of(module)
    return bool(source_of(dotted) or (source and re.search(rf"\b{name}\b", source.read_text())))


@each_document
def test_modules_exist(document):
    text = "\n".join(code(document))
    named = set(re.findall(r"\b(?:htd_jax|benchmarks)(?:\.\w+)+", text))
    for module, names in re.findall(r"from (htd_jax\S*) import ([\w, ]+)", text):
        named |= {f"{module}.{name.strip()}" for name in names.split(",")}
    assert [name for name in named if not is_module_or_name(name)] == []


def is_key(name):
    """Whether it is a key, or what several keys begin with."""
    return any(key == name or key.startswith(f"{name}.") for key in KEYS)


def named_keys(document):
    """Keys in commands (`--config.KEY`), in sentences (`data.flip`) and in the first column of tables of keys."""
    spans, text = code(document), document.read_text()
    found = {key for span in spans for key in re.findall(r"--config\.([\w.]+)", span)} - {"KEY"}
    dotted = {span for span in spans if re.fullmatch(r"(model|train|test|data)(\.\w+)+", span)}
    found |= {name for name in dotted if not name.endswith((".py", ".yaml", ".safetensors"))}
    for table in re.findall(r"^\| key \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M):
        found |= {key for row in table.splitlines() for key in re.findall(r"`([\w.]+)`", row.split("|")[1])}
    return found


@each_document
def test_configuration_keys_exist(document):
    assert [key for key in named_keys(document) if not is_key(key)] == []


def test_every_configuration_key_is_documented():
    spans = [span for name in ("training", "data", "evaluation") for span in code(ROOT / f"docs/{name}.md")]
    words = set(re.findall(r"\w+", " ".join(spans)))
    assert [key for key in KEYS if key.rpartition(".")[2] not in words] == []


def anchors(document):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_resolve(document):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_index_has_every_page():
    index = ROOT / "docs/README.md"
    linked = set(re.findall(r"\]\(([^)]*\.md)\)", index.read_text()))
    pages = {page.name for page in ROOT.glob("docs/*.md")} - {index.name}
    assert linked == pages | {"../README.md", "../CONTRIBUTING.md"}


@functools.cache
def nodes_of(file):
    return list(ast.walk(ast.parse(file.read_text())))


@functools.cache
def definitions():
    """Names of all functions, methods and classes of the package and of the benchmarks."""
    files = [*ROOT.glob("htd_jax/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    nodes = [node for file in files for node in nodes_of(file)]
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {"len"}


def test_functions_on_the_map_exist():
    called = {name for span in code(MAP) for name in re.findall(r"(\w+)\(\)", span)}
    assert len(called) > 20 and called - definitions() == set()


def test_functions_and_files_in_the_picture_exist():
    text = PICTURE.read_text()
    names = {name for words in re.findall(r'class="name">([^<]*)<', text) for name in re.findall(r"\w+", words)}
    files = {file for words in re.findall(r'class="file">([^<]*)<', text) for file in words.split()}
    assert len(names) > 20 and names - definitions() == set()
    assert len(files) > 20 and [file for file in files if not is_file(file)] == []


def rooms():
    """{room: rooms that it may import}, from the table on the map."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", MAP.read_text(), re.M)
    return {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in rows}


def programs():
    """What stands above the rooms."""
    sentence = re.search(r"^Above them stand the programs[^.]*\.", MAP.read_text(), re.M)[0]
    return set(re.findall(r"`(\w+)`", sentence))


def imported_rooms(room):
    """The rooms that files of `room` import, anywhere in them."""
    package = ROOT / "htd_jax"
    files = [*package.glob(f"{room}.py"), *package.glob(f"{room}/**/*.py")]
    assert files, f"{room}: no such room"
    nodes = [node for file in files for node in nodes_of(file) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}.{alias.name}".split(".") for node in nodes for alias in node.names]
    return {parts[1] for parts in names if parts[0] == "htd_jax"} - {room}


def test_every_room_and_program_is_on_the_map():
    package = ROOT / "htd_jax"
    inside = {path.parent.name for path in package.glob("*/__init__.py")} | {path.stem for path in package.glob("*.py")}
    assert set(rooms()) | programs() == inside - {"__init__"}


def test_rooms_import_what_the_map_says():
    assert set().union(*rooms().values()) <= set(rooms())
    assert {room: extra for room, allowed in rooms().items() if (extra := imported_rooms(room) - allowed)} == {}


def test_messages_that_are_quoted_are_printed():
    """`N` stands for a number."""
    quoted = [span for span in code(ROOT / "docs/training.md") if re.search(r"\bstep N\b", span)]
    printed = "".join(file.read_text() for file in ROOT.glob("htd_jax/**/*.py"))
    assert quoted and [span for span in quoted if any(part not in printed for part in re.split(r"\bN\b", span))] == []
