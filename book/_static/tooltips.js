// Show the definition that a link is described by, while the mouse or the keyboard is on it.
let shown = null;
let leaving = 0;

const hide = () => {
  if (shown) shown.hidden = true;
  shown = null;
};

const show = (link, tip) => {
  clearTimeout(leaving);
  if (shown !== tip) hide();
  shown = tip;
  tip.hidden = false;
  const page = tip.offsetParent.getBoundingClientRect();
  const at = link.getClientRects()[0];
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const { bottom } = link.getBoundingClientRect(); // of the last line, where the link has two
  const below = bottom + tip.offsetHeight < innerHeight || at.top < tip.offsetHeight;
  const top = below ? bottom : at.top - tip.offsetHeight;
  tip.style.left = `${Math.max(left, 8) - page.left}px`;
  tip.style.top = `${top - page.top}px`;
};

// The way from the link to the definition takes a moment.
const leave = () => {
  clearTimeout(leaving);
  leaving = setTimeout(hide, 200);
};

for (const link of document.querySelectorAll("a[aria-describedby^='tip-']")) {
  const tip = document.getElementById(link.getAttribute("aria-describedby"));
  // A finger follows the link, and should not have to push a definition aside.
  link.addEventListener("pointerenter", (e) => e.pointerType !== "touch" && show(link, tip));
  link.addEventListener("pointerleave", leave);
  link.addEventListener("focus", () => link.matches(":focus-visible") && show(link, tip));
  link.addEventListener("blur", hide);
  tip.addEventListener("pointerenter", () => clearTimeout(leaving));
  tip.addEventListener("pointerleave", leave);
}
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
