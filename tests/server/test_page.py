"""The chat page: what may run in it, and its calculator, which must agree with the Python that models learn from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from importlib.resources import files

import pytest

PAGE = files("ventoux.server").joinpath("page", "index.html").read_text(encoding="utf-8")
SCRIPT = re.search(r"<script>(.*?)</script>", PAGE, re.DOTALL).group(1)

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's script with node")


def run_script(code: str) -> object:
    """Evaluates code after the page's script, without a document."""
    done = subprocess.run(
        ["node", "-e", SCRIPT + ";console.log(JSON.stringify((() => {" + code + "})()))"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_the_pages_own_script_may_run(server):
    policy = server.get("/").headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert PAGE.count("<script") == 1
    # Handlers in attributes would need 'unsafe-inline'.
    assert not re.search(r"<[^>]+\son\w+=", PAGE)


def test_text_never_becomes_markup():
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert dangerous not in SCRIPT


def test_every_control_has_a_name():
    """Screen readers need one; an icon is none."""
    for tag, attributes, text in re.findall(r"<(button|select|textarea)([^>]*)>(.*?)</\1>", PAGE, re.DOTALL):
        identifier = re.search(r'id="([^"]+)"', attributes)
        labelled = identifier and f'for="{identifier.group(1)}"' in PAGE
        assert "aria-label" in attributes or labelled or re.search(r"\w", re.sub(r"<[^>]+>", "", text)), (tag, text)


@needs_node
def test_the_calculator_is_pythons_arithmetic():
    expressions = [
        "1 + 2 * 3", "(1 + 2) * 3", "12 / 4", "7 / 2", "1 / 3", "7 // 2", "-7 // 2", "7 // -2", "-7 % 3", "7 % -3",
        "2 ** 10", "2 ** -1", "-2 ** 2", "2 ** 3 ** 2", "0.1 + 0.2", "1e3", "1.5 * 2", ".5 + 1", "5.", "--5", "+-+3",
        "123456789012345678901234567890 * 2", "99 ** 30", "7.5 // 2", "-7.5 % 2", "10 - 4 - 3", "100 / 10 / 2",
    ]  # fmt: skip
    found = run_script(f"return {json.dumps(expressions)}.map(calculate)")
    assert dict(zip(expressions, found, strict=True)) == {e: str(eval(e)) for e in expressions}


@needs_node
def test_the_calculator_refuses_everything_else_quickly():
    hostile = [
        "", "1 +", "(1", "1)", "1 2", "abc", "alert(1)", "1/0", "1 % 0", "0 ** -1", "(-8) ** 0.5", "9 ** 9 ** 9",
        "2 ** 100000", "(" * 300 + "1" + ")" * 300, "-" * 400 + "1", "1" * 501, "process.exit()", "1e400", "a.b", "1;2",
    ]  # fmt: skip
    code = (
        f"return {json.dumps(hostile)}.map(e => runTool('my_calculator', JSON.stringify({{expression: e}})))"
        ".concat([runTool('my_calculator', '{'), runTool('my_calculator', '{}'), runTool('x', '{}')])"
    )
    for source, result in zip([*hostile, "{", "{}", "x"], run_script(code), strict=True):
        assert result.startswith("error: "), (source, result)


@needs_node
def test_the_page_reads_events_at_any_split():
    stream = 'data: {"a":1}\n\n: ping\n\ndata: {"b":"é\\n"}\n\ndata: [DONE]\n\n'
    code = (
        f"const s = {json.dumps(stream)}; const all = [];"
        "for (let n = 1; n <= s.length; n++) { const got = []; const read = makeEventReader(d => got.push(d));"
        "for (let i = 0; i < s.length; i += n) read(s.slice(i, i + n)); all.push(got); } return all"
    )
    expected = ['{"a":1}', '{"b":"é\\n"}', "[DONE]"]
    assert all(got == expected for got in run_script(code))
