"use strict";
// The page is complete without this script: it makes tabs of the sections, moves the graph, and switches light and dark.

const root = document.documentElement;

function button(text, label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

// Tabs: one section at a time. Only the selected tab is in the order of Tab; arrows, Home and End move among tabs (ARIA APG).
function makeTabs(nav) {
  const tabs = [...nav.querySelectorAll("a")];
  const panels = tabs.map((tab) => document.querySelector(tab.getAttribute("href")));

  function select(chosen) {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === chosen));
      tab.tabIndex = i === chosen ? 0 : -1;
      panels[i].hidden = i !== chosen;
    });
    panels[chosen].dispatchEvent(new Event("shown"));
  }

  function selectAndKeep(chosen) {
    select(chosen);
    history.replaceState(null, "", tabs[chosen].getAttribute("href"));
  }

  nav.setAttribute("role", "tablist");
  tabs.forEach((tab, i) => {
    tab.id = `tab-${panels[i].id}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[i].id);
    panels[i].setAttribute("role", "tabpanel");
    panels[i].setAttribute("aria-labelledby", tab.id);
    panels[i].tabIndex = 0;
    tab.addEventListener("click", (event) => {
      event.preventDefault();
      selectAndKeep(i);
    });
  });
  nav.addEventListener("keydown", (event) => {
    const now = tabs.indexOf(document.activeElement);
    const last = tabs.length - 1;
    const next = {
      ArrowRight: now === last ? 0 : now + 1,
      ArrowLeft: now === 0 ? last : now - 1,
      Home: 0,
      End: last,
      " ": now,
    }[event.key];
    if (now < 0 || next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    selectAndKeep(next);
    tabs[next].focus();
  });
  const named = () => Math.max(0, tabs.findIndex((tab) => tab.getAttribute("href") === location.hash));
  window.addEventListener("hashchange", () => select(named()));
  root.classList.add("tabbed");
  select(named());
}

// The graph lies in a pane that scrolls: moving scrolls it, zooming sets the picture's width.
function makeMovable(pane) {
  const svg = pane.querySelector("svg");
  const natural = { width: svg.viewBox.baseVal.width * 4 / 3, height: svg.viewBox.baseVal.height * 4 / 3 }; // pt to px
  const fitting = () => Math.min(1, (pane.clientWidth - 2) / natural.width);
  const [smallest, largest, step, far] = [0.02, 4, 1.25, 60];
  let scale = 1;

  function zoomTo(wanted, x = pane.clientWidth / 2, y = pane.clientHeight / 2) {
    const before = scale;
    const [left, top] = [pane.scrollLeft + x, pane.scrollTop + y];
    scale = Math.min(largest, Math.max(smallest, wanted));
    svg.style.width = `${natural.width * scale}px`;
    svg.style.height = `${natural.height * scale}px`;
    pane.scrollLeft = left * scale / before - x;
    pane.scrollTop = top * scale / before - y;
    pane.dataset.scale = scale.toFixed(3);
  }

  const whole = () => zoomTo(Math.min(fitting(), innerHeight * 0.75 / natural.height));
  pane.addEventListener("keydown", (event) => {
    const action = {
      "+": () => zoomTo(scale * step),
      "=": () => zoomTo(scale * step),
      "-": () => zoomTo(scale / step),
      0: whole,
      ArrowLeft: () => pane.scrollBy(-far, 0),
      ArrowRight: () => pane.scrollBy(far, 0),
      ArrowUp: () => pane.scrollBy(0, -far),
      ArrowDown: () => pane.scrollBy(0, far),
    }[event.key];
    if (action === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    action();
  });
  pane.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    zoomTo(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  pane.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return; // fingers scroll by themselves
    pane.setPointerCapture(event.pointerId);
    pane.classList.add("moving");
  });
  pane.addEventListener("pointermove", (event) => {
    if (pane.classList.contains("moving")) pane.scrollBy(-event.movementX, -event.movementY);
  });
  for (const end of ["pointerup", "pointercancel"]) pane.addEventListener(end, () => pane.classList.remove("moving"));

  const buttons = document.createElement("div");
  buttons.className = "zoom";
  buttons.append(
    button("+", "zoom in", () => zoomTo(scale * step)),
    button("−", "zoom out", () => zoomTo(scale / step)),
    button("All", "see all of the graph", whole),
  );
  pane.before(buttons);
  root.classList.add("movable");

  // The first view shows all of the graph's width if that can still be read, else the graph from its first block on.
  const first = () => {
    if (pane.clientWidth === 0 || pane.dataset.scale) return;
    zoomTo(Math.max(fitting(), 0.8));
    const block = svg.querySelector(".cluster");
    if (block === null) return;
    const [inner, outer] = [block.getBoundingClientRect(), pane.getBoundingClientRect()];
    const margin = (extent, room) => Math.max(16, (room - extent) / 2);
    pane.scrollLeft += inner.left - outer.left - margin(inner.width, pane.clientWidth);
    pane.scrollTop += inner.top - outer.top - margin(inner.height, pane.clientHeight);
  };
  pane.closest("section").addEventListener("shown", first);
  first();
}

function makeSwitch(header) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.scheme ?? (dark.matches ? "dark" : "light")) === "dark";
  const made = button("", "", () => {
    root.dataset.scheme = isDark() ? "light" : "dark";
    name();
  });
  const name = () => {
    made.textContent = isDark() ? "Light" : "Dark";
    made.setAttribute("aria-label", `switch to ${isDark() ? "light" : "dark"} colours`);
  };
  dark.addEventListener("change", name);
  name();
  header.append(made);
}

makeSwitch(document.querySelector("header"));
document.querySelectorAll(".picture").forEach(makeMovable);
makeTabs(document.querySelector("nav"));
