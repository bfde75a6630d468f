// A text field with a list of suggestions, by the pattern "editable combobox with list autocomplete" of ARIA 1.2.

import { ask, describeFailure } from "./explore_api.js";
import { element, labelOf } from "./explore_elements.js";

const TYPING_MILLISECONDS = 120;

/* Suggest items of the run that `currentRun` returns in `list`, below `input`; call `choose` with the chosen one. */
export function makeCombobox(input, list, hint, currentRun, choose) {
  let found = [], active = -1, request = new AbortController(), timer = 0;
  const usual = () => { hint.textContent = "First letters of words, or an ID"; };

  function close() {
    clearTimeout(timer);
    request.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function activate(place) {
    active = place;
    [...list.children].forEach((option, other) => option.setAttribute("aria-selected", String(other === place)));
    if (place < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", list.children[place].id);
    list.children[place].scrollIntoView({ block: "nearest" });
  }

  function take(item) {
    close();
    usual();
    delete input.dataset.typed;
    input.value = labelOf(item);
    choose(item);
  }

  function open() {
    list.replaceChildren(...found.map((item, place) => {
      const attributes = { id: `suggestion-${place}`, role: "option", "aria-selected": "false" };
      const option = element("li", attributes, labelOf(item));
      if (item.name && item.name !== item.id) option.append(element("span", { class: "id" }, item.id));
      option.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
      option.addEventListener("click", () => take(item));
      return option;
    }));
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
    activate(-1);
  }

  /* Find suggestions for the text; return whether there are any. */
  async function search() {
    close();
    const text = input.value.trim();
    if (!text) {
      usual();
      return false;
    }
    request = new AbortController();
    try {
      const preparing = () => { hint.textContent = "The model is being prepared"; };
      const answer = await ask("search", { run: currentRun(), text }, request.signal, preparing);
      found = answer.rows || [];
      hint.textContent = answer.error || (found.length ? `${found.length} found` : "None found");
      open();
      return found.length > 0;
    } catch (error) {
      hint.textContent = describeFailure(error) ?? hint.textContent;
      return false;
    }
  }

  async function enter() {
    if (active >= 0) return take(found[active]);
    if (await search()) take(found[0]);
  }

  async function move(step) {
    if (list.hidden && !(await search())) return;
    const count = found.length;
    activate(active < 0 ? (step > 0 ? 0 : count - 1) : (active + step + count) % count);
  }

  function escape() {
    if (list.hidden) input.value = "";
    delete input.dataset.typed;
    close();
    usual();
  }

  input.addEventListener("input", () => {
    input.dataset.typed = ""; // results of an earlier request do not replace the text
    close();
    timer = setTimeout(search, TYPING_MILLISECONDS);
  });
  input.addEventListener("keydown", (event) => {
    const act = { ArrowDown: () => move(1), ArrowUp: () => move(-1), Enter: enter, Escape: escape }[event.key];
    if (!act || event.isComposing) return;
    event.preventDefault();
    act();
  });
  input.addEventListener("blur", () => {
    delete input.dataset.typed;
    close();
    usual();
  });
  usual();
}
