"""The chat page's files: what the server says about them, and those of its modules that need no browser.

What needs one is in tests/page.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

PAGE = files("ventoux.server").joinpath("page")
MODULES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.joinpath("js").glob("*.js")}
HTML = {name: PAGE.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "status.html")}
VENDORED = ("marked", "dompurify", "highlight", "katex")

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="runs the page's modules with node")


def run_script(modules: str, code: str) -> Any:
    """Evaluates the body of an async function that may use the named modules of the page; no document."""
    imports = "".join(f"import * as {name} from {(str(PAGE / 'js' / name) + '.js')!r};" for name in modules.split())
    source = f"{imports}console.log(JSON.stringify(await (async () => {{{code}}})()))"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", source],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", ["/", "/status", "/page/js/main.js", "/page/vendor/katex/katex.css"])
def test_nothing_from_elsewhere_may_run(server, path):
    """A policy that a new feature has loosened."""
    response = server.get(path)
    assert response.status_code == 200
    rules = dict(rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[kind] for kind in ("script-src", "style-src", "connect-src", "worker-src", "font-src")} == {"'self'"}
    assert rules["require-trusted-types-for"] == "'script'"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_only_the_worker_may_run_written_code_and_it_has_no_network(server):
    """A tool of a person's own could send what it is given to anybody."""
    policy = server.get("/page/js/tool-worker.js").headers["content-security-policy"]
    assert policy == "default-src 'none'; script-src 'unsafe-eval'"
    assert all(
        "unsafe" not in server.get(path).headers["content-security-policy"] for path in ("/", "/page/js/main.js")
    )


def test_files_are_sent_again_only_after_an_update(server):
    tag = server.get("/page/js/main.js").headers["etag"]
    again = server.get("/page/js/main.js", headers={"if-none-match": tag})
    assert again.status_code == 304 and again.content == b""
    assert server.get("/page/js/main.js", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["", "js/", "js/none.js", "../pages.py", "%2e%2e/pages.py", "/etc/passwd", "vendor/package.json", "js/main.js/"],
)
def test_only_the_pages_files_are_served(server, name):
    assert server.get("/page/" + name).status_code == 404


def test_the_pages_ask_for_the_key_themselves(make_server):
    """A page that needs a key to be loaded cannot ask for it."""
    server = make_server(api_key=("secret",))
    for path in ("/", "/status", "/page/js/status.js"):
        assert server.get(path).status_code == 200
    assert server.get("/v1/models").status_code == 401


def test_every_file_that_is_named_is_there():
    """A module that was renamed; the page would stay empty."""
    for name, text in HTML.items():
        for path in re.findall(r'(?:href|src)="page/([^"]+)"', text):
            assert PAGE.joinpath(path).is_file(), f"{name}: {path}"
    for name, text in MODULES.items():
        for path in re.findall(r'(?:from|import\(|URL\()\s*"(\.[^"]+)"', text):
            assert (PAGE / "js" / path).resolve().is_file(), f"{name}: {path}"
    ids = set(re.findall(r'id="([\w-]+)"', "".join(HTML.values())))
    for name, text in MODULES.items():
        assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= ids, name


def test_text_never_becomes_markup():
    for name, text in MODULES.items():
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert dangerous not in text, name
    # Scripts and handlers in attributes would need 'unsafe-inline'.
    for text in HTML.values():
        assert not re.search(r"<script(?![^>]*src=)|<[^>]+\s(?:on\w+|style)=", text)


def test_a_server_in_a_local_network_is_no_secure_origin():
    """The page would stay empty there, and work on everybody's own machine."""
    for name, text in MODULES.items():
        # The clipboard has its own try.
        assert not re.search(r"crypto\.(randomUUID|subtle)|navigator\.(serviceWorker|locks|storage)|caches\.", text), (
            name
        )


def test_every_control_has_a_name():
    """Screen readers need one; an icon is none."""
    for page in HTML.values():
        for tag, attributes, text in re.findall(r"<(button|select|textarea|input)([^>]*)>([^<]*)", page):
            identifier = re.search(r'id="([^"]+)"', attributes)
            labelled = identifier and re.search(rf'<label>[^<]*<{tag} id="{identifier[1]}"|for="{identifier[1]}"', page)
            wrapped = identifier and re.search(rf'<label>[^<]*\s*<{tag} id="{identifier[1]}"', page)
            assert "aria-label" in attributes or labelled or wrapped or re.search(r"\w", text), (tag, attributes)


def test_what_is_shipped_of_others_is_small_and_licensed():
    """A refresh that forgot a licence, or brought a library whole."""
    vendor = PAGE / "vendor"
    assert {path.name for path in vendor.iterdir() if path.is_dir()} == set(VENDORED)
    for name in VENDORED:
        assert vendor.joinpath(name, "LICENSE").read_text(encoding="utf-8").strip()
    assert sum(path.stat().st_size for path in vendor.rglob("*") if path.is_file()) < 1_000_000
    pinned = json.loads(vendor.joinpath("package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
    for package, path in (("marked", "marked/marked.js"), ("dompurify", "dompurify/purify.js")):
        assert pinned[package] in vendor.joinpath(path).read_text(encoding="utf-8")[:300], (
            f"run: make page-vendor ({package})"
        )


@needs_node
def test_the_calculator_is_pythons_arithmetic():
    expressions = [
        "1 + 2 * 3", "(1 + 2) * 3", "12 / 4", "7 / 2", "1 / 3", "7 // 2", "-7 // 2", "7 // -2", "-7 % 3", "7 % -3",
        "2 ** 10", "2 ** -1", "-2 ** 2", "2 ** 3 ** 2", "0.1 + 0.2", "1e3", "1.5 * 2", ".5 + 1", "5.", "--5", "+-+3",
        "123456789012345678901234567890 * 2", "99 ** 30", "7.5 // 2", "-7.5 % 2", "10 - 4 - 3", "100 / 10 / 2",
    ]  # fmt: skip
    found = run_script("calculator", f"return {json.dumps(expressions)}.map(calculator.calculate)")
    assert dict(zip(expressions, found, strict=True)) == {e: str(eval(e)) for e in expressions}


@needs_node
def test_the_calculator_refuses_everything_else_quickly():
    hostile = [
        "", "1 +", "(1", "1)", "1 2", "abc", "alert(1)", "1/0", "1 % 0", "0 ** -1", "(-8) ** 0.5", "9 ** 9 ** 9",
        "2 ** 100000", "(" * 300 + "1" + ")" * 300, "-" * 400 + "1", "1" * 501, "process.exit()", "1e400", "a.b", "1;2",
    ]  # fmt: skip
    code = (
        "const call = text => tools.runTool({name: 'my_calculator', arguments: text}, []);"
        f"return Promise.all({json.dumps(hostile)}.map(e => call(JSON.stringify({{expression: e}})))"
        ".concat([call('{'), call('{}'), tools.runTool({name: 'x', arguments: '{}'}, [])]))"
    )
    for source, result in zip([*hostile, "{", "{}", "x"], run_script("tools", code), strict=True):
        assert result.startswith("error: "), (source, result)


@needs_node
def test_the_page_reads_events_at_any_split():
    stream = 'data: {"a":1}\n\n: ping\n\ndata: {"b":"é\\n"}\n\ndata: [DONE]\n\n'
    code = (
        f"const s = {json.dumps(stream)}; const all = [];"
        "for (let n = 1; n <= s.length; n++) { const got = []; const read = events.makeEventReader(d => got.push(d));"
        "for (let i = 0; i < s.length; i += n) read(s.slice(i, i + n)); all.push(got); } return all"
    )
    expected = ['{"a":1}', '{"b":"é\\n"}', "[DONE]"]
    assert all(got == expected for got in run_script("events", code))


CONVERSATION = """
const chat = tree.newConversation("Be brief.");
const answer = (parent, content, more = {}) => tree.append(chat, parent, {
  role: "assistant", content, reasoning: "", reasoningSeconds: 0, calls: [], usage: null, seconds: 0, firstSeconds: 0,
  tokens: [], finish: "stop", note: "", ...more });
const asked = tree.append(chat, null, { role: "user", content: "one", images: [] });
const first = answer(asked.id, "first");
"""


@needs_node
def test_retries_and_edits_are_branches():
    """A retry that overwrites an answer, or a branch that shows the other one's continuation."""
    code = (
        CONVERSATION
        + """
      const second = answer(asked.id, "second");
      const texts = () => tree.path(chat).map(node => node.content);
      const seen = [texts()];
      tree.append(chat, second.id, { role: "user", content: "two", images: [] });
      seen.push(texts());
      tree.select(chat, first); seen.push(texts());
      tree.select(chat, second); seen.push(texts());
      tree.append(chat, null, { role: "user", content: "other", images: [] }); seen.push(texts());
      tree.remove(chat, chat.nodes[chat.leaf]); seen.push(texts());
      return [seen, tree.versions(chat, first).map(node => node.content)];
    """
    )
    seen, versions = run_script("tree", code)
    long = ["one", "second", "two"]
    assert seen == [["one", "second"], long, ["one", "first"], long, ["other"], long]
    assert versions == ["first", "second"]


@needs_node
def test_messages_are_those_of_the_branch():
    """Calls that were stopped have no results, and a server refuses them for all the rest of the conversation."""
    code = (
        CONVERSATION
        + """
      const call = id => ({ id, name: "f", arguments: "{}" });
      const calling = answer(first.id, "", { calls: [call("a"), call("b")], reasoning: "hm" });
      const result = tree.append(chat, calling.id, { role: "tool", callId: "a", name: "f", content: "1" });
      const empty = answer(result.id, "");
      const image = "data:image/png;base64,AA==";
      const last = tree.append(chat, empty.id, { role: "user", content: "see", images: [image] });
      return tree.toMessages(chat, last.id);
    """
    )
    function = {"name": "f", "arguments": "{}"}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    assert run_script("tree", code) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "first"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "hm",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, picture]},
    ]


@needs_node
def test_an_export_comes_back_as_it_was():
    code = (
        CONVERSATION
        + """
      first.tokens = [{ text: "a", logprob: -0.5, drafted: true, experts: [[1, 2]], top: [["a", -0.5], ["b", -1]] }];
      first.usage = { prompt: 1, cached: 0, completion: 1, drafted: 2, accepted: 1 };
      const [back] = archive.fromFile(archive.toFile([chat]));
      const other = back.id !== chat.id;
      return [other, { ...back, id: "" }, { ...chat, id: "" }];
    """
    )
    other, back, before = run_script("tree archive", code)
    assert other and back == before


@needs_node
def test_damaged_and_hostile_exports_are_refused():
    """Files come from anybody: pictures that call elsewhere, circles, prototypes, half a conversation."""
    code = (
        CONVERSATION
        + """
      const good = JSON.stringify(JSON.parse(archive.toFile([chat])));
      const changed = change => {
        const data = JSON.parse(good); change(data.conversations[0]); return JSON.stringify(data);
      };
      const bad = ["", "[]", "null", good.slice(0, -9), good.replace('"version":1', '"version":2'),
        changed(c => { c.nodes[1].images = ["http://elsewhere/x.png"]; }),
        changed(c => { c.nodes[1].images = ["data:image/svg+xml;base64,AA=="]; }),
        changed(c => { c.nodes[1].parent = 2; }), changed(c => { c.nodes[1].parent = 1; }),
        changed(c => { delete c.nodes[1]; }), changed(c => { c.leaf = 9; }),
        changed(c => { c.nodes[2].role = "system"; }),
        changed(c => { c.nodes[2].calls = [null]; }), changed(c => { c.nodes[2].content = {}; }),
        changed(c => { c.nodes[2].tokens = [{ text: "a", logprob: 0, top: [], experts: [["x"]] }]; }),
        changed(c => { c.nodes[1].id = "__proto__"; }), changed(c => { c.nodes = null; })];
      archive.fromFile(good);
      const message = text => { try { archive.fromFile(text); return "taken"; } catch (e) { return e.message; } };
      return bad.map(message);
    """
    )
    for message in run_script("tree archive", code):
        assert message.startswith("The file "), message


@needs_node
def test_chunks_fold_into_an_answer_with_its_times():
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"delta": {"reasoning": "hm"}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "So"}, "finish_reason": None}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]}}]},
        {
            "choices": [
                {
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
                    "finish_reason": "tool_calls",
                }
            ]
        },
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"drafted_tokens": 3, "accepted_tokens": 2},
            },
        },
    ]
    code = (
        "let at = 0; const node = answer.emptyAnswer(); const fold = answer.makeFold(node, () => at++);"
        f"for (const chunk of {json.dumps(chunks)}) fold(chunk); return [node, answer.statistics(node)]"
    )
    node, line = run_script("answer", code)
    assert (node["reasoning"], node["content"], node["finish"]) == ("hm", "So", "tool_calls")
    assert node["calls"] == [{"id": "x", "name": "f", "arguments": "{}"}]
    assert node["usage"] == {"prompt": 7, "cached": 4, "completion": 5, "drafted": 3, "accepted": 2}
    assert node["reasoningSeconds"] > 0
    assert line.startswith("5 tokens, ") and "prompt 7, 4 cached" in line and line.endswith("drafted 2 of 3")


@needs_node
def test_the_status_page_reads_our_metrics(server):
    """A metric that was renamed would show as zero for ever."""
    text = server.get("/metrics").text
    code = (
        f"const now = metrics.parseMetrics({json.dumps(text)}); const names = new Set();"
        "const spy = new Proxy(now, { get: (all, name) => { names.add(name); return all[name]; } });"
        "const before = { ...now, ventoux_generation_tokens_total: now.ventoux_generation_tokens_total - 6 };"
        "return [metrics.summarize(spy, before, 2), [...names]]"
    )
    summary, names = run_script("metrics", code)
    assert summary["up"] and summary["generation"] == 3 and summary["hits"] is None
    series = set(re.findall(r"^(\w+)", text, re.M))
    # Counters with labels have no series before something is counted.
    assert set(names) - series <= {"ventoux_request_success_total"}


@needs_node
def test_definitions_of_tools_are_checked():
    good = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    bad = ["{", "null", "{}", '{"name": "a b"}', '{"name": "f", "parameters": []}', '{"name": "f", "description": 1}']
    code = (
        f"const parse = text => {{ try {{ return tools.parseDefinition(text); }} catch (e) {{ return e.message; }} }};"
        f"return {json.dumps([json.dumps(good), json.dumps({'type': 'function', 'function': good}), *bad])}.map(parse)"
    )
    first, wrapped, *refused = run_script("tools", code)
    assert first == wrapped == good
    assert all(isinstance(message, str) for message in refused)
