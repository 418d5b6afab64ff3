// The settings dialog: system prompt, sampling, tools of one's own, token colours, theme and API key.

import { button, byId, element } from "./dom.js";
import { SAMPLING } from "./request.js";
import { loadKey, saveKey, saveSettings } from "./storage.js";
import { parseDefinition } from "./tools.js";

const EXAMPLE = {
  name: "roll_dice",
  description: "Rolls dice and returns the numbers shown.",
  parameters: {
    type: "object",
    properties: { count: { type: "integer", description: "How many dice." } },
    required: ["count"],
  },
};
const EXAMPLE_CODE = "return Array.from({ length: args.count }, () => 1 + Math.floor(6 * Math.random()));";

export function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export class SettingsDialog {
  // `onChange(settings)` is called after "Done"; `system()` gives the system prompt of the conversation shown.
  constructor(settings, { onChange, system }) {
    this.settings = settings;
    this.system = system;
    byId("sampling").append(...SAMPLING.map(numberField));
    byId("theme").onchange = () => setTheme(byId("theme").value);
    byId("tool-add").onclick = () => this.#addTool({ definition: EXAMPLE, code: EXAMPLE_CODE }, true);
    byId("settings-form").onsubmit = (event) => {
      event.preventDefault();
      if (!this.#read()) return;
      byId("dialog").close();
      onChange(settings);
    };
    byId("settings-cancel").onclick = () => byId("dialog").close();
    byId("dialog").onclose = () => setTheme(settings.theme);
  }

  open(field = "system") {
    const { settings } = this;
    byId("system").value = this.system();
    byId("colors").value = settings.colors;
    byId("theme").value = settings.theme;
    byId("key").value = loadKey();
    for (const { name } of SAMPLING) byId(`sampling-${name}`).value = settings.sampling[name] ?? "";
    byId("sampling-stop").value = (settings.sampling.stop ?? []).join("\n");
    byId("own-tools").replaceChildren();
    settings.userTools.forEach((tool) => this.#addTool(tool, false));
    if (!byId("dialog").open) byId("dialog").showModal();
    byId(field).focus();
  }

  // Fields -> settings. False if a tool's definition is wrong; its field says so then.
  #read() {
    const tools = [...byId("own-tools").children].map(readTool);
    if (tools.includes(null)) return false;
    const sampling = {};
    for (const { name } of SAMPLING) {
      const { value } = byId(`sampling-${name}`);
      if (value !== "") sampling[name] = Number(value);
    }
    const stop = byId("sampling-stop").value.split("\n").filter(Boolean);
    if (stop.length) sampling.stop = stop;
    Object.assign(this.settings, {
      system: byId("system").value,
      colors: byId("colors").value,
      theme: byId("theme").value,
      sampling,
      userTools: tools,
    });
    saveKey(byId("key").value.trim());
    saveSettings(this.settings);
    return true;
  }

  #addTool({ definition, code }, focus) {
    const described = labelled("textarea", "Definition (JSON)", "definition", JSON.stringify(definition, null, 2));
    const runs = labelled(
      "textarea",
      "JavaScript that returns the result; `args` holds the arguments. " + "Left empty, you answer the call yourself.",
      "code-field",
      code,
    );
    const problem = element("p", "error");
    problem.setAttribute("role", "alert");
    const box = element("fieldset", "own-tool", element("legend", "", definition.name), described, problem, runs);
    const drop = () => {
      box.remove();
      byId("tool-add").focus();
    };
    box.append(button("Remove this tool", drop, { className: "quiet" }));
    byId("own-tools").append(box);
    if (focus) described.querySelector("textarea").focus();
  }
}

function labelled(tag, label, className, value) {
  const field = element(tag, className);
  field.value = value;
  field.spellcheck = false;
  field.rows = Math.min(10, value.split("\n").length + 1);
  return element("label", "", label, field);
}

function readTool(box) {
  const problem = box.querySelector(".error");
  try {
    const definition = parseDefinition(box.querySelector(".definition").value);
    problem.textContent = "";
    return { definition, code: box.querySelector(".code-field").value };
  } catch (error) {
    problem.textContent = error.message;
    box.querySelector(".definition").focus();
    return null;
  }
}

function numberField({ name, label, fallback, ...limits }) {
  const field = element("input");
  Object.assign(field, { id: `sampling-${name}`, type: "number", placeholder: fallback, ...limits });
  return element("label", "", label, field);
}
