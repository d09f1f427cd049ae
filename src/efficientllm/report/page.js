"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const said = document.getElementById("said");
const say = (text) => { said.textContent = text; setTimeout(() => { said.textContent = ""; }, 2500); };

for (const button of document.querySelectorAll("[data-save]")) {
  const text = data[button.dataset.save];
  if (text === undefined) { button.disabled = true; continue; }
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
    say("saved " + button.dataset.name);
  });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => {
    const text = button.dataset.copy;
    const shown = () => say(text);
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say("copied: " + text), shown);
    else shown();
  });
}

const value = (row, index, kind) => {
  const cell = row.children[index];
  const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
  if (kind !== "number") return text.toLowerCase();
  return text === "" ? null : Number(text);
};
const compare = (a, b) => {
  if (a === b) return 0;
  if (a === null) return 2;
  if (b === null) return -2;
  return typeof a === "number" ? Math.sign(a - b) : a.localeCompare(b, "en", { numeric: true });
};
for (const table of document.querySelectorAll(".stage table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const kind = button.dataset.sort;
      const rows = [...table.tBodies[0].rows].map((row) => [value(row, index, kind), row]);
      rows.sort(([a], [b]) => {
        const order = compare(a, b);
        return Math.abs(order) === 2 ? order : down ? -order : order;
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

for (const stage of document.querySelectorAll(".stage")) {
  const find = (name) => stage.querySelector(name);
  const rows = [...find("tbody").rows];
  const apply = () => {
    const words = find(".filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && (!find(".point").value || row.dataset.point === find(".point").value)
        && (!find(".machine").value || row.dataset.machine === find(".machine").value)
        && (!find(".ranked").checked || row.dataset.ranked === "yes");
      row.hidden = !fits;
      shown += fits;
    }
    find(".count").textContent = shown === rows.length ? "" : shown + " of " + rows.length + " rows";
    stage.classList.toggle("all", find(".more").checked);
  };
  for (const name of [".filter", ".point", ".machine", ".ranked", ".more"]) find(name).addEventListener("input", apply);
}

const money = () => {
  const number = (id) => {
    const text = document.getElementById(id).value.trim().replace(",", ".");
    return text === "" || !(Number(text) >= 0) ? null : Number(text);
  };
  const hour = number("hour"), kwh = number("kwh");
  document.body.classList.toggle("priced", hour !== null || kwh !== null);
  for (const row of document.querySelectorAll(".stage tbody tr")) {
    const cell = row.querySelector(".money");
    const rate = Number(row.dataset.rate), joules = Number(row.dataset.joules);
    const missing = (hour !== null && !rate) || (kwh !== null && !row.dataset.joules);
    const price = (hour !== null && rate ? hour / 3600 / rate * 1e6 : 0)
      + (kwh !== null && row.dataset.joules ? kwh * joules / 3.6e6 * 1e6 : 0);
    cell.dataset.v = missing ? "" : price;
    cell.textContent = missing ? "\u2013" : price.toPrecision(3);
  }
};
document.getElementById("hour").addEventListener("input", money);
document.getElementById("kwh").addEventListener("input", money);

const open = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();
