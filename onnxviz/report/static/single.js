// A report in one file: shows the pages and pictures that it carries behind its first page.
// A page is named by the hash: #layers/conv1/c0007.html, an id in it by #layers/conv1/index.html:c7. So links are
// plain links, and the browser keeps the history. Without script the first page is a plain page.
"use strict";

(() => {
  const INDEX = "index.html";
  const KEPT = 8; // pages kept as the reader left them, sorted and filtered
  const MARGIN = "1200px"; // pictures are made this far off the screen
  const PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"; // of nothing

  const store = new Map(); // script elements by path, which hold pages (deflated) and pictures in base64
  const urls = new Map(); // of the pictures made so far
  const pages = new Map(); // shown before: title, nodes of the body, what had the focus
  const scrolled = new Map(); // of the entries of the history
  let shown = null; // the entry
  let asked = null; // likewise, while its page is being made
  let fresh = Date.now(); // names for entries; not those of a former load
  let current = INDEX;

  // Addresses are relative to a page, in a folder that is not there.
  const resolve = (address, page) => {
    const url = new URL(address, `file:///${page}`);
    return url.protocol === "file:" ? { path: url.pathname.slice(1), id: url.hash.slice(1) } : null;
  };
  const hashOf = (path, id) => (path === INDEX ? `#${id || INDEX}` : `#${path}${id ? `:${id}` : ""}`);
  const wanted = () => {
    let text = location.hash.slice(1);
    try {
      text = decodeURIComponent(text); // a mail program may have escaped it
    } catch {}
    const [path, id = ""] = text.split(":");
    if (path === INDEX || store.has(path)) return { path, id };
    return { path: INDEX, id: text };
  };

  const bytes = (path) => {
    const text = atob(store.get(path).textContent);
    const values = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) values[i] = text.charCodeAt(i);
    return values;
  };
  const inflate = (path) =>
    new Response(new Blob([bytes(path)]).stream().pipeThrough(new DecompressionStream("deflate")));
  const pictureUrl = (path) => {
    if (!urls.has(path)) {
      if (!store.has(path)) return PIXEL;
      urls.set(path, URL.createObjectURL(new Blob([bytes(path)], { type: store.get(path).type })));
      store.delete(path); // the text is not needed any more
    }
    return urls.get(path);
  };

  const reveal = (picture) => {
    const name = picture.localName === "img" ? "src" : "href";
    picture.setAttribute(name, pictureUrl(picture.dataset.picture));
    delete picture.dataset.picture;
  };
  const watcher = new IntersectionObserver(
    (seen) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        reveal(target);
      }
    },
    { rootMargin: MARGIN },
  );
  // Those to be loaded lazily are made when they come near the screen, others now.
  const fill = () => {
    for (const picture of document.querySelectorAll("[data-picture]")) {
      if (picture.getAttribute("loading") === "lazy") watcher.observe(picture);
      else reveal(picture);
    }
  };

  const save = async (path) => {
    const link = document.createElement("a");
    link.href = urls.has(path) || store.get(path)?.type.startsWith("image/")
      ? pictureUrl(path)
      : URL.createObjectURL(await inflate(path).blob());
    link.download = decodeURIComponent(path.split("/").pop());
    link.click();
  };
  // Links to pages lead to hashes, those to other files save them; pictures wait, with their paths noted.
  const localise = (root, page) => {
    for (const link of root.querySelectorAll("a[href]")) {
      const target = resolve(link.getAttribute("href"), page);
      if (target === null) continue;
      if (target.path.endsWith(".html")) {
        link.setAttribute("href", hashOf(target.path, target.id));
        continue;
      }
      link.setAttribute("href", hashOf(page, ""));
      link.addEventListener("click", (event) => {
        event.preventDefault();
        save(target.path);
      });
    }
    for (const picture of root.querySelectorAll("img[src], image[href]")) {
      const name = picture.localName === "img" ? "src" : "href";
      const address = picture.getAttribute(name);
      // The first page notes the path itself, or the browser would look for the file before this runs.
      const inline = address.startsWith("data:");
      if (inline && !address.includes("#")) continue;
      picture.dataset.picture = inline ? address.split("#")[1] : resolve(address, page).path;
      picture.setAttribute(name, PIXEL);
    }
  };

  const open = async (path) => {
    if (!pages.has(path)) {
      const page = new DOMParser().parseFromString(await inflate(path).text(), "text/html");
      localise(page, path); // before it is shown, or the browser would look for its pictures
      pages.set(path, { title: page.title, nodes: [...page.body.childNodes], focus: null, fresh: true });
    }
    const page = pages.get(path);
    pages.delete(path);
    pages.set(path, page); // the last shown is the last to go
    for (const other of pages.keys()) {
      if (pages.size <= KEPT) break;
      if (other !== INDEX && other !== current) pages.delete(other);
    }
    return page;
  };

  // Show what the hash names. `jump`: as if it were a new entry of the history.
  const turn = async (jump = false) => {
    const { path, id } = wanted();
    if (shown !== null) scrolled.set(shown, scrollY);
    const state = history.state;
    const known = !jump && state?.entry !== undefined;
    const entry = known ? state.entry : fresh++;
    if (!known) history.replaceState({ entry }, "");
    asked = entry;
    const page = await open(path);
    if (asked !== entry) return; // the reader went on
    const other = path !== current;
    if (other) {
      const left = pages.get(current);
      if (left) {
        left.focus = document.activeElement;
        left.nodes = [...document.body.childNodes];
      }
      document.body.replaceChildren(...page.nodes);
      document.title = page.title;
      current = path;
      if (page.fresh) enhance(document);
      page.fresh = false;
      fill();
    }
    shown = entry;
    document.documentElement.style.visibility = "";
    const target = id ? document.getElementById(id) : null;
    document.querySelector(".target")?.classList.remove("target");
    target?.classList.add("target"); // as :target, which knows only whole hashes
    if (known) {
      scrollTo({ top: scrolled.get(entry) ?? state.top ?? 0, behavior: "instant" });
      if (other) (page.focus?.isConnected ? page.focus : document.getElementById("main")).focus({ preventScroll: true });
      return;
    }
    if (target) {
      target.scrollIntoView({ behavior: other ? "instant" : "auto" });
      if (target.tabIndex < 0) target.tabIndex = -1;
    } else if (other) scrollTo({ top: 0, behavior: "instant" });
    if (target || other) (target ?? document.getElementById("main")).focus({ preventScroll: true });
  };

  localise(document, INDEX);
  pages.set(INDEX, { title: document.title, nodes: [], focus: null, fresh: false });

  // The store comes after this script.
  document.addEventListener("DOMContentLoaded", () => {
    for (const element of document.querySelectorAll("script[data-path]")) {
      store.set(element.dataset.path, element);
      element.remove();
    }
    fill();
    addEventListener("beforeprint", () => document.querySelectorAll("[data-picture]").forEach(reveal));
    if (!("DecompressionStream" in window)) {
      const note = document.querySelector("noscript");
      note.insertAdjacentHTML("afterend", note.textContent);
      document.documentElement.style.visibility = "";
      return;
    }
    history.scrollRestoration = "manual";
    if (location.hash || history.state) turn();
    else {
      shown = fresh++;
      history.replaceState({ entry: shown }, "");
    }
    addEventListener("hashchange", () => turn());
    // A link to what is shown already.
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href]");
      if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
      if (link.getAttribute("href") === location.hash) turn(true);
    });
    // For when the file is loaded again.
    let still;
    addEventListener("scroll", () => {
      clearTimeout(still);
      still = setTimeout(() => {
        if (history.state?.entry === shown) history.replaceState({ entry: shown, top: scrollY }, "");
      }, 200);
    });
  });
})();
