// Small changes to Sphinx's search, made before it begins.
document.addEventListener("DOMContentLoaded", () => {
  const query = new URLSearchParams(location.search).get("q") ?? "";
  const asked = splitQuery(query.toLowerCase());

  // A symbol's entry begins with its names: first if asked by name, last if only its words match.
  Scorer.score = ([, title, anchor, , score]) => {
    if (!anchor.startsWith("#symbol-")) return score;
    const names = splitQuery(title.toLowerCase().split(":")[0]);
    return asked.every((word) => names.includes(word)) ? 100 + 1 / names.length : 1;
  };

  const nothing = "Your search did not match any documents. Please make sure that all words are " +
    "spelled correctly and that you've selected enough categories.";
  Documentation.TRANSLATIONS[nothing] = `Nothing was found for “${query}”. Perhaps fewer words, ` +
    "or the beginning of one, find it. Functions and symbols are found too: try “fit_ols” or “σ”.";
});

// The next page marks what was searched: whole words, not each letter r of "R squared".
addEventListener("load", () => {
  const words = (localStorage.getItem("sphinx_highlight_terms") ?? "").split(" ");
  localStorage.setItem("sphinx_highlight_terms", words.filter((w) => w.length > 2).join(" "));
});
