"""The documentation says what the code says: names, routes, fields, flags, messages and links are compared."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from starlette.routing import Route

from tests.fakes import FakeEngine
from tests.house.test_floors import ROOT, modules
from ventoux.cli import COMMANDS
from ventoux.config import EngineConfig, ServerConfig
from ventoux.engine.request import SamplingParams
from ventoux.server import refusals
from ventoux.server.app import create_app
from ventoux.server.batch_routes import BatchRequest
from ventoux.server.messages_schemas import RULES as MESSAGES_RULES
from ventoux.server.messages_schemas import MessagesRequest, Thinking
from ventoux.server.metrics import Metrics
from ventoux.server.responses_schemas import RULES as RESPONSES_RULES
from ventoux.server.responses_schemas import ReasoningOptions, ResponsesRequest, TextOptions
from ventoux.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, StreamOptions, TokenizeRequest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *REPOSITORY.glob("*.md")])
CODE = re.compile(r"`([^`\n]+)`")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def words(name: str) -> set[str]:
    """Everything that a page sets in code, and the words in it."""
    spans = CODE.findall(text_of(name))
    return set(spans) | {word for span in spans for word in re.findall(r"[\w./{}-]+", span)}


@cache
def sources() -> dict[str, ast.Module]:
    """Parsed files of the package by path below it."""
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for _, p in modules()}


def defined_in(path: str) -> set[str]:
    """Functions, classes, and methods with and without their class's name."""
    names = set()
    for node in ast.walk(sources()[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))]
            names.update(f"{node.name}.{method.name}" for method in methods)
    return names


@cache
def literals() -> str:
    """All string literals of the package, one per line; in f-strings the constant parts, the rest as "..."."""
    found = []
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


# ------------------------------------------------------------------------------------------------------- the house


def test_every_module_is_in_the_picture_and_the_picture_holds_nothing_else():
    """A module that was added, moved or removed without the architecture page."""
    picture = text_of("architecture.md").partition("```\n")[2].partition("```")[0]
    named = re.findall(r"[\w/]+\.py\b", picture)
    there = {str(p.relative_to(ROOT)) for _, p in modules() if p.read_text().strip()}
    assert sorted(named) == sorted(there), set(named) ^ there


@pytest.mark.parametrize("page", ["architecture.md", "trace.md"])
def test_files_and_functions_named_together_exist_together(page):
    """A function that was renamed or moved to another file."""
    for block in re.split(r"\n\s*\n", text_of(page)):
        spans = CODE.findall(block)
        files = {s for s in spans if s.endswith(".py")}
        for name in files:
            assert name in sources() or (REPOSITORY / name).exists(), f"{page}: there is no {name}"
        functions = [s.removesuffix("()") for s in spans if re.fullmatch(r"[\w.]+\(\)", s)]
        known = {d for name in files & sources().keys() for d in defined_in(name)}
        for function in functions:
            assert function in known, f"{page}: {function} is in none of {sorted(files)}:\n{block}"


def test_the_tables_of_the_architecture_page_hold_names_that_exist():
    defined = {name for path in sources() for name in defined_in(path)}
    for line in text_of("architecture.md").splitlines():
        if line.startswith("|"):
            for span in CODE.findall(line):
                if re.fullmatch(r"[A-Z][a-z]\w+", span):
                    assert span in defined, span


# --------------------------------------------------------------------------------------------------- command line


def test_the_command_line_page_is_what_the_generator_writes():
    """A flag that was added, removed or reworded."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert text_of("reference/cli.md") == generate.page(), "run: python docs/generate.py"


def test_every_command_and_flag_is_on_the_command_line_page():
    """A generator that forgets something."""
    page = text_of("reference/cli.md")
    for name in COMMANDS:
        section = page.partition(f"## ventoux {name}\n")[2].partition("\n## ")[0]
        assert section, name
        parser = argparse.ArgumentParser()
        import_module(f"ventoux.cli.{name}").add_arguments(parser)
        stack = [parser]
        while stack:
            for action in stack.pop()._actions:
                if isinstance(action, argparse._SubParsersAction):
                    stack += action.choices.values()
                for flag in set(action.option_strings) - {"-h", "--help"}:
                    assert re.search(rf"`{flag}[` ]", section), f"ventoux {name} {flag}"


def test_every_command_is_in_the_readme():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"`ventoux {name}" in readme, name


def test_flags_that_pages_use_exist():
    """A guide that recommends a flag which is gone."""
    known = {"--help", "--version", *re.findall(r"--[a-z][a-z-]+", text_of("reference/cli.md"))}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        commands = re.findall(r"^    (?:\.venv/bin/)?(ventoux .*)", text, re.M)
        spans = [s for s in CODE.findall(text) if s.startswith(("ventoux", "--"))]
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(spans + commands).replace("_", "-")):
            assert flag in known, f"{page.name}: {flag}"


# ------------------------------------------------------------------------------------------------------------ HTTP


def test_every_route_is_on_the_http_page():
    # Routes need no tokenizer until a request comes.
    app = create_app(FakeEngine(), None, ["m"], 1, ServerConfig())
    rows = re.findall(r"^\| `(GET|POST|DELETE) (\S+)` \|", text_of("reference/http.md"), re.M)
    there = {
        (next(iter(route.methods - {"HEAD"})), re.sub(r":\w+\}", "}", route.path))
        for route in app.routes
        if isinstance(route, Route)
    }
    assert set(rows) == there


def test_every_field_is_on_the_http_page():
    """A field that is taken or refused without anybody being told."""
    known = words("reference/http.md")
    bodies = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, StreamOptions)
    bodies += (MessagesRequest, Thinking, ResponsesRequest, ReasoningOptions, TextOptions, BatchRequest)
    taken = {name for body in bodies for name in body.model_fields}
    ruled = {name for rules in (refusals.COMPLETIONS, MESSAGES_RULES, RESPONSES_RULES) for name in rules.refused}
    ruled |= refusals.COMPLETIONS.harmless | MESSAGES_RULES.harmless | RESPONSES_RULES.harmless
    missing = (taken | ruled) - known
    assert not missing, sorted(missing)


def test_refused_fields_are_the_refused_ones():
    """A field that is honoured by now and still listed as refused."""
    section = text_of("reference/http.md").partition("## Fields that are refused")[2].partition("\n## ")[0]
    refused, _, harmless = section.partition("These are accepted")
    named = {span for span in CODE.findall(refused) if re.fullmatch(r"[a-z_]+", span)} - {"unsupported_parameter"}
    assert named == set(refusals._REFUSED)
    assert set(refusals._HARMLESS) <= set(CODE.findall(harmless))


def error_codes() -> set[str]:
    """String constants that are given as `code`: by name, as the third argument of `refusal`, or by assignment."""
    found = set()
    for path, tree in sources().items():
        if not path.startswith(("server/", "text/", "engine/", "errors")):
            continue
        for node in ast.walk(tree):
            values = []
            if isinstance(node, ast.Call):
                values = [k.value for k in node.keywords if k.arg in ("code", "error_code")]
                if getattr(node.func, "id", None) == "refusal":
                    values += node.args[2:3]
            elif isinstance(node, ast.Assign) and "code" in ast.unparse(node.targets[0]).rpartition(".")[2]:
                values = [node.value]
            found |= {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found


def test_every_error_code_is_on_the_http_page():
    found = error_codes()
    assert {"invalid_json", "engine_dead", "model_not_found", "empty_array"} <= found, "codes are written otherwise now"
    assert found - words("reference/http.md") == set()


def test_every_metric_is_on_the_http_page():
    metrics = Metrics(FakeEngine())
    metrics.timer(1).finish("stop")
    rendered = metrics.render().decode()
    names = {n for n in re.findall(r"^# TYPE (\w+)", rendered, re.M) if not n.endswith("_created")}
    assert names - words("reference/http.md") == set()


def test_sampling_and_engine_fields_are_on_the_python_page():
    known = words("reference/python.md")
    assert {f.name for f in fields(EngineConfig)} | set(SamplingParams.__struct_fields__) <= known


# ----------------------------------------------------------------------------------------------------------- prose


def test_messages_in_the_troubleshooting_page_are_real():
    """An error message that was reworded; nobody would find it by searching."""
    headings = re.findall(r"^### `(.+)`$", text_of("guides/troubleshooting.md"), re.M)
    assert len(headings) > 10
    for heading in headings:
        for piece in heading.split("..."):
            if len(piece.strip()) > 3:
                assert piece.strip() in literals(), f"no message of the code holds {piece.strip()!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_in_code_exist(page):
    """A file that was moved."""
    for span in CODE.findall(page.read_text(encoding="utf-8")):
        if re.fullmatch(r"(?:src|tests|docs|examples|benchmarks)/[\w./-]+", span):
            assert (REPOSITORY / span).exists(), f"{page.name} names {span}"
