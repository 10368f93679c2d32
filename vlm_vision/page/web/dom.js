// Elements: made in code, so that captions and file names are always text, never markup.

/** An element with attributes, listeners (on...) and children; strings become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) made.style.setProperty(key, part);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A row of buttons of which one is chosen; `choose` gets its number. */
export function choices(label, names, chosen, choose) {
  const buttons = names.map((name, i) =>
    el("button", { type: "button", class: "choice", "aria-pressed": String(i === chosen), onclick: () => choose(i) }, String(name)),
  );
  return el("div", { class: "choices", role: "group", "aria-label": label }, el("span", { class: "label" }, label), ...buttons);
}

/** A labeled slider from 0 to `most`. */
export function slider(label, most, value, move) {
  const shown = el("output", {}, String(value));
  const input = el("input", {
    type: "range", min: 0, max: most, value, "aria-label": label,
    oninput: (event) => {
      shown.textContent = event.target.value;
      move(Number(event.target.value));
    },
  });
  return el("label", { class: "slider" }, el("span", { class: "label" }, label), input, shown);
}

/** A sentence on what one sees, with a link to the paper. */
export function explain(text, paper, url) {
  const link = paper ? el("a", { href: url, rel: "noreferrer", target: "_blank" }, paper) : null;
  return el("p", { class: "explain" }, text, link ? " " : null, link);
}

/** Text that screen readers speak when it changes. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

const images = new Map();

/** Promise of a decoded image of a data URL. */
export function picture(url) {
  if (!images.has(url)) {
    images.set(url, new Promise((done, fail) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => fail(new Error("an image of this page cannot be decoded"));
      image.src = url;
    }));
  }
  return images.get(url);
}
