"""Promises about the whole package: layers beyond import-linter's reach, safety, packaging."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import drift_jax

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "drift_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
CONSTRAINTS = sorted((ROOT / "launch").glob("constraints-*.txt"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package: its path and its syntax tree."""
    for path in MODULES:
        yield relative(path), ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def places(
    kinds: type | tuple[type, ...],
    offends: Callable[[ast.AST], object],
    *,
    allowed: Iterable[str] = (),
) -> list[str]:
    """`path:line` of each node of these kinds that offends, in all files but the allowed ones."""
    return [
        f"{path}:{node.lineno}"
        for path, tree in parsed()
        if path not in allowed
        for node in ast.walk(tree)
        if isinstance(node, kinds) and offends(node)
    ]


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Top-level names of the packages that an import statement loads."""
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names]


def is_command(tree: ast.Module) -> bool:
    """A command is a module that `python -m` runs: it has a `__main__` guard."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in tree.body
    )


def host_side_modules() -> list[str]:
    """All modules of the layers that pyproject.toml forbids to import jax, losses aside."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [layers] = [
        contract["source_modules"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if "jax" in contract.get("forbidden_modules", ())
    ]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
    ]
    return [name for name in names if any(f"{name}.".startswith(f"{top}.") for top in layers)]


# ---- layers ------------------------------------------------------------------------------------


def test_the_package_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_host_side_modules_load_without_jax():
    modules = host_side_modules()
    assert "drift_jax.buffer" in modules
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        "print([name for name in ('jax', 'jaxlib', 'flax', 'optax') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_mesh_axes_are_named_in_sharding_alone():
    # config.py has them as the fields that size the mesh. `data` is too common a word to search.
    allowed = {"drift_jax/sharding.py", "drift_jax/config.py"}
    found = places(ast.Constant, lambda node: node.value in ("fsdp", "tensor"), allowed=allowed)
    assert not found, f"use logical axes and drift_jax.sharding here: {found}"


def test_only_commands_read_the_environment():
    commands = {path for path, tree in parsed() if is_command(tree)}
    commands.add("drift_jax/command.py")  # what they share

    def reads_environment(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in ("environ", "getenv", "environb")
        return node.module == "os" and any(
            alias.name in ("environ", "getenv") for alias in node.names
        )

    found = places((ast.Attribute, ast.ImportFrom), reads_environment, allowed=commands)
    assert not found, f"read it in the command and pass the value: {found}"


# ---- safety and house rules --------------------------------------------------------------------


def test_nothing_unpickles_evaluates_or_trusts_remote_code():
    unsafe_packages = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    imports = places(
        (ast.Import, ast.ImportFrom), lambda node: unsafe_packages & set(imported_names(node))
    )
    calls = places(
        ast.Call,
        lambda node: (
            isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile")
        ),
    )
    keywords = places(
        ast.keyword,
        lambda node: (
            node.arg in ("trust_remote_code", "allow_pickle")
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ),
    )
    assert not imports + calls + keywords


def test_every_module_says_what_it_is():
    silent = [path for path, tree in parsed() if not ast.get_docstring(tree)]
    assert not silent


def test_no_function_takes_arbitrary_keywords():
    found = places(
        (ast.FunctionDef, ast.AsyncFunctionDef), lambda node: node.args.kwarg is not None
    )
    assert not found, f"name the keywords: {found}"


def test_there_is_no_drawer_for_odds_and_ends():
    assert not [
        relative(path) for path in MODULES if path.stem in ("utils", "common", "helpers", "misc")
    ]


def test_the_loop_is_one_page():
    path = PACKAGE / "train.py"
    if not path.exists():
        pytest.skip("the loop is not there yet")
    source = path.read_text()
    documentation = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    code = [
        line
        for number, line in enumerate(source.splitlines(), start=1)
        if number not in documentation and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 100, f"{len(code)} lines of code: move work out of the loop"


# ---- packaging ---------------------------------------------------------------------------------


def test_the_installed_version_is_that_of_the_source():
    assert importlib.metadata.version("drift_jax") == drift_jax.__version__


def test_running_does_not_require_torch_or_tensorflow():
    run_time = [
        requirement
        for requirement in importlib.metadata.requires("drift_jax")
        if "extra ==" not in requirement
    ]
    assert run_time
    assert not [
        requirement for requirement in run_time if re.match("torch|tensorflow", requirement)
    ]
    assert importlib.util.find_spec("jax") is not None


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_pinned_versions_are_exact_and_name_no_index(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    loose = [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][\w.]*", line)]
    assert not loose
    names = {line.split("==")[0] for line in lines}
    assert {"jax", "flax", "optax", "pytest"} <= names
    assert not {"torch", "tensorflow"} & names


def test_pytorch_is_installed_for_tests_as_one_exact_cpu_build():
    text = (ROOT / "launch" / "env.sh").read_text()
    [listed] = re.findall(r"^parity_packages=\((.*)\)$", text, re.MULTILINE)
    torch, *others = listed.split()
    assert re.fullmatch(r"torch==[0-9.]+\+cpu", torch)
    assert others and all(re.fullmatch(r"[a-z]+==[0-9.]+", other) for other in others)
    # uv would take the CUDA build, whatever is asked of it.
    assert not re.findall(r"uv.*(?:torch|parity)", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_parse_and_stop_at_the_first_error(path):
    parse = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert parse.returncode == 0, parse.stderr
    if path.name != "env.sh":  # sourced by the others, under their settings
        assert "\nset -euo pipefail\n" in path.read_text()
        assert path.stat().st_mode & 0o100, "not executable"
