"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const FULL_SCALE = 65535, NO_LABEL = 255, MAX_LISTED = 12, CELLS = 512;

function decode(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new type(bytes.buffer);
}

const places = decode(data.places, Uint16Array);
const labels = decode(data.labels, Uint8Array);
const neighbors = data.neighborsEach ? decode(data.neighbors, Int32Array) : null;
const count = data.names.length;
const folded = data.names.map(fold);
const visible = new Uint8Array(256).fill(1);

const canvas = document.getElementById("map");
const context = canvas.getContext("2d");
const layer = document.getElementById("names");
const tip = document.getElementById("tip");
const query = document.getElementById("query");
const view = { scale: 1, x: 0, y: 0 };  // pixels per unit of the map, and where its corner is drawn
let chosen = -1, lit = [], pending = false;

function fold(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
}

/* Items by cell of a grid, for the one under the pointer: the items of cell c are order[starts[c]] to order[starts[c + 1]]. */
const starts = new Uint32Array(CELLS * CELLS + 1), order = new Uint32Array(count);

function cellOf(x, y) {
  const column = Math.min(CELLS - 1, Math.max(0, Math.floor(x / FULL_SCALE * CELLS)));
  const row = Math.min(CELLS - 1, Math.max(0, Math.floor(y / FULL_SCALE * CELLS)));
  return row * CELLS + column;
}

function buildGrid() {
  for (let item = 0; item < count; item++) starts[cellOf(places[2 * item], places[2 * item + 1]) + 1]++;
  for (let cell = 0; cell < CELLS * CELLS; cell++) starts[cell + 1] += starts[cell];
  const next = starts.slice();
  for (let item = 0; item < count; item++) order[next[cellOf(places[2 * item], places[2 * item + 1])]++] = item;
}

/* Up to `most` visible items within `radius` units of a place, nearest first. */
function nearest(x, y, radius, most, skipped = -1) {
  const found = [], step = FULL_SCALE / CELLS;
  for (let row = Math.floor((y - radius) / step); row <= (y + radius) / step; row++) {
    for (let column = Math.floor((x - radius) / step); column <= (x + radius) / step; column++) {
      if (row < 0 || column < 0 || row >= CELLS || column >= CELLS) continue;
      const cell = row * CELLS + column;
      for (let place = starts[cell]; place < starts[cell + 1]; place++) {
        const item = order[place], distance = Math.hypot(places[2 * item] - x, places[2 * item + 1] - y);
        if (distance <= radius && item !== skipped && visible[labels[item]]) found.push([distance, item]);
      }
    }
  }
  return found.sort((one, other) => one[0] - other[0]).slice(0, most).map((pair) => pair[1]);
}

function neighborsOf(item) {
  if (neighbors) return Array.from(neighbors.subarray(item * data.neighborsEach, (item + 1) * data.neighborsEach));
  const x = places[2 * item], y = places[2 * item + 1];
  for (let radius = FULL_SCALE / CELLS; ; radius *= 2) {
    const found = nearest(x, y, radius, 10, item);
    if (found.length === 10 || radius > 2 * FULL_SCALE) return found;
  }
}

function showAll() {
  view.scale = 0.94 * Math.min(canvas.width, canvas.height) / FULL_SCALE;
  view.x = (canvas.width - view.scale * FULL_SCALE) / 2;
  view.y = (canvas.height - view.scale * FULL_SCALE) / 2;
  requestDraw();
}

function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
  const whole = Math.min(canvas.width, canvas.height) / FULL_SCALE;
  const scale = Math.min(400 * whole, Math.max(0.5 * whole, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  requestDraw();
}

function requestDraw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    draw();
  });
}

function rgba(color) {
  const number = parseInt(color.slice(1), 16);
  return (255 << 24 | (number & 255) << 16 | (number >> 8 & 255) << 8 | number >> 16) >>> 0;
}

/* Points are written into the pixels of an image, which takes milliseconds for a million of them. */
function drawPoints(plain) {
  const width = canvas.width, height = canvas.height, image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer), colors = new Uint32Array(256).fill(rgba(plain));
  data.legend.forEach((entry, label) => { colors[label] = rgba(entry.color); });
  const shown = Math.min(1, (canvas.width / (view.scale * FULL_SCALE)) ** 2) * count;
  const ratio = window.devicePixelRatio || 1;
  const radius = Math.max(0, Math.min(4, Math.sqrt(width * height / Math.max(shown, 1)) / 6)) * ratio;
  const reach = Math.floor(radius), spans = [];
  for (let row = -reach; row <= reach; row++) spans.push(Math.floor(Math.sqrt(Math.max(0, (radius + 0.3) ** 2 - row * row))));
  for (let item = count - 1; item >= 0; item--) {
    const label = labels[item];
    if (!visible[label]) continue;
    const x = Math.round(view.x + places[2 * item] * view.scale);
    const y = Math.round(view.y + (FULL_SCALE - places[2 * item + 1]) * view.scale);
    if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
    const color = colors[label];
    for (let row = -reach; row <= reach; row++) {
      const middle = (y + row) * width + x, span = spans[row + reach];
      for (let pixel = middle - span; pixel <= middle + span; pixel++) pixels[pixel] = color;
    }
  }
  context.putImageData(image, 0, 0);
}

function screen(x, y) {
  return [view.x + x * view.scale, view.y + (FULL_SCALE - y) * view.scale];
}

function drawLit(text) {
  const ratio = window.devicePixelRatio || 1;
  context.lineWidth = 2 * ratio;
  context.strokeStyle = text;
  for (const item of chosen >= 0 ? [chosen, ...lit] : lit) {
    const [x, y] = screen(places[2 * item], places[2 * item + 1]);
    context.beginPath();
    context.arc(x, y, (item === chosen ? 9 : 6) * ratio, 0, 2 * Math.PI);
    context.stroke();
  }
}

const FONTS = { island: "700 18.4px system-ui, sans-serif", item: "500 13.6px system-ui, sans-serif" };
const HEIGHTS = { island: 26, item: 19 }, BESIDE = 7;
const widths = { island: new Map(), item: new Map() };

function widthOf(name, kind) {
  if (!widths[kind].has(name)) {
    context.font = FONTS[kind];
    widths[kind].set(name, context.measureText(name).width);
  }
  return widths[kind].get(name);
}

/* Where a name may be: that of an island on it, and that of an item beside its dot. */
function boxesFor(name, x, y, kind) {
  const wide = widthOf(name, kind), high = HEIGHTS[kind], ratio = window.devicePixelRatio || 1;
  const within = (low, size, end) => Math.max(0, Math.min(low, end / ratio - size));
  const corners = kind === "island"
    ? [[within(x - wide / 2, wide, canvas.width), within(y - high / 2, high, canvas.height)]]
    : [[x + BESIDE, y - high / 2], [x - BESIDE - wide, y - high / 2], [x - wide / 2, y - high - 3], [x - wide / 2, y + 3]];
  return corners.map(([left, top]) => [left, top, left + wide, top + high]);
}

function write(name, [left, top], kind, color) {
  const span = document.createElement("span");
  span.textContent = name;
  span.className = kind;
  span.style.left = `${left}px`;
  span.style.top = `${top}px`;
  if (color) span.style.color = color;
  layer.append(span);
}

/* Names of islands and, where there is room, of the most frequent items in view. */
function writeNames() {
  layer.replaceChildren();
  const taken = [], points = [], ratio = window.devicePixelRatio || 1;
  const isFree = (box) => box[0] >= 0 && box[1] >= 0 && box[2] <= canvas.width / ratio && box[3] <= canvas.height / ratio
    && taken.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
  const place = (name, place, kind, color, room) => {
    const [x, y] = screen(place[0], place[1]).map((value) => value / ratio);
    if (x < 0 || y < 0 || x * ratio > canvas.width || y * ratio > canvas.height) return false;
    if (points.some(([otherX, otherY]) => Math.abs(x - otherX) < room && Math.abs(y - otherY) < room / 4)) return false;
    const free = boxesFor(name, x, y, kind).find(isFree);
    if (!free) return false;
    taken.push(free);
    if (kind === "item") points.push([x, y]);
    write(name, free, kind, color);
    return true;
  };
  for (const item of chosen >= 0 ? [chosen, ...lit] : []) {
    place(data.names[item], [places[2 * item], places[2 * item + 1]], "item", null, 0);
  }
  for (const island of data.islands) {
    if (visible[island.label]) place(island.name, island.place, "island", data.legend[island.label].color, 0);
  }
  let left = 40;
  for (let item = 0; item < Math.min(count, 20000) && left > 0; item++) {
    if (visible[labels[item]] && place(data.names[item], [places[2 * item], places[2 * item + 1]], "item", null, 110)) left--;
  }
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  drawPoints(style.getPropertyValue("--plain").trim());
  drawLit(style.getPropertyValue("--text").trim());
  writeNames();
}

function resize() {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  showAll();
}

function position(event) {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
}

function under(event) {
  const ratio = window.devicePixelRatio || 1, [x, y] = position(event);
  const found = nearest((x - view.x) / view.scale, FULL_SCALE - (y - view.y) / view.scale, 10 * ratio / view.scale, 1);
  return found.length ? found[0] : -1;
}

function showTip(event) {
  const item = under(event);
  tip.hidden = item < 0;
  if (item < 0) return;
  const box = canvas.getBoundingClientRect(), label = labels[item];
  tip.textContent = label === NO_LABEL ? data.names[item] : `${data.names[item]} (${data.legend[label].name})`;
  tip.style.left = `${event.clientX - box.left + 14}px`;
  tip.style.top = `${event.clientY - box.top + 14}px`;
}

function choose(item, move) {
  chosen = item;
  lit = item >= 0 ? neighborsOf(item) : [];
  list(lit, item >= 0 ? `${data.names[item]} and its nearest:` : "");
  if (item >= 0 && move) showItems([item, ...lit]);
  requestDraw();
}

/* Center the view on items, as near as lets all of them be seen. */
function showItems(items) {
  const xs = items.map((item) => places[2 * item]), ys = items.map((item) => FULL_SCALE - places[2 * item + 1]);
  const left = Math.min(...xs), right = Math.max(...xs), top = Math.min(...ys), bottom = Math.max(...ys);
  const side = Math.max(right - left, bottom - top, FULL_SCALE / 20);
  view.scale = 0.75 * Math.min(canvas.width, canvas.height) / side;
  view.x = canvas.width / 2 - (left + right) / 2 * view.scale;
  view.y = canvas.height / 2 - (top + bottom) / 2 * view.scale;
}

function list(items, status) {
  document.getElementById("status").textContent = status;
  document.getElementById("found").replaceChildren(...items.slice(0, MAX_LISTED).map((item) => {
    const entry = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = data.names[item];
    button.addEventListener("click", () => {
      query.value = data.names[item];
      choose(item, true);
    });
    entry.append(button);
    return entry;
  }));
}

function search(submitted) {
  const wanted = fold(query.value.trim());
  if (!wanted) return choose(-1, false);
  const matches = [];
  for (const test of [(name) => name === wanted, (name) => name.startsWith(wanted), (name) => name.includes(wanted)]) {
    for (let item = 0; item < count && matches.length < MAX_LISTED; item++) {
      if (test(folded[item]) && !matches.includes(item)) matches.push(item);
    }
  }
  if (matches.length && (submitted || folded[matches[0]] === wanted)) return choose(matches[0], true);
  chosen = -1;
  lit = matches;
  list(matches, matches.length ? `${matches.length === MAX_LISTED ? "at least " : ""}${matches.length} found:` : "nothing found");
  requestDraw();
}

function buildLegend() {
  const legend = document.getElementById("legend"), others = labels.includes(NO_LABEL) ? 1 : 0;
  const entries = data.legend.map((entry, label) => [entry.name, entry.color, label]);
  if (others) entries.push([entries.length ? "others" : "all items", "var(--plain)", NO_LABEL]);
  legend.append(...entries.map(([name, color, label]) => {
    const button = document.createElement("button"), dot = document.createElement("span");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    dot.className = "dot";
    dot.style.background = color;
    button.append(dot, name);
    button.addEventListener("click", () => {
      visible[label] ^= 1;
      button.setAttribute("aria-pressed", String(visible[label] === 1));
      requestDraw();
    });
    return button;
  }));
}

let dragged = null, moved = false;
canvas.addEventListener("pointerdown", (event) => {
  dragged = position(event);
  moved = false;
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!dragged) return showTip(event);
  const [x, y] = position(event);
  moved = moved || Math.hypot(x - dragged[0], y - dragged[1]) > 3;
  view.x += x - dragged[0];
  view.y += y - dragged[1];
  dragged = [x, y];
  tip.hidden = true;
  requestDraw();
});
canvas.addEventListener("pointerup", (event) => {
  if (dragged && !moved) choose(under(event), false);
  dragged = null;
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...position(event));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const step = canvas.width / 10;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (moves[event.key]) {
    view.x += moves[event.key][0];
    view.y += moves[event.key][1];
    requestDraw();
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") showAll();
  else return;
  event.preventDefault();
});
query.addEventListener("input", () => search(false));
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search(true);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", requestDraw);
buildGrid();
buildLegend();
new ResizeObserver(resize).observe(document.getElementById("stage"));
