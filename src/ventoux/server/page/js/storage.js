// What the browser keeps: conversations in IndexedDB (images are too large for anything else), settings in
// localStorage, the API key until the tab is closed.

import { titleOf } from "./tree.js";

const CHATS = "conversations";
// Titles apart: the list must not read all pictures of all chats.
const LIST = "list";

function request(made) {
  return new Promise((resolve, reject) => {
    made.onsuccess = () => resolve(made.result);
    made.onerror = () => reject(made.error);
  });
}

async function openDatabase() {
  const opening = indexedDB.open("ventoux", 1);
  opening.onupgradeneeded = () => {
    for (const name of [CHATS, LIST]) opening.result.createObjectStore(name, { keyPath: "id" });
  };
  return request(opening);
}

const summary = (conversation) => ({
  id: conversation.id,
  title: titleOf(conversation),
  updated: conversation.updated,
});

// Conversations by id. Without a database, as in some private windows, they last as long as the page.
export class ConversationStore {
  static async open() {
    try {
      return new ConversationStore(await openDatabase());
    } catch {
      return new ConversationStore(null);
    }
  }
  constructor(database) {
    this.database = database;
    this.held = new Map();
  }
  get lasting() {
    return this.database !== null;
  }

  // {id, title, updated} of all conversations, the one changed last first.
  async list() {
    const found = this.database
      ? await request(this.database.transaction(LIST).objectStore(LIST).getAll())
      : [...this.held.values()].map(summary);
    return found.sort((a, b) => b.updated - a.updated);
  }
  async all() {
    return this.database
      ? request(this.database.transaction(CHATS).objectStore(CHATS).getAll())
      : [...this.held.values()];
  }
  // undefined if there is none.
  async get(id) {
    return this.database ? request(this.database.transaction(CHATS).objectStore(CHATS).get(id)) : this.held.get(id);
  }
  // Rejects if there is no room.
  async put(conversation) {
    if (!this.database) this.held.set(conversation.id, conversation);
    else
      await this.#write((chats, list) => {
        chats.put(conversation);
        list.put(summary(conversation));
      });
  }
  async delete(id) {
    if (!this.database) this.held.delete(id);
    else
      await this.#write((chats, list) => {
        chats.delete(id);
        list.delete(id);
      });
  }

  async #write(change) {
    const writing = this.database.transaction([CHATS, LIST], "readwrite");
    const done = new Promise((resolve, reject) => {
      writing.oncomplete = resolve;
      writing.onabort = () => reject(writing.error);
    });
    change(writing.objectStore(CHATS), writing.objectStore(LIST));
    await done;
  }
}

const KEY = "ventoux-key",
  SETTINGS = "ventoux-settings",
  CURRENT = "ventoux-current";

function read(area, name) {
  try {
    return area().getItem(name);
  } catch {
    return null;
  }
}
function write(area, name, value) {
  try {
    area().setItem(name, value);
  } catch {
    /* private windows keep nothing */
  }
}
const local = () => localStorage,
  session = () => sessionStorage;

export const loadKey = () => read(session, KEY) || "";
export const saveKey = (key) => write(session, KEY, key);
export const loadCurrent = () => read(local, CURRENT);
export const saveCurrent = (id) => write(local, CURRENT, id);

const DEFAULTS = {
  theme: "system",
  system: "",
  effort: "none",
  tools: false,
  colors: "none",
  sampling: {},
  userTools: [],
};

export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(read(local, SETTINGS) || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}
export function saveSettings(settings) {
  write(local, SETTINGS, JSON.stringify(settings));
}
