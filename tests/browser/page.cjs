// What the scripts here share: a page of a frontend in headless chromium, and what people do on it. Waits are for conditions.
const { chromium } = require(process.env.FEWSTEP_PLAYWRIGHT || "playwright-core");

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const PATIENCE = 120000; // ms, for what a server at work may delay
const EVENTS = ["execution_start", "execution_cached", "progress_state", "executing", "progress", "b_preview",
  "b_preview_with_metadata", "executed", "execution_success", "execution_error", "execution_interrupted"];
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** Notes errors of the page, its console's errors, and the server's refusals. */
function watch(page, url, seen) {
  page.on("pageerror", (error) => seen.errors.push(String(error.stack || error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.console.push([message.text(), message.location().url || ""]);
  });
  page.on("response", (response) => {
    const own = response.url().startsWith(url);
    if (own && response.status() >= 400) seen.failed.push([response.status(), response.url().slice(url.length)]);
  });
}

/** Starts chromium with one page of that size. */
async function launch(job, width = 1400, height = 900) {
  const browser = await chromium.launch({ executablePath: job.chromium, headless: true, args: FLAGS });
  const page = await browser.newPage({ viewport: { width, height } });
  page.setDefaultTimeout(30000);
  return { browser, page };
}

/** Opens the frontend in the wanted renderer and theme, as a user does who has chosen them before. */
async function open(page, { url, vue, theme }) {
  const wanted = { "Comfy.VueNodes.Enabled": Boolean(vue), "Comfy.ColorPalette": theme || "dark", "Comfy.TutorialCompleted": true,
    "Comfy.Execution.PreviewMethod": "latent2rgb" }; // ComfyUI sends none by default
  for (const [name, value] of Object.entries(wanted)) {
    const headers = { "Content-Type": "application/json" };
    await page.request.post(`${url}/api/settings/${name}`, { headers, data: JSON.stringify(value) });
  }
  await page.goto(url, { waitUntil: "domcontentloaded", timeout: PATIENCE });
  await ready(page);
}

/** Until a page that loads has its nodes and a graph. */
async function ready(page) {
  await page.waitForFunction(() => window.app?.graph?._nodes.length && window.app.extensionManager
    && window.LiteGraph?.registered_node_types?.FewStepDDIM && document.querySelector("canvas#graph-canvas")
    && !document.querySelector("#splash-loader"), null, { timeout: PATIENCE });
  await frames(page);
}

/** Until the page has been drawn anew. */
const frames = (page, count = 3) => page.evaluate(async (left) => {
  for (; left > 0; left -= 1) await new Promise((done) => requestAnimationFrame(done));
}, count);

const command = (page, name) => page.evaluate((id) => { void window.app.extensionManager.command.execute(id); }, name);

const dialogs = (page) => page.$$eval("[role=dialog]", (all) => all.map((d) => d.innerText.slice(0, 300)).filter(Boolean));

/** An empty graph, and no part of the last one left on the page. */
async function clear(page) {
  await page.evaluate(() => window.app.graph.clear());
  await page.waitForFunction(() => !document.querySelector("[data-node-id]") && !document.querySelector("[role=option]"));
}

/** Adds the node of that title from the search box, which a double click on the empty graph opens, or a command. */
async function addFromSearch(page, title, { byMouse = false } = {}) {
  await clear(page);
  const typing = () => page.waitForFunction(() => document.activeElement?.matches("input[role=combobox]"), null, { timeout: 2000 });
  for (let left = 5; ; left -= 1) { // a double click while the page is still busy is none
    if (byMouse) await page.mouse.dblclick(600, 200);
    else await command(page, "Workspace.SearchBox.Toggle");
    if (await typing().then(() => true, () => false)) break;
    if (!left) throw new Error("the search box does not open");
  }
  await page.keyboard.insertText(title);
  await page.locator("[role=option]").filter({ hasText: title }).first().click();
  await page.waitForFunction(() => window.app.graph._nodes.length === 1 && !document.querySelector("[role=option]"));
  await page.mouse.move(420, 150);
  await page.mouse.click(420, 150); // newer frontends let the node hang on the mouse until then
  await frames(page);
  return page.evaluate(() => { const [node] = window.app.graph._nodes; return { id: node.id, type: node.type }; });
}

/** Opens a template in the gallery. */
async function openTemplate(page, pack, template) {
  const before = await page.evaluate(() => window.app.graph.id);
  const gallery = page.getByRole("dialog");
  await page.getByRole("button", { name: "Templates", exact: true }).click();
  await gallery.getByText(pack, { exact: true }).first().click();
  await gallery.getByText(template, { exact: true }).first().click();
  await gallery.waitFor({ state: "hidden" });
  await page.waitForFunction((id) => window.app.graph.id !== id && window.app.graph._nodes.length, before);
  await fit(page);
}

/** The whole graph into view: nodes out of sight load nothing. */
async function fit(page) {
  await command(page, "Comfy.Canvas.FitView");
  await still(page, () => [...window.app.canvas.ds.offset, window.app.canvas.ds.scale]);
}

/** Until what a function in the page returns stays the same for some frames. */
const still = (page, look, value) => page.evaluate(async ([source, given]) => {
  const found = () => JSON.stringify((0, eval)(`(${source})`)(given));
  let last = found();
  for (let same = 0, all = 0; same < 5 && all < 600; all += 1) {
    await new Promise((done) => requestAnimationFrame(done));
    const now = found();
    same = now === last ? same + 1 : 0;
    last = now;
  }
}, [String(look), value]);

/** Presses Run, and returns the names of the events of this run once it has come as far as one of ``until``. */
async function run(page, until = ENDS) {
  await page.evaluate((names) => {
    window.seenEvents?.stop();
    const seen = (window.seenEvents = Object.assign([], { stop: () => undefined }));
    const note = (event) => seen.push([event.type, event.detail instanceof Blob ? null : event.detail]);
    for (const name of names) window.app.api.addEventListener(name, note);
    seen.stop = () => names.forEach((name) => window.app.api.removeEventListener(name, note));
  }, EVENTS);
  await page.getByRole("button", { name: "Run", exact: true }).first().click();
  return came(page, until);
}

/** The names of this run's events, once one of ``until`` has come. */
async function came(page, until) {
  await page.waitForFunction((names) => window.seenEvents.some(([name]) => names.includes(name)), until, { timeout: PATIENCE });
  return page.evaluate(() => window.seenEvents.map(([name]) => name));
}

/** The graph as it would run. */
const prompt = (page) => page.evaluate(async () => (await window.app.graphToPrompt()).output);

const nodeIds = (page) => page.evaluate(() => Object.fromEntries(window.app.graph._nodes.map((n) => [n.type, n.id])));

/** Sets a widget. */
const set = (page, id, name, value) => page.evaluate(([wanted, label, to]) => {
  const node = window.app.graph.getNodeById(wanted);
  const widget = node.widgets.find((w) => w.name === label);
  widget.value = to;
  widget.callback?.(to, window.app.canvas, node);
  window.app.canvas.setDirty(true, true);
}, [id, name, value]);

/** Switches a true-or-false widget by a click on it. */
async function toggle(page, id, name, vue) {
  if (vue) {
    const row = page.locator(`[data-node-id="${id}"] .lg-node-widget`).filter({ has: page.getByText(name, { exact: true }) });
    return row.getByRole("switch").click({ force: true });
  }
  const [x, y] = await page.evaluate(([wanted, label]) => {
    const node = window.app.graph.getNodeById(wanted);
    const { y: down } = node.widgets.find((w) => w.name === label);
    const [left, top] = window.app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] - 30, node.pos[1] + down + 10]);
    const box = window.app.canvas.canvas.getBoundingClientRect();
    return [box.x + left, box.y + top];
  }, [id, name]);
  await page.mouse.click(x, y);
}

/** The ids of the nodes that the frontend marks as faulty: by a frame, or newer ones by a button under the Vue node. */
const marked = (page, vue) => page.evaluate((inVue) => window.app.graph._nodes.filter((node) => {
  if (!inVue) return node.strokeStyles?.executionError?.call(node);
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  return element.matches("[class*='node-stroke-error']") || [...element.querySelectorAll("button")].some((b) => b.innerText.trim() === "Error");
}).map((node) => String(node.id)), Boolean(vue));

module.exports = { addFromSearch, came, clear, command, dialogs, fit, frames, launch, marked, nodeIds, open, openTemplate, prompt, ready,
  run, set, still, toggle, watch };
