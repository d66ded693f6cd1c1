"""The package as it is installed: the wheel has everything that it reads, and its programs run outside of the clone."""
import os
import pathlib
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it, with the hatchling that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True,
                   capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package_and_the_recipes(wheel):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "htd_jax").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    recipes = {f"htd_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(recipes) >= 6 and names == package | recipes


def test_the_root_holds_the_same_programs():
    for name in ("train", "eval", "predict"):
        assert PROJECT["scripts"][f"htd-{name}"] == f"htd_jax.{name}:command"
        assert f"from htd_jax.{name} import command\n" in (ROOT / f"{name}.py").read_text()


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory):
    """Of an environment with the wheel in it, which finds the packages of the running one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    others = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
                   check=True)
    return folder / "bin"


def run(command, *arguments, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([str(c) for c in (command, *arguments)], cwd=folder, env=environment, capture_output=True,
                          text=True)


@pytest.mark.slow
def test_installed_programs_run_outside_of_the_clone(bin_folder, tmp_path):
    where = run(bin_folder / "python", "-c", "import htd_jax; print(htd_jax.__file__)", folder=tmp_path).stdout
    assert pathlib.Path(where.strip()).is_relative_to(bin_folder.parent)

    doctor = run(bin_folder / "htd-doctor", "--config", "demo", folder=tmp_path)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "requirements.txt" not in doctor.stdout and "\nok    jax " in doctor.stdout

    trained = run(bin_folder / "htd-train", "--config", "demo", "--workdir", "two", "--config.total_steps=2",
                  "--config.batch_size=2", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "two" / "eval" / "report.html").is_file()

    missing = run(bin_folder / "htd-predict", "--checkpoint", "two", "none.jpg", folder=tmp_path)
    assert missing.returncode == 2 and "image file none.jpg does not exist" in missing.stderr
    scored = run(bin_folder / "htd-eval", "--config", "htd_r5", "--checkpoint", "two", folder=tmp_path)
    assert scored.returncode == 2 and "--config cannot be read" in scored.stderr
