"""The versions that the project promises: one list in two files, and both of its ends pinned for CI to run."""
import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]


def requirements(path):
    """{name: Requirement} of a file for pip."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {Requirement(line).name: Requirement(line) for line in lines if line}


LISTED = requirements(ROOT / "requirements.txt")
PINNED = requirements(ROOT / "constraints" / "newest.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bound(name, operator):
    return next(part.version for part in LISTED[name].specifier if part.operator == operator)


def test_requirements_are_those_of_the_package_and_its_tests():
    package = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {str(requirement) for requirement in LISTED.values()} == {str(Requirement(line)) for line in package}


@pytest.mark.parametrize("name", LISTED)
def test_the_oldest_pin_is_the_lower_bound(name):
    pinned = requirements(ROOT / "constraints" / "oldest.txt")[name]
    assert str(pinned.specifier) == f"=={bound(name, '>=')}"


@pytest.mark.parametrize("name", LISTED)
def test_the_newest_pin_is_of_the_last_series_below_the_upper_bound(name):
    pinned = Version(next(iter(PINNED[name].specifier)).version)
    *series, last = map(int, bound(name, "<").split("."))
    assert pinned.release[:len(series) + 1] == (*series, last - 1)


def test_pythons_are_those_of_ci():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    ci = (ROOT / ".ci" / "run").read_text()
    assert "at_end oldest 3.11" in ci and "at_end newest 3.13" in ci
