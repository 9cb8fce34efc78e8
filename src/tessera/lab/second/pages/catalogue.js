"use strict";
// The list is complete without this file; it adds search, filters, order, and the copy button.
(() => {
  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) { button.hidden = true; continue; }
    button.addEventListener("click", () => navigator.clipboard.writeText(button.dataset.copy).then(() => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1400);
    }));
  }

  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("list");
  const rows = Array.from(list.children);
  const tiles = new Map(Array.from(document.getElementById("mosaic").children, (t) => [t.dataset.n, t]));
  const fields = Array.from(form.elements).filter((f) => f.name);
  const clear = document.querySelectorAll("[data-clear]");
  const rank = { "": 0, n: (a, b) => a.dataset.n - b.dataset.n, name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
    "core-down": (a, b) => b.dataset.core - a.dataset.core || a.dataset.n - b.dataset.n };
  let order = "";

  const matches = (d, want, words) =>
    (!want.socket || d.socket.split(" ").includes(want.socket)) &&
    (!want.kind || d.kind === want.kind) &&
    (!want.status || d.status === want.status || (want.status === "built" && d.status !== "none")) &&
    (!want.verdict || d.verdicts.split(",").includes(want.verdict)) &&
    (!want.core || Number(d.core) >= Number(want.core)) &&
    words.every((w) => d.text.includes(w));

  const apply = () => {
    const want = Object.fromEntries(fields.map((f) => [f.name, f.value]));
    const words = want.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const hit = matches(row.dataset, want, words);
      row.hidden = !hit;
      shown += hit;
      tiles.get(row.dataset.n)?.classList.toggle("dim", !hit);
    }
    if (want.sort !== order) {
      order = want.sort;
      list.append(...(rank[order] ? rows.slice().sort(rank[order]) : rows));
    }
    document.getElementById("count").textContent = shown === rows.length ? `${shown} entries` : `${shown} of ${rows.length}`;
    document.getElementById("nothing").hidden = shown > 0;
    const used = fields.filter((f) => f.value);
    for (const f of fields) f.classList.toggle("used", Boolean(f.value));
    for (const b of clear) b.hidden = !used.length;
    const hash = new URLSearchParams(used.map((f) => [f.name, f.value])).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };

  const restore = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const f of fields) {
      f.value = kept.get(f.name) || "";
      if (f.value !== (kept.get(f.name) || "")) f.value = "";
    }
    apply();
  };

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const b of clear) b.addEventListener("click", () => { for (const f of fields) f.value = ""; apply(); form.elements.q.focus(); });
  window.addEventListener("hashchange", restore);
  window.addEventListener("pageshow", restore);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(?:INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      form.elements.q.focus();
    }
  });
})();
