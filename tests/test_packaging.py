"""What is installed: one top-level module, every file of the six folders, the YAML of `config/`, by each way to install."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("config", "adapters", "schedulers", "pipelines", "workers", "cli")
PLANTED = "config/planted.yaml"
COMPILES = importlib.util.find_spec("lading.adapters._attention") is not None  # here, when lading was installed


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; its errors are the test's message."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the distribution is made from, with one YAML more than we happen to have."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (copy / PLANTED).write_text("planted: true\n")
    return copy


@pytest.fixture(scope="module")
def dist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=out)
    return out


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """The python of a new environment that sees this one's dependencies, but not its lading.

    A path file shows it our site-packages; the path files in there, such as that of an editable lading, are not followed.
    """
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    refused = subprocess.run([python, "-I", "-c", "import lading.cli"], cwd=tmp_path, capture_output=True)
    assert refused.returncode != 0, "lading is there before it was installed"
    return python


def install(python: Path, *what: str | Path) -> None:
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    )
    run(*pip, *what, cwd=python.parent)


def where(python: Path, module: str) -> Path:
    code = f"import {module}; print({module}.__file__)"
    return Path(run(python, "-I", "-c", code, cwd=python.parent).strip())


def test_the_wheel_holds_every_module_and_nothing_else(tree: Path, dist: Path) -> None:
    """The wheel, by way of the sdist, adds exactly `lading`, with every .py of the six folders and config's YAML."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"lading"}
    expected = {f"lading/{path.relative_to(tree)}" for folder in FOLDERS for path in (tree / folder).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    yaml = {f"lading/{path.relative_to(tree)}" for path in (tree / "config").glob("*.yaml")}
    assert f"lading/{PLANTED}" in yaml
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    kernels = {f"lading/adapters/{name}{suffix}" for name in ("_attention", "_int8")} if COMPILES else set[str]()
    assert {name for name in names if not name.endswith(".py")} == yaml | kernels


def test_the_licence_and_the_readme_travel(dist: Path) -> None:
    """Both archives carry the licence, and the sdist the README that its metadata is made from."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    with tarfile.open(sdist) as archive:
        assert {"LICENSE", "README.md", "pyproject.toml"} <= {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_installs_and_imports(dist: Path, env: Path, tmp_path: Path) -> None:
    """Installed from the wheel, every module imports, the settings' YAML is read, and the command starts."""
    (wheel,) = dist.glob("*.whl")
    install(env, wheel)
    assert where(env, "lading.cli").is_relative_to(tmp_path / "env")
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.endswith(".py") and not name.endswith("__main__.py")]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    run(env, "-I", "-c", "import " + ", ".join(modules), cwd=tmp_path)
    read = "from importlib.resources import files; print(files('lading.config').joinpath('planted.yaml').read_text())"
    assert "planted: true" in run(env, "-I", "-c", read, cwd=tmp_path)
    assert "encode" in run(env.parent / "lading", "--help", cwd=tmp_path)


def test_a_source_tree_installs(tree: Path, env: Path, tmp_path: Path) -> None:
    """`pip install .` gives the same package, as files of its own."""
    install(env, tree)
    assert where(env, "lading.pipelines.spec").is_relative_to(tmp_path / "env")


def test_without_a_compiler_only_the_kernel_is_missing(
    tree: Path, env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be compiled, `pip install .` succeeds, and the attention says why its kernel is not there."""
    monkeypatch.setenv("CC", "false")
    copy = shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    install(env, copy)
    code = (
        "import torch; from lading.adapters import attention;"
        "print(attention._lack_of_native(torch.device('cpu'), torch.float32, 32))"
    )
    assert "without a C compiler" in run(env, "-I", "-c", code, cwd=tmp_path)


def test_an_editable_install_sees_new_files(tree: Path, env: Path) -> None:
    """`pip install -e .` imports from the tree itself, a module that is added later included."""
    install(env, "--editable", tree)
    assert where(env, "lading.config.errors") == tree / "config" / "errors.py"
    later = tree / "config" / "added_later.py"
    later.write_text("")
    try:
        assert where(env, "lading.config.added_later") == later
    finally:
        os.remove(later)
