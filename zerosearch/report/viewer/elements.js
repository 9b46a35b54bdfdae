"use strict";
// Texts of models and documents become text nodes, and nothing else.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function element(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

function drawn(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function counted(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function figure(value) {
  if (value === null || value === undefined) return "n/a";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size >= 10) return value.toFixed(1);
  return size >= 0.001 || size === 0 ? value.toFixed(3) : value.toExponential(1);
}

function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/* The text with what is looked for and the golden answers marked. */
function marked(text, find, golden = []) {
  const wanted = [find, ...golden].filter((each) => each && each.length > 1).map(escaped);
  if (!wanted.length) return [text];
  const parts = text.split(new RegExp(`(${wanted.join("|")})`, "gi"));
  return parts.map((part, place) => {
    if (place % 2 === 0) return part;
    const found = find && part.toLowerCase() === find.toLowerCase();
    return element("mark", { class: found ? "found" : "golden" }, part);
  });
}

function table(content, open) {
  const [header, ...rows] = content.rows;
  const cell = (value, place, tag) => {
    const properties = { scope: tag === "th" ? (place ? "col" : "row") : null };
    if (!Array.isArray(value)) return element(tag, properties, value);
    const [mean, error] = value;
    const share = Math.min(1, Math.max(0, Number(mean)));
    const bar = element("i", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${share * 100}%`;
    return element(tag, properties, element("b", {}, mean), element("span", { class: "error" }, ` ± ${error}`), bar);
  };
  const body = rows.map((row) =>
    element("tr", { class: row[0] === "after RL" ? "own" : null }, row.map((v, i) => cell(v, i, i ? "td" : "th"))));
  const head = element("tr", {}, header.map((v, i) => element("th", { scope: "col" }, i ? v : element("span", { class: "quiet" }, v))));
  const whole = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": content.title },
    element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
  return element("details", { class: "table", open }, element("summary", {}, content.title), whole);
}
