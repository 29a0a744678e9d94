"""The repository as a whole: what it pins, ships, imports and promises."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SKIPPED = {".git", ".venv", ".nano-work", "__pycache__", "out", "build", "dist", ".pytest_cache", ".ruff_cache"}


def files(*endings: str) -> list[Path]:
    """Files of the repository with one of these endings."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in SKIPPED and not f.endswith(".egg-info")]
        found += [Path(folder, name) for name in names if name.endswith(endings)]
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_pinned_within_its_range(project):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins[canonicalize_name(requirement.name)] = specifier.version
    extras = project["optional-dependencies"]
    for wanted in map(Requirement, project["dependencies"] + extras["demo"] + extras["web"] + extras["dev"]):
        name = canonicalize_name(wanted.name)
        if name != project["name"]:
            assert name in pins, f"{name} is not in constraints.txt"
            assert wanted.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {wanted}"


def test_the_readme_gives_the_commands_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), ROOT / ".ci" / "run"
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    commands = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    assert {"make demo", "make test"} <= set(commands)
    assert "make test" in ci.read_text().splitlines()
    assert os.access(ci, os.X_OK)


def test_the_root_package_imports_with_no_host_under_any_folder_name(tmp_path):
    clone = tmp_path / "ComfyUI-HetCache"
    clone.mkdir()
    shutil.copy(ROOT / "__init__.py", clone)
    # As ComfyUI does it: by path, under a name made from the folder's.
    code = (
        "import importlib.util, sys\n"
        f"path = {str(clone / '__init__.py')!r}\n"
        "spec = importlib.util.spec_from_file_location('custom_nodes.ComfyUI-HetCache', path)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert not hasattr(module, 'comfy_entrypoint')\n"
        "assert not {'torch', 'comfy', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)


def test_pytest_runs_from_a_clone_folder_of_any_name(tmp_path):
    clone = tmp_path / "ComfyUI-HetCache"
    (clone / "tests" / "core").mkdir(parents=True)
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    (clone / "pack").mkdir()
    (clone / "pack" / "__init__.py").write_text("answer = 42\n")
    for folder in ("tests", "tests/core"):  # the same file name twice, as tests have it
        (clone / folder / "test_it.py").write_text(
            "from pack import answer\n\n\ndef test_it():\n    assert answer == 42\n"
        )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def test_packages_carry_their_data(project):
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_namespace_packages(str(ROOT), include=["hetcache_core*", "nano*", "demo*"])
    assert {"hetcache_core", "hetcache_core.hosts", "nano", "demo", "demo.assets"} <= set(found)
    tomllib = pytest.importorskip("tomllib")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for package in ("hetcache_core", "nano", "demo"):
        for path in files(""):
            if path.is_relative_to(ROOT / package) and path.suffix != ".py":
                assert any(path.match(pattern) for pattern in patterns), f"{path} would not be installed"


def test_the_borrowed_clip_comes_with_its_notice():
    for notice in (ROOT / "NOTICE", ROOT / "demo" / "assets" / "NOTICE.md"):
        text = notice.read_text()
        for needed in ("big_buck_bunny.mp4", "Blender Foundation", "www.bigbuckbunny.org", "licenses/by/3.0"):
            assert needed in text
    assert (ROOT / "demo" / "assets" / "big_buck_bunny.mp4").stat().st_size < 400_000


@pytest.fixture(scope="module")
def archive() -> list[Path]:
    """What the Comfy Registry gets: what git knows, less .comfyignore, whose patterns are git's."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git repository here")

    def listed(*options: str) -> set[str]:
        command = ["git", "ls-files", "-z", *options]
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"))

    names = listed("--cached", "--others", "--exclude-standard") - {""}
    names -= listed("--cached", "--others", "--ignored", "--exclude-from=.comfyignore")
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


def test_the_registry_gets_what_comfyui_runs_and_no_more(archive):
    names = {path.relative_to(ROOT).as_posix() for path in archive}
    assert {"__init__.py", "pyproject.toml", "LICENSE", "NOTICE", "README.md", "nodes/compare.py", "demo/masks.py",
            "demo/assets/big_buck_bunny.mp4", "nano/text.py", "nano/weights/nano_vace.safetensors",
            "locales/zh/nodeDefs.json", "web/docs/HetCacheStats.md", "web/docs/img/HetCacheStats.webp",
            "workflows/hetcache_nano_demo.json", "workflows/hetcache_nano_demo.jpg"} <= names  # fmt: skip
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/", ".ci/", ".github/"))]
    assert sum(path.stat().st_size for path in archive) < 40e6


def test_everything_the_registry_gets_finds_what_it_imports(archive):
    modules = {path.with_suffix("") for path in archive if path.suffix == ".py"}
    for path in archive:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
                wanted = [base] if node.module else [base / alias.name for alias in node.names]
                for module in wanted:
                    there = {module, module / "__init__", base / "__init__"} & modules
                    assert there or module.name == "diffusers", f"{path.relative_to(ROOT)} imports {module.name}"


def test_the_registry_finds_nothing_it_forbids(archive):
    calls, imports = {"eval", "exec", "compile", "__import__"}, {"subprocess", "socket", "urllib", "requests", "pip"}
    for path in archive:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in calls, f"{path.relative_to(ROOT)} calls {called}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not imports & {name.split(".")[0] for name in names}, f"{path.relative_to(ROOT)} imports {names}"


def test_the_registry_is_told_all_it_asks_for(project):
    tomllib = pytest.importorskip("tomllib")
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", comfy["PublisherId"]) and comfy["DisplayName"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    path = project["urls"]["Repository"].removeprefix("https://github.com/")
    prefix = f"https://raw.githubusercontent.com/{path}/main/"
    assert comfy["Icon"].startswith(prefix) and (ROOT / comfy["Icon"].removeprefix(prefix)).is_file()
    oldest = re.search(r"OLDEST_HOST = \((\d+), (\d+), (\d+)\)", (ROOT / "__init__.py").read_text())
    assert comfy["requires-comfyui"] == ">=" + ".".join(oldest.groups())
    assert "web" not in comfy, "WEB_DIRECTORY says it; both would register the folder twice"
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


def test_what_the_readme_shows_and_links_is_there():
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)", readme, re.MULTILINE)
            assert target[1:] in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target
    assert (ROOT / "docs" / "moving.webp").stat().st_size < 2_000_000
    for page in (ROOT / "web" / "docs").glob("*.md"):
        (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text())
        assert (page.parent / picture).stat().st_size < 150_000, page.name


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_nothing_in_the_repository_knows_the_machine_it_was_made_on():
    forbidden = re.compile(r"/(?:work|opt|root|home|tmp)/\w|\bTO" + "DO|FIX" + r"ME|https?://[^\s)\"'`]*(?:pypi|pytorch)\.org")
    for path in files(".py", ".md", ".toml", ".txt", ".json", ".yml", "Makefile", "run", ".cfg"):
        match = forbidden.search(path.read_text(errors="replace"))
        assert match is None, f"{path.relative_to(ROOT)}: {match and match[0]}"


@pytest.mark.parametrize("name", ["hetcache_core", "hetcache_core.policy", "hetcache_core.plan"])
def test_the_core_imports_without_any_host(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} does not exist")
    code = f"import sys, {name}; print(sorted({{'comfy', 'diffusers', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
