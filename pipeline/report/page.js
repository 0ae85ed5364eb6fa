"use strict";
const root = document.documentElement;
const specs = JSON.parse(document.getElementById("specs").textContent);
const look = JSON.parse(document.getElementById("look").textContent);
const views = {};

function narrow() {
  return root.clientWidth < 640;
}

async function draw(id) {
  const spec = structuredClone(specs[id]);
  const config = structuredClone(look);
  if (narrow()) config.axis.labelLimit = 118;
  const options = { actions: false, renderer: "svg", config, tooltip: { disableDefaultStyle: true } };
  const made = await vegaEmbed(document.getElementById(id), spec, options);
  if (views[id]) views[id].finalize();
  views[id] = made.view;
}

async function drawAll() {
  for (const id of Object.keys(specs)) await draw(id);
  root.dataset.drawn = String(Object.keys(views).length);
}

function pickOnClick(legend) {
  const figure = legend.closest("figure");
  legend.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const again = button.getAttribute("aria-pressed") === "true";
    for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    if (!again) button.setAttribute("aria-pressed", "true");
    legend.classList.toggle("picked", !again);
    for (const plot of figure.querySelectorAll(".plot")) {
      if (views[plot.id]) views[plot.id].signal("shown", again ? "" : button.dataset.series).runAsync();
    }
  });
}

function valueOf(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
}

function compare(first, second) {
  const empty = (first === "") - (second === "");
  if (empty || first === "") return empty;
  return typeof first === "number" && typeof second === "number" ? first - second : String(first).localeCompare(second);
}

function sortOnClick(head) {
  head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const rising = before ? before !== "ascending" : !numeric;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    // Empty cells stay last, whichever way.
    rows.sort((a, b) => (a[0] === "" || b[0] === "" || rising ? compare(a[0], b[0]) : compare(b[0], a[0])));
    body.append(...rows.map((pair) => pair[1]));
  });
}

function copyOnClick(button) {
  button.addEventListener("click", async () => {
    const text = button.parentNode.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.parentNode.querySelector("code"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

function switchTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => (button.textContent = dark() ? "Light" : "Dark");
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  button.hidden = false;
}

let last = narrow();
addEventListener("resize", () => {
  if (narrow() !== last) {
    last = narrow();
    drawAll();
  }
});
document.querySelectorAll(".legend").forEach(pickOnClick);
document.querySelectorAll("thead th").forEach(sortOnClick);
document.querySelectorAll(".command button").forEach(copyOnClick);
switchTheme(document.getElementById("theme"));
drawAll();
