// What the browser keeps: settings and the conversation in localStorage, the key for this tab only.
// Names hold the page's path, so that two servers behind one host name do not share them.

const name = (key) => `tandem:${location.pathname}:${key}`;

/** The value kept under `key`; null if there is none, or nothing can be kept. */
export function load(key, storage = "localStorage") {
  try {
    return JSON.parse(window[storage].getItem(name(key)));
  } catch {
    return null;
  }
}

/** Keeps `value`, or removes it if it is null. Returns whether that worked. */
export function save(key, value, storage = "localStorage") {
  return saveText(key, value === null ? null : JSON.stringify(value), storage);
}

/** As `save`, for JSON that is text already. */
export function saveText(key, text, storage = "localStorage") {
  try {
    if (text === null) window[storage].removeItem(name(key));
    else window[storage].setItem(name(key), text);
    return true;
  } catch {
    return false;
  }
}
