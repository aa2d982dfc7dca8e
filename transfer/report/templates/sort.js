// Click a column header to sort a table. Without this script, the rows stay in the order of the paper.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const whole = table.classList.contains("main"); // one tbody per row, so that its notes move with it
  const items = () => whole ? [...table.tBodies] : [...table.tBodies[0].rows];
  const key = (item, column) => {
    const cell = (whole ? item.rows[0] : item).cells[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    return text !== "" && !isNaN(text) ? Number(text) : text;
  };
  const compare = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.classList.contains("n") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = now === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const keyed = items().map((item) => [key(item, column), item]);
      keyed.sort(([a], [b]) => a === "" || b === "" ? (a === "") - (b === "") : (order === "ascending" ? 1 : -1) * compare(a, b));
      for (const [, item] of keyed) item.parentNode.append(item);
    });
  });
}
