// TeX inside Markdown: $...$, $$...$$, \(...\) and \[...\] as extensions of marked, and their rendering by KaTeX.

// Longer ones stay text. Without a bound, many openings without an end would each be followed to the end of the text.
const LONGEST = 4000;
const BLOCK = new RegExp(
  String.raw`^(?:\$\$([\s\S]{1,${LONGEST}}?)\$\$|\\\[([\s\S]{1,${LONGEST}}?)\\\])[ \t]*(?:\n|$)`,
);
// No space inside single dollars and no digit behind them: "$5 and $6" are prices.
const INLINE = new RegExp(
  String.raw`^(?:\$\$([^$]{1,${LONGEST}}?)\$\$|\\\[([\s\S]{1,${LONGEST}}?)\\\]|\\\(([\s\S]{1,${LONGEST}}?)\\\)` +
    String.raw`|\$(?!\s)((?:\\.|[^$\\\n]){1,${LONGEST}}?)(?<!\s)\$(?!\d))`,
);
// Where the next formula may begin, as far as a run of plain text is ever long.
const next = (source, opening) => source.slice(0, LONGEST).match(opening)?.index;

export const escapeHtml = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

// Only a placeholder: KaTeX builds its elements after everything else has been sanitized.
const renderer = (token) => `<span class="math" data-display="${token.display}">${escapeHtml(token.text)}</span>`;

export const mathExtensions = [
  {
    name: "mathBlock",
    level: "block",
    renderer,
    start: (source) => next(source, /\n(?:\$\$|\\\[)/),
    tokenizer(source) {
      const found = BLOCK.exec(source);
      return found && { type: "mathBlock", raw: found[0], text: (found[1] ?? found[2]).trim(), display: true };
    },
  },
  {
    name: "mathInline",
    level: "inline",
    renderer,
    start: (source) => next(source, /\$|\\[([]/),
    tokenizer(source) {
      const found = INLINE.exec(source);
      if (!found) return undefined;
      const [raw, dollars, brackets, round, single] = found;
      const text = (dollars ?? brackets ?? round ?? single).trim();
      return { type: "mathInline", raw, text, display: dollars !== undefined || brackets !== undefined };
    },
  },
];

let loading = null;

function loadKatex() {
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = new URL("../vendor/katex/katex.css", import.meta.url);
  document.head.append(style);
  return import("../vendor/katex/katex.js").then(() => globalThis.katex);
}

// Turns the placeholders below `root` into formulas; TeX that is wrong stays text.
export async function renderMath(root) {
  const places = root.querySelectorAll("span.math");
  if (!places.length) return;
  const katex = await (loading ??= loadKatex());
  for (const place of places) {
    const source = place.textContent;
    try {
      katex.render(source, place, {
        displayMode: place.dataset.display === "true",
        trust: false,
        maxSize: 20,
        maxExpand: 500,
      });
    } catch {
      // Wrong TeX, or nested deeper than the stack. KaTeX's own mark is an inline style, which the policy forbids.
      place.textContent = source;
    }
    place.classList.replace("math", "math-done");
  }
}
