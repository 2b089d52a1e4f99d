// The conversations kept in this browser: saving, with trouble shown, and their way out to files and back in.

import { byId } from "./dom.js";
import { newId } from "./conversation.js";
import { fileName, fromJson, toJson, toMarkdown } from "./export.js";
import { chooseFile, download } from "./files.js";
import { t } from "./i18n.js";
import { toast } from "./notices.js";
import { openStore } from "./store.js";

export class Library {
  #store; // a promise: what is asked before the database is open waits for it
  #channel = "BroadcastChannel" in window ? new BroadcastChannel("telechat") : null;

  /** `onChange()` when another tab changed something. */
  async open({ onChange }) {
    this.#channel?.addEventListener("message", onChange);
    this.#store = openStore();
    if (!(await this.#store).isKept) toast(t("storageOff"));
  }

  all = async () => (await this.#store).all();
  get = async (id) => (await this.#store).get(id);

  /** Whether it was kept; why not is shown to the user. */
  async save(conversation) {
    try {
      await (await this.#store).put(conversation);
      this.#channel?.postMessage("changed");
      return true;
    } catch (error) {
      const isFull = error?.name === "QuotaExceededError";
      toast(isFull ? t("storageFull") : t("storageFailed", { message: error?.message ?? "" }));
      return false;
    }
  }

  async remove(id) {
    await (await this.#store).remove(id);
    this.#channel?.postMessage("changed");
  }

  exportMarkdown(conversation) {
    const text = toMarkdown(conversation, { you: t("you"), systemPrompt: t("systemPrompt") });
    download(fileName(conversation.title, "md"), text, "text/markdown");
  }

  exportJson(conversation) {
    download(fileName(conversation.title, "json"), toJson([conversation], Date.now()), "application/json");
  }

  async exportAll() {
    const conversations = await this.all();
    if (!conversations.length) return toast(t("nothingToExport"));
    conversations.sort((a, b) => a.createdAt - b.createdAt);
    download(fileName(`telechat-${new Date().toISOString().slice(0, 10)}`, "json"), toJson(conversations, Date.now()), "application/json");
  }

  /** Ask for a file and add its conversations beside those there are. */
  async import() {
    const text = await chooseFile(byId("import-file"));
    if (text === null) return;
    let read;
    try {
      read = fromJson(text, newId);
    } catch (error) {
      return toast(t("importFailed", { message: error.message }));
    }
    let n = 0;
    for (const conversation of read) n += (await this.save(conversation)) ? 1 : 0;
    if (n === read.length) toast(t("imported", { n }));
  }
}
