// Conversations in IndexedDB, one record each, never on a server. Knows nothing of the DOM.

const DATABASE = "telechat";
const TABLE = "conversations";

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Open the store; falls back to memory (`isKept: false`) where the browser allows no database. */
export async function openStore() {
  try {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
    return databaseStore(await settled(opening));
  } catch {
    return memoryStore();
  }
}

function databaseStore(database) {
  const table = (mode) => database.transaction(TABLE, mode).objectStore(TABLE);
  // A write counts once its transaction is complete: a full disk shows there, not at the request.
  const write = (act) =>
    new Promise((resolve, reject) => {
      const store = table("readwrite");
      store.transaction.oncomplete = () => resolve();
      store.transaction.onabort = () => reject(store.transaction.error ?? new Error("the write was aborted"));
      act(store);
    });
  return {
    isKept: true,
    all: () => settled(table("readonly").getAll()),
    get: (id) => settled(table("readonly").get(id)),
    put: (conversation) => write((store) => store.put(conversation)),
    remove: (id) => write((store) => store.delete(id)),
  };
}

function memoryStore() {
  const records = new Map();
  return {
    isKept: false,
    all: async () => [...records.values()].map((record) => structuredClone(record)),
    get: async (id) => structuredClone(records.get(id)),
    put: async (conversation) => void records.set(conversation.id, structuredClone(conversation)),
    remove: async (id) => void records.delete(id),
  };
}
