// Markdown of models -> elements. Raw HTML is shown as text, pictures become links (nothing is fetched from elsewhere),
// and the rest passes DOMPurify with a list of what may be there.

import { Marked } from "../vendor/marked/marked.js";
import DOMPurify from "../vendor/dompurify/purify.js";
import { button, copyText, element } from "./dom.js";
import { escapeHtml, mathExtensions, renderMath } from "./math.js";

const ALLOWED = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    "p",
    "br",
    "h3",
    "h4",
    "h5",
    "h6",
    "strong",
    "em",
    "del",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "hr",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "a",
    "span",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "align", "start", "data-display"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};
const LONGEST_HIGHLIGHTED = 30000;

const marked = new Marked({
  gfm: true,
  // As people write in chats: a new line is a new line.
  breaks: true,
  extensions: mathExtensions,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // h1 and h2 are the page's.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

let highlighter = null;

async function highlight(code, language) {
  const { default: hljs } = await (highlighter ??= import("../vendor/highlight/highlight.js"));
  if (!hljs.getLanguage(language)) return;
  const { value } = hljs.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(DOMPurify.sanitize(value, ALLOWED));
}

// Gives a block of code its language, a button that copies it, and colours.
function dressCode(pre) {
  const code = pre.firstElementChild;
  const language = /language-([\w+#-]+)/.exec(code.className)?.[1] || "";
  const copy = button("Copy", () => copyText(code.textContent, copy), { className: "quiet" });
  const box = element("div", "code", element("div", "code-head", element("span", "", language || "text"), copy));
  pre.replaceWith(box);
  // Long lines scroll inside: so the keyboard must get there.
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", `Code${language && `, ${language}`}`);
  box.append(pre);
  if (language && code.textContent.length < LONGEST_HIGHLIGHTED) highlight(code, language);
}

function render(token, links) {
  const tokens = [token];
  tokens.links = links;
  const fragment = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
  const block = element("div", "block");
  block.append(fragment);
  block.querySelectorAll("pre").forEach(dressCode);
  block.querySelectorAll("table").forEach((table) => {
    const frame = element("div", "table");
    table.replaceWith(frame);
    frame.append(table);
  });
  renderMath(block);
  return block;
}

// An element that shows a growing Markdown text. Only blocks that changed are built again, mostly the last one.
export class MarkdownBox {
  constructor(className) {
    this.element = element("div", `prose ${className}`);
    this.text = "";
    this.shown = [];
  }
  set(text) {
    if (text === this.text) return;
    this.text = text;
    try {
      this.#show(text);
    } catch {
      // Lists and quotes nested deeper than the stack: as they were written.
      const block = element("div", "plain", text);
      this.shown = [{ raw: null, block }];
      this.element.replaceChildren(block);
    }
  }
  #show(text) {
    const tokens = marked.lexer(text);
    const wanted = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    let same = 0;
    while (same < wanted.length && same < this.shown.length && wanted[same].raw === this.shown[same].raw) same++;
    for (const { block } of this.shown.splice(same)) block.remove();
    for (const token of wanted.slice(same)) {
      const block = render(token, tokens.links);
      this.shown.push({ raw: token.raw, block });
      this.element.append(block);
    }
  }
}
