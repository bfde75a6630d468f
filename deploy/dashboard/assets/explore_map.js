// Draws the map of a run on a canvas: all items as dots, and one item with its numbered neighbors.

const FULL_SCALE = 10000, MARGIN = 28, MAX_ROUND_DOTS = 10000, REACH = 12, MIN_SIDE = 0.04;

export class ItemMap {
  /* Draw on `canvas`; show names in `tip`; call `onChoose` with the item that is clicked. */
  constructor(canvas, tip, onChoose) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.tip = tip;
    this.points = null;
    this.places = new Map();
    this.item = null;
    this.neighbors = [];
    this.near = true;
    new ResizeObserver(() => this.draw()).observe(canvas);
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.showTip(event));
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    canvas.addEventListener("click", (event) => {
      const place = this.nearest(event);
      if (place >= 0) onChoose({ id: this.points.ids[place], name: this.points.names[place] });
    });
  }

  setPoints(points) {
    this.points = points;
    this.places = new Map(points ? points.ids.map((id, place) => [id, place]) : []);
    this.draw();
  }

  /* Mark `item` and its `neighbors`, best first; return how many of these are on the map. */
  mark(item, neighbors) {
    this.item = item;
    this.neighbors = neighbors;
    this.draw();
    return neighbors.filter((each) => this.places.has(each.id)).length;
  }

  show(near) {
    this.near = near;
    this.draw();
  }

  /* The marked items that are on the map, the neighbors with their ranks. */
  marked() {
    const ranked = this.neighbors.map((each, place) => ({ ...each, rank: place + 1 }));
    const all = this.item ? [{ ...this.item, rank: 0 }, ...ranked] : ranked;
    return all.filter((each) => this.places.has(each.id)).map((each) => ({ ...each, place: this.places.get(each.id) }));
  }

  /* Choose the part of the map that is drawn: that of the marked items, or all of it. */
  fit(width, height, marked) {
    const { x, y } = this.points, seen = this.near && marked.length ? marked.map((each) => each.place) : null;
    const bounds = (values) => {
      let low = Infinity, high = -Infinity;
      for (const value of seen ? seen.map((place) => values[place]) : values) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
      return [low, high];
    };
    const [left, right] = bounds(x), [bottom, top] = bounds(y), least = seen ? MIN_SIDE * FULL_SCALE : 1;
    const wide = Math.max(right - left, least), high = Math.max(top - bottom, least);
    const scale = Math.min((width - 2 * MARGIN) / wide, (height - 2 * MARGIN) / high);
    this.screen = (place) => [
      width / 2 + (x[place] - (left + right) / 2) * scale,
      height / 2 - (y[place] - (bottom + top) / 2) * scale,
    ];
  }

  draw() {
    const { canvas, context } = this, ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!this.points || !width || !height) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(name).trim();
    const colors = { ink: color("--ink"), card: color("--card"), accent: color("--accent"), quiet: color("--quiet") };
    const marked = this.marked();
    this.fit(width, height, marked);
    this.drawDots(width, height, colors.quiet, marked.length > 0);
    this.drawMarks(width, marked, colors);
  }

  drawDots(width, height, plain, faint) {
    const { context, points } = this, byLabel = new Map();
    points.label.forEach((label, place) => {
      const [x, y] = this.screen(place);
      if (x < -4 || y < -4 || x > width + 4 || y > height + 4) return;
      if (!byLabel.has(label)) byLabel.set(label, []);
      byLabel.get(label).push([x, y]);
    });
    const seen = [...byLabel.values()].reduce((sum, list) => sum + list.length, 0);
    const radius = Math.max(0.8, Math.min(3.5, Math.sqrt(width * height / Math.max(seen, 1)) / 4.5));
    context.globalAlpha = faint ? 0.5 : 0.8;
    for (const [label, list] of [...byLabel].sort(([one], [other]) => one - other)) {
      context.fillStyle = label < 0 ? plain : points.labels[label].color;
      context.beginPath();
      for (const [x, y] of list) {
        if (seen > MAX_ROUND_DOTS) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
        else {
          context.moveTo(x + radius, y);
          context.arc(x, y, radius, 0, 2 * Math.PI);
        }
      }
      context.fill();
    }
    context.globalAlpha = 1;
  }

  /* Circles, with ranks if there is room for these, and names where there is room. */
  drawMarks(width, marked, colors) {
    const { context } = this, taken = [];
    context.textBaseline = "middle";
    for (const each of [...marked].reverse()) {
      const [x, y] = this.screen(each.place), radius = !each.rank ? 8 : this.near ? 9 : 4;
      taken.push([x - radius, y - radius, x + radius, y + radius]);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = each.rank ? colors.card : colors.accent;
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = each.rank ? colors.accent : colors.ink;
      context.stroke();
      if (each.rank && this.near) {
        context.font = "600 11px system-ui, sans-serif";
        context.textAlign = "center";
        context.fillStyle = colors.ink;
        context.fillText(String(each.rank), x, y + 0.5);
      }
    }
    for (const each of marked) this.drawName(each, width, taken, colors);
  }

  drawName(each, width, taken, colors) {
    const { context } = this, [x, y] = this.screen(each.place), name = each.name || each.id;
    context.font = `${each.rank ? 500 : 700} 13px system-ui, sans-serif`;
    const wide = context.measureText(name).width;
    const beside = [[x + 13, y - 8], [x - 13 - wide, y - 8], [x - wide / 2, y - 27], [x - wide / 2, y + 11]];
    const diagonal = [[x + 10, y - 21], [x + 10, y + 5], [x - 10 - wide, y - 21], [x - 10 - wide, y + 5]];
    const boxes = [...beside, ...diagonal].map(([left, top]) => [left, top, left + wide, top + 16]);
    const isFree = (box) => taken.every((other) => {
      return box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1];
    });
    const free = boxes.find((box) => box[0] > 2 && box[2] < width - 2 && isFree(box));
    if (!free) return;
    taken.push(free);
    context.textAlign = "left";
    context.lineJoin = "round";
    context.lineWidth = 4;
    context.strokeStyle = colors.card;
    context.strokeText(name, free[0], free[1] + 8);
    context.fillStyle = colors.ink;
    context.fillText(name, free[0], free[1] + 8);
  }

  /* The point below the pointer, or -1. */
  nearest(event) {
    let best = -1, least = REACH;
    if (!this.points || !this.screen) return best;
    this.points.ids.forEach((_, place) => {
      const [x, y] = this.screen(place), distance = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (distance < least) [best, least] = [place, distance];
    });
    return best;
  }

  showTip(event) {
    const place = this.nearest(event);
    this.tip.hidden = place < 0;
    this.canvas.style.cursor = place < 0 ? "default" : "pointer";
    if (place < 0) return;
    const label = this.points.label[place], named = label < 0 ? "" : ` (${this.points.labels[label].name})`;
    this.tip.textContent = `${this.points.names[place]}${named}`;
    const [x, y] = this.screen(place), right = x > this.canvas.clientWidth / 2;
    this.tip.style.left = right ? "auto" : `${x + 12}px`;
    this.tip.style.right = right ? `${this.canvas.clientWidth - x + 12}px` : "auto";
    this.tip.style.top = `${y + 10}px`;
  }
}
