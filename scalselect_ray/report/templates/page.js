"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const remembered = (value) => {  // a page from a file may have no storage
    try { return value === undefined ? localStorage.getItem("scalselect-theme") : localStorage.setItem("scalselect-theme", value); } catch { return null; }
  };
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
    button.setAttribute("aria-label", "Theme: " + (theme === "auto" ? "as the system" : theme));
  };
  const themes = ["auto", "light", "dark"];
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % 3];
    remembered(theme);
    show(theme);
  });

  const attention = document.getElementById("attention");
  attention?.addEventListener("change", () => root.classList.toggle("no-attention", !attention.checked));

  const tip = document.getElementById("tip");
  document.addEventListener("pointermove", (event) => {
    const text = event.target.dataset?.tip;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(8, event.clientY - box.height - 12) + "px";
  });

  const table = document.getElementById("rows");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, [2, 3, 8].map((index) => row.cells[index].textContent).join("\n").toLowerCase()]));
  const [find, stratum, source, chosen, count] = ["find", "stratum", "source", "chosen", "count"].map((id) => document.getElementById(id));
  const filter = () => {
    const wanted = find.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const { stratum: position, source: from, chosen: is } = row.dataset;
      const fits = texts.get(row).includes(wanted) && (!stratum.value || position === stratum.value) &&
        (!source.value || from === source.value) && (!chosen.value || is === chosen.value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown.toLocaleString("en") + " shown";
  };
  for (const field of [find, stratum, source, chosen]) field.addEventListener("input", filter);
  find.form.addEventListener("submit", (event) => event.preventDefault());

  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, index) => header.firstElementChild.addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending", numeric = header.classList.contains("n");
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => numeric ? row.cells[index].dataset.v : row.cells[index].textContent;
    const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is unknown stands last both ways
      return descending ? compare(y, x) : compare(x, y);
    });
    table.tBodies[0].append(...rows);
  }));
})();
