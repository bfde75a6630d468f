// The Explore page. Its state is the query of its address: run, other (a second run), item, and customer.

import { ask, describeFailure } from "./explore_api.js";
import { makeCombobox } from "./explore_combobox.js";
import { bar, element, labelOf, preparingLine, problemList, table } from "./explore_elements.js";
import { ItemMap } from "./explore_map.js";

const KEYS = ["run", "other", "item", "customer"];
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const map = new ItemMap(at.map, at.tip, (item) => go({ item: item.id }));
const drawnMaps = new Map();
let state = {}, runs = [], request = new AbortController(), entities = { item: "item", query: "customer" };

function readAddress() {
  const query = new URLSearchParams(location.search);
  state = Object.fromEntries(KEYS.map((key) => [key, query.get(key) || ""]));
  state.run ||= runs[0] || "";
}

function addressWith(change) {
  const query = Object.entries({ ...state, ...change }).filter(([, value]) => value);
  return `${location.pathname}?${new URLSearchParams(query)}`;
}

/* Change the state, add it to the browser's history, and show it; then move the focus to `target`. */
async function go(change, target = null) {
  const address = addressWith(change);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  readAddress();
  await show();
  target?.focus();
}

/* Show the state. A later call replaces one that is not finished. */
async function show() {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  showControls();
  at.problems.replaceChildren();
  at.preparing.replaceChildren();
  at.results.setAttribute("aria-busy", "true");
  try {
    await showResults(signal);
  } catch (error) {
    if (signal.aborted) return;
    showFailure(error);
  }
  at.results.removeAttribute("aria-busy");
}

function showFailure(error) {
  at.problems.replaceChildren(...problemList([["error", describeFailure(error)]]));
}

function showControls() {
  const options = (names) => names.map((name) => element("option", { value: name }, name));
  at.run.replaceChildren(...options(runs));
  at.run.value = state.run;
  const others = runs.filter((run) => run !== state.run);
  at.other.replaceChildren(element("option", { value: "" }, "no other run"), ...options(others));
  at.other.value = others.includes(state.other) ? state.other : "";
  at.customer.value = state.customer;
  at.dashboard.href = runs.includes(state.run) ? `/?${new URLSearchParams({ run: state.run })}` : "/";
}

async function showResults(signal) {
  if (!runs.length) {
    at.problems.replaceChildren(...problemList([["no runs", "there are none yet: 'crossfade train' writes them"]]));
    return hideResults();
  }
  const compared = state.other && state.other !== state.run ? [state.run, state.other] : [state.run], problems = [];
  const [drawn, models] = await Promise.all([loadMap(state.run, signal), openModels(compared, signal)]);
  const open = compared.filter((run, place) => keepErrors(problems, run, models[place]));
  if (open.includes(state.run)) showEntities(models[0]);
  const { item, customer } = state;
  const lists = item ? await askAll(open, "neighbors", { item }, signal, problems) : [];
  const advice = customer ? await askAll(open, "recommendations", { customer }, signal, problems) : [];
  if (drawn.error && open.includes(state.run)) problems.push([state.run, drawn.error]);
  at.problems.replaceChildren(...problemList(problems));
  if (!open.length) return hideResults();
  showNeighbors(lists);
  showMap(drawn, lists);
  showRecommendations(advice);
  announce(lists, advice, problems);
}

function hideResults() {
  at.status.textContent = "";
  at.neighbors.hidden = true;
  at.recommendations.hidden = true;
}

async function loadMap(run, signal) {
  if (!drawnMaps.has(run)) drawnMaps.set(run, await ask("map", { run }, signal));
  const drawn = drawnMaps.get(run);
  if (!drawn.points) drawnMaps.delete(run); // it may be drawn until the next request
  return drawn;
}

/* Wait until the models of `compared` are open; show the progress meanwhile, and announce it once. */
async function openModels(compared, signal) {
  const lines = new Map();
  const models = await Promise.all(compared.map((run) => ask("model", { run }, signal, (progress) => {
    if (!lines.size) at.status.textContent = "Preparing the model";
    lines.set(run, preparingLine(run, progress));
    at.preparing.replaceChildren(...lines.values());
  })));
  at.preparing.replaceChildren();
  return models;
}

/* Return whether `answer` is one; keep its error otherwise. */
function keepErrors(problems, run, answer) {
  if (answer.error) problems.push([run, answer.error]);
  return !answer.error;
}

async function askAll(open, route, parameters, signal, problems) {
  const askOne = async (run) => ({ run, ...(await ask(route, { run, ...parameters }, signal)) });
  const answers = await Promise.all(open.map(askOne));
  return answers.filter((answer) => keepErrors(problems, answer.run, answer));
}

function showEntities(model) {
  entities = model;
  const example = model.examples[model.query];
  at["item-label"].textContent = capitalized(model.item);
  at["customer-label"].textContent = capitalized(model.query);
  at["customer-hint"].textContent = example ? `An ID, such as ${example.id}` : "An ID";
}

function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function itemLink(item) {
  const link = element("a", { href: addressWith({ item: item.id }) }, labelOf(item));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window
    event.preventDefault();
    go({ item: item.id }, at["neighbors-title"]);
  });
  return link;
}

/* Show a list for each of `answers`; with two, each row has its rank in the other. Return how many are in both. */
function showLists(place, answers, caption, more = []) {
  const ranks = answers.map((answer) => new Map(answer.rows.map((row, rank) => [row.id, rank + 1])));
  const best = Math.max(...answers.flatMap((answer) => answer.rows.map((row) => row.score)), 1e-9);
  const tables = answers.map((answer, number) => {
    const other = answers[1 - number];
    const columns = [["Rank", "rank"], [capitalized(entities.item), "name"], ["Score", "number"]];
    if (other) columns.push([`In ${other.run}`, "words"]);
    return table(caption(answer), columns, answer.rows.map((row, rank) => {
      const cells = [String(rank + 1), itemLink(row), bar(row.score.toFixed(3), row.score / best)];
      return other ? [...cells, rankCell(ranks[1 - number].get(row.id))] : cells;
    }));
  });
  place.replaceChildren(...tables, ...more);
  place.className = `lists of-${tables.length + more.length}`;
  return answers.length === 2 ? answers[0].rows.filter((row) => ranks[1].has(row.id)).length : 0;
}

function rankCell(rank) {
  if (!rank) return element("span", { class: "hint" }, "not listed");
  return element("span", { class: "badge both" }, `rank ${rank}`);
}

function showNeighbors(lists) {
  const [first] = lists, shared = showLists(at["neighbor-lists"], lists, (list) => `${list.run}: by cosine`);
  at.neighbors.hidden = false;
  at["neighbors-title"].textContent = first ? `Neighbors of ${labelOf(first.item)}` : `Items of ${state.run}`;
  const id = first?.item.name ? `ID ${first.item.id}` : "";
  const start = `Search ${entities.item}s above to see their neighbors.`;
  at["neighbors-hint"].textContent = sharedText(lists, shared) || (first ? id : start);
  at["neighbor-lists"].hidden = !first;
  at.neighbors.dataset.lists = lists.length;
  if (!("typed" in at.item.dataset)) at.item.value = first ? labelOf(first.item) : state.item;
  document.title = `${first ? `${labelOf(first.item)}, ` : ""}${state.run || "Explore"}: Crossfade`;
}

function sharedText(lists, shared) {
  return lists.length === 2 ? `${shared} of ${lists[0].rows.length} are in both lists.` : "";
}

function showMap(drawn, lists) {
  const points = drawn.points || null, list = lists.find((each) => each.run === state.run);
  at.stage.hidden = at.legend.hidden = !points;
  map.setPoints(points);
  const near = list ? map.mark(list.item, list.rows) : map.mark(null, []);
  const marked = points && map.marked().length > 0;
  at["map-views"].hidden = !marked;
  if (drawn.error) at["map-hint"].textContent = "The map cannot be shown.";
  else if (!points) {
    at["map-hint"].replaceChildren("This run has no map. Draw one with ", element("code", {}, drawn.command));
  }
  if (!points) return;
  const all = `The ${points.ids.length.toLocaleString("en-US")} most frequent of ${entities.item}`;
  const found = list ? `; ${near} of ${list.rows.length} neighbors are among them` : "";
  at["map-hint"].textContent = `${all}${found}.`;
  at.map.setAttribute("aria-label", `Map. ${all}${found}${list ? ", with their ranks in the table" : ""}.`);
  const named = points.labels.length ? [...points.labels, { name: "others", color: "var(--quiet)" }] : [];
  at.legend.replaceChildren(...named.map(({ name, color }) => {
    const dot = element("span", { class: "dot" });
    dot.style.background = color;
    return element("li", {}, dot, name);
  }));
}

function showPart(near) {
  at["map-near"].setAttribute("aria-pressed", String(near));
  at["map-whole"].setAttribute("aria-pressed", String(!near));
  map.show(near);
}

function showRecommendations(answers) {
  const [first] = answers;
  at.recommendations.hidden = !first;
  if (!first) return;
  const { history } = first, most = Math.max(...history.map((row) => row.weight), 1e-9);
  const weight = (row) => row.weight.toLocaleString("en-US", { maximumFractionDigits: 3 });
  const rows = history.map((row, rank) => [String(rank + 1), itemLink(row), bar(weight(row), row.weight / most)]);
  const caption = `History: the ${history.length} largest weights of ${first.history_items.toLocaleString("en-US")}`;
  const past = table(caption, [["Rank", "rank"], [capitalized(entities.item), "name"], ["Weight", "number"]], rows);
  const shared = showLists(at["recommendation-lists"], answers, (answer) => `${answer.run}: recommended`, [past]);
  at["recommendations-title"].textContent = `Recommendations for ${entities.query} ${labelOf(first.query)}`;
  at["recommendations-hint"].textContent = sharedText(answers, shared) || "Items in the history are left out.";
}

/* Say what has changed on the page, for screen readers. */
function announce(lists, advice, problems) {
  const neighbors = lists.map((list) => `${list.rows.length} neighbors of ${labelOf(list.item)} in ${list.run}`);
  const advised = advice.map((list) => `${list.rows.length} recommendations for ${labelOf(list.query)} by ${list.run}`);
  const counts = lists.length === 2 ? [at["neighbors-hint"].textContent] : [];
  at.status.textContent = problems.length ? "" : [...neighbors, ...counts, ...advised].join(". ");
}

async function start() {
  const answer = await ask("runs", {}, request.signal);
  runs = answer.runs;
  at.source.textContent = answer.source;
  readAddress();
  history.replaceState(null, "", addressWith({}));
  at.run.addEventListener("change", () => {
    go({ run: at.run.value, other: state.other === at.run.value ? "" : state.other });
  });
  at.other.addEventListener("change", () => go({ other: at.other.value }));
  at["customer-form"].addEventListener("submit", (event) => {
    event.preventDefault();
    go({ customer: at.customer.value.trim() });
  });
  at["map-near"].addEventListener("click", () => showPart(true));
  at["map-whole"].addEventListener("click", () => showPart(false));
  makeCombobox(at.item, at.suggestions, at["item-hint"], () => state.run, (item) => go({ item: item.id }));
  addEventListener("popstate", () => {
    readAddress();
    show();
  });
  showPart(true);
  await show();
}

start().catch(showFailure);
