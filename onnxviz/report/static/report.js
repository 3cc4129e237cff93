// Progressive enhancement only: without it all pages are plain pages.
"use strict";

const NEAR_DEAD = 0.01; // as in the table of layers
const ONE_FILE = document.querySelector('meta[name="generator"]').content.includes("single file");

// Diagrams below `root` become larger and smaller: buttons, keys, Ctrl with the wheel, pinching; dragging pans.
function zoomable(root) {
  const [SMALLEST, LARGEST, STEP] = [0.2, 8, 1.25];
  const SLACK = 4; // a mouse that moves less still clicks
  const LOW = 0.4; // of the window
  for (const pane of root.querySelectorAll(".zoom")) {
    const box = pane.querySelector(".scroll");
    const net = pane.querySelector(".net");
    const tools = pane.querySelector(".zoom-tools");
    const shown = tools.querySelector("output");
    let zoom = 1;

    // What lies at (x, y) in the window stays there.
    const set = (to, x, y) => {
      const before = net.getBoundingClientRect();
      const share = [(x - before.left) / before.width, (y - before.top) / before.height];
      zoom = Math.min(LARGEST, Math.max(SMALLEST, to));
      net.removeAttribute("data-zoomed");
      net.style.removeProperty("width");
      box.style.removeProperty("height");
      if (Math.abs(zoom - 1) < 0.01) zoom = 1;
      else {
        // The box keeps its height, so that what follows stays; a low one grows with what is in it.
        if (box.offsetHeight > LOW * innerHeight) box.style.height = `${box.offsetHeight}px`;
        const width = net.getBoundingClientRect().width * zoom;
        net.dataset.zoomed = "";
        net.style.width = `${width}px`;
      }
      shown.value = `${Math.round(100 * zoom)} %`;
      const after = net.getBoundingClientRect();
      box.scrollLeft += after.left + share[0] * after.width - x;
      box.scrollTop += after.top + share[1] * after.height - y;
    };
    const step = (how) => {
      const middle = box.getBoundingClientRect();
      const to = { in: zoom * STEP, out: zoom / STEP, reset: 1 }[how];
      set(to, middle.left + box.clientWidth / 2, middle.top + box.clientHeight / 2);
    };

    tools.hidden = false;
    box.classList.add("zoomable");
    tools.addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom]");
      if (button) step(button.dataset.zoom);
    });
    pane.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const how = { "+": "in", "=": "in", "-": "out", 0: "reset" }[event.key];
      if (!how) return;
      event.preventDefault();
      step(how);
    });
    // A pinch on a touchpad comes as a wheel with Ctrl too.
    box.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1;
        const turn = Math.max(-100, Math.min(100, event.deltaY * lines));
        set(zoom * Math.exp(-turn / 400), event.clientX, event.clientY);
      },
      { passive: false },
    );

    // Touch pans by itself; a mouse drags. A drag over a link does not follow it.
    let held = null;
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch" || event.target === box) return;
      held = { id: event.pointerId, x: event.clientX, y: event.clientY, left: box.scrollLeft, top: box.scrollTop };
    });
    box.addEventListener("pointermove", (event) => {
      if (held?.id !== event.pointerId) return;
      const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
      if (!held.moved && Math.hypot(dx, dy) < SLACK) return;
      if (!held.moved) box.setPointerCapture(event.pointerId);
      held.moved = true;
      box.classList.add("held");
      box.scrollLeft = held.left - dx;
      box.scrollTop = held.top - dy;
    });
    const drop = () => {
      box.classList.remove("held");
      // The click comes right after; a later one is another's.
      if (held?.moved) setTimeout(() => (held = null));
      else held = null;
    };
    box.addEventListener("pointerup", drop);
    box.addEventListener("pointercancel", drop);
    box.addEventListener(
      "click",
      (event) => {
        if (!held?.moved) return;
        event.preventDefault();
        event.stopPropagation();
      },
      true,
    );
    box.addEventListener("dragstart", (event) => event.preventDefault());

    let pinch = null;
    const fingers = ({ touches: [a, b] }) => ({
      apart: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
      x: (a.clientX + b.clientX) / 2,
      y: (a.clientY + b.clientY) / 2,
    });
    box.addEventListener("touchstart", (event) => {
      pinch = event.touches.length === 2 ? { zoom, apart: fingers(event).apart } : null;
    });
    box.addEventListener(
      "touchmove",
      (event) => {
        if (!pinch || event.touches.length !== 2) return;
        event.preventDefault();
        const now = fingers(event);
        set((pinch.zoom * now.apart) / pinch.apart, now.x, now.y);
      },
      { passive: false },
    );
  }
}

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
  zoomable(root);
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
    if (ONE_FILE) return; // its address names a page; the fields of each stay as they are
    const query = new URLSearchParams(location.search);
    for (const [name, field] of Object.entries(FIELDS)) {
      field.value = query.get(name) ?? "";
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
  };
  const remember = () => {
    if (ONE_FILE) return;
    const query = new URLSearchParams();
    for (const [name, field] of Object.entries(FIELDS)) {
      if (field.value !== "" && field.selectedIndex !== 0) query.set(name, field.value);
    }
    const search = query.toString();
    try {
      history.replaceState(history.state, "", `${location.pathname}${search && "?"}${search}${location.hash}`);
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
};

enhance(document);
