// Puts the page together.

import { Composer } from "./composer.js";
import { alertUser, announce, button, byId, element } from "./dom.js";
import { imageOf } from "./images.js";
import { Log } from "./log.js";
import { KeyNeededError } from "./server.js";
import { Session } from "./session.js";
import { setTheme, SettingsDialog } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { ConversationStore, loadCurrent, loadSettings, saveCurrent, saveSettings } from "./storage.js";
import { suggestionsFor } from "./suggestions.js";
import { newConversation, select } from "./tree.js";

const settings = loadSettings();
setTheme(settings.theme);
const store = await ConversationStore.open();

const log = new Log({
  retry: (node) => run(() => session.retry(node)),
  edit: (node, text) => run(() => session.edit(node, text)),
  select: (node) => {
    const pressed = document.activeElement.ariaLabel;
    select(session.conversation, node);
    session.save();
    show();
    log.focusVersions(node, pressed);
  },
});
const session = new Session(store, settings, {
  changed: (conversation) => {
    if (conversation === session.conversation) show();
    sidebar.show();
  },
  growing: (node) => {
    if (session.live === node) log.refresh(node);
  },
  askResult: (node, call, signal) => {
    announce("The model waits for the result of a tool.");
    return log.view(node).ask(call.id, signal);
  },
  connected,
  failed,
});
const composer = new Composer({ onSend: send, onStop: () => session.stop(), onSwitch: toggle });
const dialog = new SettingsDialog(settings, {
  system: () => session.conversation.system,
  onChange() {
    session.conversation.system = settings.system;
    session.save();
    show();
    if (!session.model) connect();
  },
});
const sidebar = new Sidebar({
  store,
  current: () => session.conversation,
  open,
  create: () => open(newConversation(settings.system)),
  discard: (conversation) => session.discard(conversation),
});

function show() {
  const { conversation, live, busy } = session;
  byId("hello").hidden = conversation.leaf !== null;
  log.show(conversation, { live, busy, colors: settings.colors });
  byId("log").setAttribute("aria-busy", String(busy));
  composer.setBusy(busy);
  composer.showSwitches(settings);
}

function open(conversation) {
  session.open(conversation);
  alertUser("");
  show();
  // Only now: one that cannot be shown must not be opened again by a reload.
  saveCurrent(conversation.id);
  sidebar.show();
  log.toEnd();
  byId("input").focus();
}

// Runs what may end in an answer; resolves to whether there was one.
async function run(work) {
  alertUser("");
  saveCurrent(session.conversation.id);
  announce("The model answers.");
  const conversation = session.conversation;
  const answered = await work();
  if (conversation === session.conversation) announce(answered ? "The answer is complete." : "There is no answer.");
  return answered;
}

async function send(text, images) {
  const conversation = session.conversation;
  const asking = run(() => session.send(text, images));
  log.toEnd();
  // A question without an answer goes back into the box, unless something else was written there meanwhile.
  if (!(await asking) && conversation === session.conversation && composer.empty) composer.fill(text, images);
}

function toggle(name) {
  if (name === "effort") settings.effort = settings.effort === "none" ? "high" : "none";
  else settings.tools = !settings.tools;
  saveSettings(settings);
  composer.showSwitches(settings);
}

function failed(error) {
  alertUser(error.message);
  if (error instanceof KeyNeededError) dialog.open("key");
}

function connected(model) {
  byId("model").textContent = `${model.id} · ${model.max_model_len.toLocaleString("en")} tokens`;
  document.title = `${model.id.split("/").pop()} · Ventoux`;
  showSuggestions(model);
}

async function connect() {
  try {
    await session.connect();
    alertUser("");
  } catch (error) {
    byId("model").textContent = "not connected";
    failed(error);
  }
}

function showSuggestions(model) {
  byId("suggestions").replaceChildren(
    ...suggestionsFor(model).map((suggestion) => {
      const made = button("", () => follow(suggestion), { className: "suggestion" });
      made.append(element("strong", "", suggestion.title), element("span", "", suggestion.hint));
      return element("li", "", made);
    }),
  );
}

async function follow({ text, image, effort = "none", tools = false }) {
  Object.assign(settings, { effort, tools });
  composer.showSwitches(settings);
  const images = [];
  if (image) {
    const blob = await (await fetch(image)).blob();
    images.push(await imageOf(new File([blob], "example.png", { type: blob.type })));
  }
  send(text, images);
}

byId("settings").onclick = () => dialog.open();
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && session.busy && !byId("dialog").open) session.stop();
});
// A menu that is left closes.
document.addEventListener("click", (event) => {
  if (!byId("more").contains(event.target)) byId("more").open = false;
});
byId("more").onkeydown = (event) => {
  if (event.key === "Escape") {
    event.stopPropagation();
    byId("more").open = false;
    byId("more").firstElementChild.focus();
  }
};
byId("volatile").hidden = store.lasting;

open((await store.get(loadCurrent() ?? "")) ?? newConversation(settings.system));
connect();
