// Progressive enhancement only: without it all pages are plain pages.
"use strict";

const NEAR_DEAD = 0.01; // as in the table of layers

(() => {
  const keys = document.querySelector(".keys");
  const filter = document.getElementById("filter");
  const follow = (rel) => document.querySelector(`a[rel="${rel}"]`)?.click();
  const help = document.getElementById("help");
  for (const button of document.querySelectorAll("[data-help]")) {
    button.hidden = false;
    button.addEventListener("click", () => help.showModal());
  }
  if (keys) keys.hidden = !document.querySelector('a[rel="up"]');

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help?.open) return;
    if (event.target.closest("input, select, textarea, .scroll, pre")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "ArrowLeft") follow("prev");
    else if (event.key === "ArrowRight") follow("next");
    else if (event.key === "u") follow("up");
    else if (event.key === "?" && help) help.showModal();
    else if (event.key === "/" && filter) {
      event.preventDefault();
      filter.focus();
    }
  });

  const wall = document.getElementById("wall");
  if (!wall) return;

  const tools = document.getElementById("tools");
  const sort = document.getElementById("sort");
  const size = document.getElementById("size");
  const state = document.getElementById("state");
  const dead = document.getElementById("dead-channels");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const cards = Array.from(wall.children, (item) => ({
    item,
    text: `${item.dataset.index} ${item.querySelector("bdi")?.textContent ?? ""} ${item.dataset.text}`.toLowerCase(),
    index: Number(item.dataset.index),
    max: Number(item.dataset.max),
    mean: Number(item.dataset.mean),
    act: Number(item.dataset.act),
    sel: Number(item.dataset.sel),
  }));
  const all = count.textContent;

  const arrange = () => {
    const by = sort.value;
    // A value that is no number sorts last.
    const value = (card) => (Number.isNaN(card[by]) ? -Infinity : card[by]);
    cards.sort((a, b) => (by === "index" ? 0 : value(b) - value(a) || 0) || a.index - b.index);
    wall.append(...cards.map((card) => card.item));
  };
  const select = () => {
    const which = state.value;
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      // A number means that channel, not every channel with the digit in it.
      const match =
        which !== "dead" &&
        (which !== "near" || card.act < NEAR_DEAD) &&
        words.every((word) => (/^\d+$/.test(word) ? card.index === Number(word) : card.text.includes(word)));
      if (card.item.hidden === match) card.item.hidden = !match; // each write costs, changed or not
      shown += match ? 1 : 0;
    }
    count.textContent = shown === cards.length ? all : `${shown.toLocaleString("en")} of ${all}`;
    if (dead) dead.hidden = which === "alive" || which === "near";
    none.hidden = shown > 0 || cards.length === 0 || (which === "dead" && dead !== null);
  };
  // What is set stands in the address, so that it can be shared and the back button finds it again.
  const FIELDS = { sort, show: state, filter };
  const restore = () => {
    const query = new URLSearchParams(location.search);
    for (const [name, field] of Object.entries(FIELDS)) {
      field.value = query.get(name) ?? "";
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
  };
  const remember = () => {
    const query = new URLSearchParams();
    for (const [name, field] of Object.entries(FIELDS)) {
      if (field.value !== "" && field.selectedIndex !== 0) query.set(name, field.value);
    }
    const search = query.toString();
    try {
      history.replaceState(null, "", `${location.pathname}${search && "?"}${search}${location.hash}`);
    } catch {
      // Some browsers refuse it for files, or when it comes too often: the page works without.
    }
  };
  const resize = () => wall.style.setProperty("--size", `${size.value}px`);

  tools.hidden = cards.length === 0 && dead === null;
  tools.addEventListener("submit", (event) => event.preventDefault());
  sort.addEventListener("change", () => (arrange(), remember()));
  filter.addEventListener("input", () => (select(), remember()));
  state.addEventListener("change", () => (select(), remember()));
  size.addEventListener("input", resize);
  const show = () => {
    restore();
    if (sort.value !== "index") arrange();
    if (filter.value || state.value !== "all") select();
    resize();
  };
  show(); // before the browser scrolls to where the reader was
  addEventListener("pageshow", show); // after it has put back what it thinks was in the fields
})();
