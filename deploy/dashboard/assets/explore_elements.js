// Builds elements of the page. Texts from datasets become text nodes, never markup.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function labelOf(row) {
  return row.name || row.id;
}

/* A table of `rows`, each a list of cells; `columns` are titles and classes. Cells of the class "name" are headers. */
export function table(caption, columns, rows) {
  const titles = columns.map(([title, kind]) => element("th", { scope: "col", class: kind }, title));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((content, place) => {
    const kind = { class: columns[place][1] };
    return kind.class === "name" ? element("th", { scope: "row", ...kind }, content) : element("td", kind, content);
  })));
  const head = element("thead", {}, element("tr", {}, ...titles));
  const made = element("table", {}, element("caption", {}, caption), head, element("tbody", {}, ...body));
  return element("div", { class: "list card" }, made);
}

/* A number with a bar of the length `share`, from 0 to 1. */
export function bar(text, share) {
  const filled = element("span"), cell = document.createDocumentFragment();
  filled.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  cell.append(element("span", { class: "meter", "aria-hidden": "true" }, filled), text);
  return cell;
}

/* A line about what is wrong. */
export function problem(text) {
  const line = element("li", { class: "alert critical" }, element("strong", {}, "error"), element("span", {}, text));
  return element("ul", { class: "alerts" }, line);
}
