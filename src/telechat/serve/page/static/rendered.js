// The one place where HTML is inserted. It comes from the page process, which passed it through its allow-list.

const policy = window.trustedTypes?.createPolicy("telechat", { createHTML: (html) => html });

/** Replace what `element` holds by rendered blocks. */
function setRendered(element, html) {
  element.innerHTML = policy ? policy.createHTML(html) : html;
}

export function renderedBlock(html) {
  const block = document.createElement("div");
  block.className = "block";
  setRendered(block, html);
  return block;
}

const MAX_BATCH_CHARS = 200_000;
const MAX_BATCH_TEXTS = 100;

/** Rendered blocks of stored texts, in order; null for one that the page process does not take. */
export async function renderTexts(texts) {
  const results = [];
  let batch = [];
  let numChars = 0;
  const flush = async () => {
    if (!batch.length) return;
    results.push(...(await renderBatch(batch)));
    batch = [];
    numChars = 0;
  };
  for (const text of texts) {
    if (batch.length >= MAX_BATCH_TEXTS || numChars + text.length > MAX_BATCH_CHARS) await flush();
    batch.push(text);
    numChars += text.length;
  }
  await flush();
  return results;
}

async function renderBatch(texts) {
  try {
    const response = await fetch("/render", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ texts }),
    });
    if (response.ok) return (await response.json()).blocks;
  } catch {
    // The page process is gone; the caller shows the texts as they are.
  }
  return texts.map(() => null);
}
