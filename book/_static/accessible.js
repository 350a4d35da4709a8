// What a keyboard and a screen reader need and cannot be known before the page is laid out.

document.addEventListener("DOMContentLoaded", () => {
  nameFolds();
  tellWhatIsOpen("primary");
  tellWhatIsOpen("secondary");
  leaveSearch();
});

// Mathematics and its fonts first: before it is typeset, its width is not known. Whatever changes
// the width of a box, a turned phone or an opened fold, changes the size of the page.
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  const boxes = document.querySelectorAll(Object.keys(WIDE).join());
  new ResizeObserver(() => boxes.forEach(reachIfWide)).observe(document.body);
});

// A box that scrolls sideways is a stop of the Tab key, so that arrow keys can scroll it. Only
// while something in it is hidden: a stop that does nothing is one too many.
const WIDE = {
  pre: "code",
  ".bd-article mjx-container": "formula",
  ".cell-figure.wide": "figure",
  ".pst-scrollable-table-container, .cell_output .text_html": "table",
};

function reachIfWide(box) {
  let isWide = box.scrollWidth > box.clientWidth;
  // A formula within a line scrolls only where it is longer than the line: browsers make stops of
  // boxes that may scroll for as little as a rounding error.
  if (box.parentElement.matches("span.math")) {
    isWide = box.firstElementChild.offsetWidth > box.parentElement.clientWidth + 1;
    box.classList.toggle("too-long", isWide);
  }
  if (isWide) {
    const [selector, kind] = Object.entries(WIDE).find(([selector]) => box.matches(selector));
    const number = [...document.querySelectorAll(selector)].indexOf(box) + 1;
    box.tabIndex = 0;
    box.setAttribute("role", box.localName === "div" ? "region" : "group");
    box.setAttribute("aria-label", `Wide ${kind} ${number}, scrolls sideways`);
  } else {
    ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
  }
}

// Each of a page's folds has the same name, "Toggle hidden content": give it its title's.
function nameFolds() {
  document.querySelectorAll("button.toggle-button").forEach((button) =>
    button.setAttribute("aria-label", button.closest(".admonition-title").textContent.trim()));
}

// The buttons of the sidebars say whether theirs can be seen. When the focus leaves a sidebar that
// lies over the page, the sidebar closes: what has the focus must not be covered.
function tellWhatIsOpen(side) {
  const sidebar = document.querySelector(`.bd-sidebar-${side}`);
  const button = document.querySelector(`.bd-header-article .${side}-toggle`);
  const box = document.getElementById(`pst-${side}-sidebar-checkbox`);
  if (!sidebar || !button) return;
  const isOver = () => getComputedStyle(sidebar).position === "fixed";
  // Beside the page a sidebar is shown until its hidden checkbox is set, over it only then.
  const tell = () => button.setAttribute("aria-expanded", box.checked === isOver());
  tell();
  ["click", "keyup", "resize"].forEach((change) =>
    window.addEventListener(change, () => setTimeout(tell), { capture: true }));
  sidebar.addEventListener("focusout", ({ relatedTarget: next }) => {
    if (next && !sidebar.contains(next) && isOver()) box.checked = false;
  });
}

// Leaving the search field by Escape or Tab leads back to where the reader was.
function leaveSearch() {
  const search = document.querySelector(".search-button__wrapper");
  let before;
  search.addEventListener("focusin", (event) => { before = event.relatedTarget; });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Tab") search.classList.remove("show");
    if (event.key === "Tab" || event.key === "Escape") before?.focus();
  });
}
