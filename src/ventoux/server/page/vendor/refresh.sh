#!/bin/sh
# Copies the built files that the chat page uses out of the npm packages that package.json pins, with their licences.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$work"
(cd "$work" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --silent)
from=$work/node_modules
for folder in marked dompurify highlight katex; do rm -rf "${here:?}/$folder"; mkdir "$here/$folder"; done

# Source maps stay behind, and so does the comment that would make the browser's tools ask for them.
sed '/^\/\/# sourceMappingURL=/d' "$from/marked/lib/marked.esm.js" > "$here/marked/marked.js"
cp "$from/marked/LICENSE"* "$here/marked/LICENSE"
sed '/^\/\/# sourceMappingURL=/d' "$from/dompurify/dist/purify.es.mjs" > "$here/dompurify/purify.js"
cp "$from/dompurify/LICENSE" "$here/dompurify/LICENSE"
cp "$from/@highlightjs/cdn-assets/es/highlight.min.js" "$here/highlight/highlight.js"
cp "$from/@highlightjs/cdn-assets/LICENSE" "$here/highlight/LICENSE"
cp "$from/katex/dist/katex.min.js" "$here/katex/katex.js"
cp "$from/katex/LICENSE" "$here/katex/LICENSE"
mkdir "$here/katex/fonts"
cp "$from"/katex/dist/fonts/*.woff2 "$here/katex/fonts"
# Every browser that runs the page reads woff2.
sed -E 's/,url\([^)]*\.(woff|ttf)\) format\("(woff|truetype)"\)//g' "$from/katex/dist/katex.min.css" > "$here/katex/katex.css"
