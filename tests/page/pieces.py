"""What several tests do by hand on the page."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

_GIVE = """async ([way, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "sums.png", { type: "image/png" }));
  const event = way === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.getElementById("input").dispatchEvent(event);
}"""


def attach_by(page: Any, way: str, path: Path) -> None:
    """Attaches a PNG file; `way` is "file", "paste" or "drop"."""
    if way == "file":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Attach images").click()
        chooser.value.set_files(str(path))
    else:
        page.evaluate(_GIVE, [way, base64.b64encode(path.read_bytes()).decode()])


def add_tool(page: Any, name: str, code: str) -> None:
    """Describes a tool of one's own in the settings, with one text argument `expression`."""
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Tools of your own").click()
    page.get_by_role("button", name="Add a tool").click()
    page.get_by_label("Definition (JSON)").fill(json.dumps({"name": name, "parameters": parameters}))
    page.get_by_label("JavaScript that returns the result").fill(code)
    page.get_by_role("button", name="Done").click()
