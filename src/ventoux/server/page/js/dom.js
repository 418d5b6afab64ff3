// Small helpers to build elements. Text from people and models only ever becomes text nodes here.

export const byId = (id) => document.getElementById(id);

export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

export function button(text, onclick, { className = "", label = "", pressed = null } = {}) {
  const made = element("button", className, text);
  made.type = "button";
  made.onclick = onclick;
  if (label) {
    made.setAttribute("aria-label", label);
    made.title = label;
  }
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  return made;
}

export function picture(url, name) {
  const image = element("img");
  image.src = url;
  image.alt = name;
  return image;
}

// Says something to screen readers without showing it.
export function announce(text) {
  byId("announcer").textContent = text;
}

// Shows what went wrong until the next attempt; an empty text takes it away.
export function alertUser(text) {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = element("a");
  link.href = url;
  link.download = name;
  link.click();
  // Not at once: some browsers begin to read it only later.
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export async function copyText(text, from) {
  const before = from.textContent;
  try {
    // Browsers offer the clipboard to secure origins only: over plain HTTP from elsewhere there is none.
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not allowed here";
  }
  announce(from.textContent);
  setTimeout(() => {
    from.textContent = before;
  }, 1500);
}
