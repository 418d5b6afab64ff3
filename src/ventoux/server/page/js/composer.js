// The box below the conversation: text, pictures by file, paste and drop, and the switches for reasoning and tools.

import { alertUser, announce, button, byId, element, picture } from "./dom.js";
import { imageOf } from "./images.js";

export class Composer {
  // `onSend(text, images)`, `onStop()` and `onSwitch(name)` for "effort" and "tools".
  constructor({ onSend, onStop, onSwitch }) {
    this.images = [];
    this.onSend = onSend;
    const input = byId("input");
    input.oninput = () => this.#fit();
    input.onkeydown = (event) => {
      // While an input method composes a character, Enter belongs to it.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#submit();
      }
    };
    input.onpaste = (event) => {
      if (event.clipboardData.files.length) {
        event.preventDefault();
        this.attach(event.clipboardData.files);
      }
    };
    byId("composer").onsubmit = (event) => {
      event.preventDefault();
      this.#submit();
    };
    byId("stop").onclick = onStop;
    byId("attach").onclick = () => byId("files").click();
    byId("files").onchange = async () => {
      await this.attach(byId("files").files);
      byId("files").value = "";
      input.focus();
    };
    byId("effort").onclick = () => onSwitch("effort");
    byId("tools").onclick = () => onSwitch("tools");
    this.#takeDrops();
  }

  fill(text, images = []) {
    byId("input").value = text;
    this.images = images;
    this.#showImages();
    this.#fit();
    byId("input").focus();
  }
  get empty() {
    return !byId("input").value && !this.images.length;
  }

  setBusy(busy) {
    this.busy = busy;
    const hadFocus = document.activeElement === byId(busy ? "send" : "stop");
    byId("stop").hidden = !busy;
    byId("send").hidden = busy;
    // A focused button that disappears would leave the keyboard nowhere.
    if (hadFocus) byId("input").focus();
  }
  showSwitches({ effort, tools }) {
    byId("effort").setAttribute("aria-pressed", String(effort !== "none"));
    byId("tools").setAttribute("aria-pressed", String(tools));
  }

  async attach(files) {
    const problems = [];
    for (const file of files) {
      try {
        const url = await imageOf(file);
        // Only now: what was attached before may have been sent meanwhile.
        this.images.push(url);
      } catch (error) {
        problems.push(error.message);
      }
    }
    alertUser(problems.join(" "));
    this.#showImages();
    announce(`${this.images.length} images attached.`);
  }

  #submit() {
    const text = byId("input").value.trim(),
      { images } = this;
    if (this.busy || (!text && !images.length)) return;
    this.fill("");
    this.onSend(text, images);
  }
  #fit() {
    const input = byId("input");
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight + 2}px`;
  }
  #showImages() {
    const drop = (index) => () => {
      this.images.splice(index, 1);
      this.#showImages();
      byId("input").focus();
    };
    byId("attached").replaceChildren(
      ...this.images.map((url, i) =>
        element(
          "div",
          "thumb",
          picture(url, `Attached image ${i + 1}`),
          button("×", drop(i), { label: `Remove image ${i + 1}` }),
        ),
      ),
    );
  }
  #takeDrops() {
    const marked = (on) => document.body.classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      marked(true);
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) marked(false);
    });
    document.addEventListener("drop", (event) => {
      marked(false);
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.attach(event.dataTransfer.files);
    });
  }
}
