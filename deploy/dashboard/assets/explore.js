// The Explore page. Its state is the query of its address: run, item, and customer.

import { ask, describeFailure } from "./explore_api.js";
import { makeCombobox } from "./explore_combobox.js";
import { bar, element, labelOf, problem, table } from "./explore_elements.js";

const KEYS = ["run", "item", "customer"];
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
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
  at.problems.replaceChildren(problem(describeFailure(error)));
}

function showControls() {
  at.run.replaceChildren(...runs.map((name) => element("option", { value: name }, name)));
  at.run.value = state.run;
  at.customer.value = state.customer;
  at.dashboard.href = runs.includes(state.run) ? `/?${new URLSearchParams({ run: state.run })}` : "/";
}

async function showResults(signal) {
  const { run, item, customer } = state;
  at.status.textContent = "";
  if (!runs.length) at.problems.replaceChildren(problem("there are no runs yet: 'crossfade train' writes them"));
  const model = runs.length ? await openModel(run, signal) : null;
  if (!model) return at.neighbors.hidden = at.recommendations.hidden = true;
  const list = item ? await askModel("neighbors", { run, item }, signal) : null;
  const advice = customer ? await askModel("recommendations", { run, customer }, signal) : null;
  showNeighbors(list);
  showRecommendations(advice);
  announce(list, advice);
}

/* Wait until the model of `run` is open, and return its description; null if it cannot be opened. */
async function openModel(run, signal) {
  const model = await askModel("model", { run }, signal, () => {
    if (at.preparing.hasChildNodes()) return;
    at.status.textContent = "Preparing the model";
    const line = `Preparing the model of ${run}: large models take minutes`;
    at.preparing.replaceChildren(element("p", {}, element("progress", { "aria-label": "preparing" }), line));
  });
  at.preparing.replaceChildren();
  if (!model) return null;
  entities = model;
  const example = model.examples[model.query];
  at["item-label"].textContent = capitalized(model.item);
  at["customer-label"].textContent = capitalized(model.query);
  at["customer-hint"].textContent = example ? `An ID, such as ${example.id}` : "An ID";
  return model;
}

/* Return the answer of `route`; show an error, and return null. */
async function askModel(route, parameters, signal, onPreparing) {
  const answer = await ask(route, parameters, signal, onPreparing);
  if (!answer.error) return answer;
  at.problems.append(problem(answer.error));
  return null;
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

/* A table of items in the order of `rows`, with the number of each, `key`, as text and as a bar. */
function itemTable(caption, rows, title, key, format) {
  const most = Math.max(...rows.map((row) => row[key]), 1e-9);
  const columns = [["Rank", "rank"], [capitalized(entities.item), "name"], [title, "number"]];
  const cells = (row, rank) => [String(rank + 1), itemLink(row), bar(format(row[key]), row[key] / most)];
  return table(caption, columns, rows.map(cells));
}

function scoreTable(caption, rows) {
  return itemTable(caption, rows, "Score", "score", (score) => score.toFixed(3));
}

function showNeighbors(list) {
  at.neighbors.hidden = false;
  at["neighbors-title"].textContent = list ? `Neighbors of ${labelOf(list.item)}` : `Items of ${state.run}`;
  const start = `Search ${entities.item}s above to see their neighbors.`;
  at["neighbors-hint"].textContent = list ? `ID ${list.item.id}` : start;
  at["neighbor-lists"].replaceChildren(...(list ? [scoreTable("Nearest by cosine", list.rows)] : []));
  if (!("typed" in at.item.dataset)) at.item.value = list ? labelOf(list.item) : state.item;
  document.title = `${list ? `${labelOf(list.item)}, ` : ""}${state.run || "Explore"}: Crossfade`;
}

function showRecommendations(advice) {
  at.recommendations.hidden = !advice;
  if (!advice) return;
  const weight = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 3 });
  const caption = `History: the ${advice.history.length} largest weights of ${advice.history_items.toLocaleString("en-US")}`;
  const past = itemTable(caption, advice.history, "Weight", "weight", weight);
  at["recommendation-lists"].replaceChildren(scoreTable("Recommended", advice.rows), past);
  at["recommendations-title"].textContent = `Recommendations for ${entities.query} ${labelOf(advice.query)}`;
  at["recommendations-hint"].textContent = "Items in the history are left out.";
}

/* Say what has changed on the page, for screen readers. */
function announce(list, advice) {
  const neighbors = list ? [`${list.rows.length} neighbors of ${labelOf(list.item)}`] : [];
  const advised = advice ? [`${advice.rows.length} recommendations for ${labelOf(advice.query)}`] : [];
  at.status.textContent = [...neighbors, ...advised].join(". ");
}

async function start() {
  const answer = await ask("runs", {}, request.signal);
  if (answer.error) return at.problems.replaceChildren(problem(answer.error));
  runs = answer.runs;
  at.source.textContent = answer.source;
  readAddress();
  history.replaceState(null, "", addressWith({}));
  at.run.addEventListener("change", () => go({ run: at.run.value }));
  at["customer-form"].addEventListener("submit", (event) => {
    event.preventDefault();
    go({ customer: at.customer.value.trim() });
  });
  makeCombobox(at.item, at.suggestions, at["item-hint"], () => state.run, (item) => go({ item: item.id }));
  addEventListener("popstate", () => {
    readAddress();
    show();
  });
  await show();
}

start().catch(showFailure);
