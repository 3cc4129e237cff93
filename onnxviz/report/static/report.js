// Progressive enhancement only: without it all pages are plain pages.
"use strict";

const NEAR_DEAD = 0.01; // as in the table of layers

// Keys act on the page that is shown when they are pressed.
document.addEventListener("keydown", (event) => {
  const help = document.getElementById("help");
  const filter = document.getElementById("filter");
  const follow = (rel) => document.querySelector(`a[rel="${rel}"]`)?.click();
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

// What a page gains by script. Called once a page: in a report of one file, whenever another is shown first.
const enhance = (root) => {
  const keys = root.querySelector(".keys");
  const help = root.querySelector("#help");
  for (const button of root.querySelectorAll("[data-help]")) {
    button.hidden = false;
    button.addEventListener("click", () => help.showModal());
  }
  if (keys) keys.hidden = !root.querySelector('a[rel="up"]');
  arrangeable(root);
};

// A layer's channels can be sorted, filtered and resized.
const arrangeable = (root) => {
  const wall = root.querySelector("#wall");
  if (!wall) return;

  const tools = root.querySelector("#tools");
  const filter = root.querySelector("#filter");
  const sort = root.querySelector("#sort");
  const size = root.querySelector("#size");
  const state = root.querySelector("#state");
  const dead = root.querySelector("#dead-channels");
  const count = root.querySelector("#count");
  const none = root.querySelector("#none");
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
      card.item.hidden = !match;
      shown += match ? 1 : 0;
    }
    count.textContent = shown === cards.length ? all : `${shown.toLocaleString("en")} of ${all}`;
    if (dead) dead.hidden = which === "alive" || which === "near";
    none.hidden = shown > 0 || cards.length === 0 || (which === "dead" && dead !== null);
  };
  const resize = () => wall.style.setProperty("--size", `${size.value}px`);

  tools.hidden = cards.length === 0 && dead === null;
  tools.addEventListener("submit", (event) => event.preventDefault());
  sort.addEventListener("change", arrange);
  filter.addEventListener("input", select);
  state.addEventListener("change", select);
  size.addEventListener("input", resize);
  // The browser keeps what was set when the reader comes back from a channel.
  addEventListener("pageshow", () => {
    if (sort.value !== "index") arrange();
    if (filter.value || state.value !== "all") select();
    resize();
  });
};

enhance(document);
