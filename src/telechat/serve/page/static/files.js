// Files out of the page and into it. Knows nothing of what is in them.

/** Offer `text` to the user as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // The browser has taken hold of the data by then; at once would be too early for some.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Let the user choose a file; resolves to its text, or null when none was chosen. */
export function chooseFile(input) {
  return new Promise((resolve) => {
    input.value = ""; // the same file again is a choice too
    input.onchange = () => resolve(input.files[0]?.text() ?? null);
    input.oncancel = () => resolve(null);
    input.click();
  });
}
