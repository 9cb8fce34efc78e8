"""The rules of the house, as docs/design.md states them."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripts.write_layers import imported, modules, package_of

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PARTS = SRC / "tessera" / "parts"
HEAVY = (
    "torch", "torchvision", "transformers", "accelerate", "peft", "timm", "open_clip", "pyarrow", "datasets",
)  # fmt: skip


def imports(name: str, top_level: bool) -> set[str]:
    """Tessera's modules that module `name` imports; `top_level`: only what runs at its own import."""
    nodes = _statements(ast.parse(modules()[name].read_text(encoding="utf-8")), top_level)
    return imported(nodes, package_of(name)) - {name}


def _statements(tree: ast.AST, top_level: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (n for child in node.orelse for n in (child, *_statements(child, top_level)))
            continue
        yield node
        yield from _statements(node, top_level)


def room(name: str) -> str:
    """The part a module belongs to: tessera.parts.tokens.fopru.kernels -> tessera.parts.tokens.fopru."""
    return ".".join(name.split(".")[:4])


def tracked() -> list[Path]:
    """The repository's text files: what git tracks or would, or, outside a clone, what lies there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        paths = [p for top in ("src", "tests", "docs", "scripts") for p in (ROOT / top).rglob("*")]
        paths += list(ROOT.iterdir())
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]


def loaded_after(code: str, env: dict[str, str]) -> set[str]:
    """The top-level modules in memory after `code` ran in a fresh interpreter."""
    report = "\nimport sys; print('\\n' + ' '.join({m.partition('.')[0] for m in sys.modules}))"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


# What is imported when


@pytest.mark.parametrize("package", ["tessera", "tessera.registry", "tessera.world", "tessera.cli.main"])
def test_importing_a_light_package_loads_nothing_heavy(package: str, subprocess_env: dict[str, str]) -> None:
    assert not loaded_after(f"import {package}", subprocess_env) & set(HEAVY)


@pytest.mark.parametrize("package", ["tessera.world", "tessera.cli"])
def test_no_module_of_the_world_or_of_the_command_line_imports_torch(package: str, subprocess_env: dict[str, str]) -> None:
    names = [n for n in modules() if n == package or n.startswith(package + ".")]
    assert names, f"{package} has no modules"
    assert not loaded_after(f"import {', '.join(names)}", subprocess_env) & set(HEAVY)


def test_help_loads_neither_a_heavy_module_nor_a_command(subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys; from tessera.cli.main import COMMANDS, run; assert run(['--help']) == 0\n"
        "assert not {e.module for e in COMMANDS.values()} & set(sys.modules)"
    )
    assert not loaded_after(code, subprocess_env) & set(HEAVY)


def test_the_heavy_modules_would_be_noticed(subprocess_env: dict[str, str]) -> None:
    assert "safetensors" in loaded_after("import safetensors", subprocess_env)


# Who imports whom


def test_core_never_imports_a_part() -> None:
    core = [n for n in modules() if not n.startswith(("tessera.parts", "tessera.claims"))]
    wrong = {n: found for n in core if (found := {i for i in imports(n, False) if i.startswith("tessera.parts")})}
    assert not wrong, f"parts are reached through tessera.registry only: {wrong}"


def test_a_part_never_imports_another_part() -> None:
    wrong = {}
    for name in (n for n in modules() if n.startswith("tessera.parts.")):
        foreign = {i for i in imports(name, False) if i.startswith("tessera.parts.") and room(i) != room(name)}
        if foreign:
            wrong[name] = foreign
    assert not wrong, f"what two parts share moves down into nn/ or data/: {wrong}"


def test_a_part_imports_nothing_of_the_lab() -> None:
    rooms = ("tessera.lab", "tessera.claims")
    wings = [n for n in modules() if n.startswith("tessera.parts")]
    wrong = {n: found for n in wings if (found := {i for i in imports(n, False) if i.startswith(rooms)})}
    assert wings and not wrong, f"a part is its method and nothing else; what it promises stands in claims/: {wrong}"


def test_every_file_of_claims_and_evidence_is_about_a_part() -> None:
    parts = {(path.parent.name, path.stem) for path in PARTS.glob("*/*") if not path.name.startswith("_")}
    claims = {(p.parent.name, p.stem) for p in (SRC / "tessera" / "claims").glob("*/*.py") if not p.name.startswith("_")}
    helpers = {pair for pair in claims if pair[1].endswith(("_reference", "_behaviour"))}
    evidence = {(p.parent.name, p.stem) for p in (SRC / "tessera" / "evidence").glob("*/*.json")}
    assert claims and not (claims - helpers) - parts, "claims about nothing"
    assert not evidence - parts, "evidence about nothing"


def test_claims_import_their_own_part_alone_and_no_torch_with_the_module() -> None:
    wrong = {}
    for name in (n for n in modules() if n.startswith("tessera.claims.")):
        socket, _, part = name.removeprefix("tessera.claims.").partition(".")
        own = f"tessera.parts.{socket}.{part.partition('.')[0].removesuffix('_reference').removesuffix('_behaviour')}"
        foreign = {i for i in imports(name, False) if i.startswith("tessera.parts.") and not f"{i}.".startswith(f"{own}.")}
        heavy = {i for i in imports(name, True) if i.partition(".")[0] in ("torch", "transformers", "scipy")}
        if foreign | heavy:
            wrong[name] = foreign | heavy
    assert not wrong, f"claims are data about one part: {wrong}"


def test_imports_form_no_circle() -> None:
    graph = {name: imports(name, True) & modules().keys() for name in modules()}
    circle = find_circle(graph)
    assert circle is None, " -> ".join(circle or ())


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """One circle of a directed graph, first node repeated at the end, or None."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(graph.get(node, ())):
            if (circle := visit(following, [*path, node])) is not None:
                return circle
        done.add(node)
        return None

    return next((c for node in sorted(graph) if (c := visit(node, [])) is not None), None)


def test_a_circle_would_be_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


# Parts and their files


def part_files() -> list[Path]:
    """One entry per part: its file, or the `__init__.py` of its folder."""
    return [p for p in sorted(PARTS.glob("*/*.py")) if p.name != "__init__.py"] + sorted(PARTS.glob("*/*/__init__.py"))


def registrations(path: Path) -> list[tuple[str, str]]:
    """(name, socket) of every `@part(...)` in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "part" and node.args:
            socket = next((ast.literal_eval(k.value) for k in node.keywords if k.arg == "socket"), "")
            found.append((ast.literal_eval(node.args[0]), socket))
    return found


def test_every_file_of_the_wing_registers_the_one_part_it_is_named_after() -> None:
    wrong = {}
    for path in part_files():
        name, socket = path.relative_to(PARTS).with_suffix("").parts[1::-1]
        if registrations(path) != [(name, socket)]:
            wrong[f"{socket}/{name}"] = registrations(path)
    assert not wrong, wrong


def test_every_folder_of_the_wing_is_a_socket() -> None:
    from tessera.registry import SOCKETS

    assert {p.parent.name for p in PARTS.glob("*/__init__.py")} <= set(SOCKETS)


# What the files look like


def test_no_file_grows_past_500_lines() -> None:
    lines = {p.relative_to(ROOT): p.read_text(encoding="utf-8").count("\n") for p in tracked() if p.suffix == ".py"}
    assert lines
    assert not {p: n for p, n in lines.items() if n > 500}


def test_a_class_name_means_one_thing() -> None:
    doubled = [f"{name}: {', '.join(where)}" for name, where in doubled_classes(sources()).items()]
    assert not doubled, "public classes of one name in several modules:\n" + "\n".join(doubled)


def doubled_classes(code: dict[str, str]) -> dict[str, list[str]]:
    """Name -> the modules that define a public class of this name at top level, where there are two or more. `code`: module ->
    its text. Every part has a `Config` of its own."""
    found: dict[str, list[str]] = {}
    for module, text in code.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Config":
                found.setdefault(node.name, []).append(module)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def sources() -> dict[str, str]:
    """Every module of src/ with its text."""
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_a_doubled_class_name_would_be_found() -> None:
    code = {
        "a": "class Row: ...\nclass Config: ...\nclass _Own: ...\nclass Outer:\n    class Inner: ...",
        "b": "from a import Outer\nclass Row: ...\nclass Config: ...\nclass _Own: ...\nclass Inner: ...",
    }
    assert doubled_classes(code) == {"Row": ["a", "b"]}


def test_nothing_is_left_to_do_in_comments() -> None:
    pattern = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b")
    assert not matches(pattern, lambda p: p.suffix in (".py", ".toml", "") and p.name != "LICENSE")


def test_no_machine_path_and_no_registry_address_is_written_down() -> None:
    places = r"(?<![\w.:/])/(?:home|root|work|Users|opt)/\w"
    addresses = r"pypi\.org/simple|pythonhosted\.org|registry\.npmjs|--(?:extra-)?index-url"
    assert not matches(re.compile(f"{places}|{addresses}"), lambda p: p.name != Path(__file__).name)


def matches(pattern: re.Pattern[str], wanted: Callable[[Path], bool]) -> list[str]:
    """`file:line: match` for every match in the repository's text files."""
    found = []
    for path in filter(wanted, tracked()):
        text = path.read_text(encoding="utf-8", errors="replace")
        for m in pattern.finditer(text):
            found.append(f"{path.relative_to(ROOT)}:{text[: m.start()].count(chr(10)) + 1}: {m[0]}")
    return found


def test_every_name_that_the_search_for_dead_code_passes_over_is_still_defined() -> None:
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vulture"]["ignore_names"]
    there = {name for path in tracked() if path.suffix == ".py" for name in defined(ast.parse(path.read_bytes()))}
    assert allowed and not [pattern for pattern in allowed if not fnmatch.filter(there, pattern)]


def defined(tree: ast.AST) -> Iterator[str]:
    """The names of all functions, classes, arguments, variables and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_a_name_that_is_only_read_is_not_defined() -> None:
    code = "def f(x):\n    self.y = g(x, z=1).w\nclass C:\n    k: int = 0"
    assert set(defined(ast.parse(code))) == {"f", "x", "y", "C", "k"}


def test_pins_are_plain_names_and_versions() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 30
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
