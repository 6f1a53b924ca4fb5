// Drives a frontend in headless chromium: node drive.cjs '{"url", "chromium", "template", "pack", "screenshot", "profile"}'.
// As a user does: opens the page, picks the template in the gallery, presses Run, waits for the pictures.
// Prints one JSON object with what the page did. "start" (optional): a screenshot of the page before that.
const { chromium } = require(process.env.FEWSTEP_PLAYWRIGHT || "playwright-core");

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const PATIENCE = 120000;
const EVENTS = ["execution_start", "execution_cached", "progress_state", "executing", "progress", "b_preview",
  "b_preview_with_metadata", "executed", "execution_success", "execution_error"];

function watch(page, url, seen) {
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.console.push([message.text(), message.location().url || ""]);
  });
  page.on("response", (response) => {
    const own = response.url().startsWith(url);
    if (own && response.status() >= 400) seen.failed.push([response.status(), response.url().slice(url.length)]);
  });
}

const dialogs = (page) => page.$$eval("[role=dialog]", (all) => all.map((d) => d.innerText.slice(0, 300)));

async function open(page, url) {
  await page.goto(url, { waitUntil: "domcontentloaded", timeout: PATIENCE });
  await page.waitForFunction(() => window.app && window.app.graph && window.app.canvas && window.app.api, null,
    { timeout: PATIENCE });
  await page.waitForFunction(() => document.querySelector("canvas#graph-canvas") && !document.querySelector("#splash-loader"),
    null, { timeout: PATIENCE });
  await page.waitForTimeout(3000);
}

async function openTemplate(page, pack, template) {
  const before = await page.evaluate(() => window.app.graph._nodes.length);
  const gallery = page.getByRole("dialog");  // ComfyUI opens it by itself at its first start
  if (!(await gallery.count())) await page.getByRole("button", { name: "Templates", exact: true }).click();
  await gallery.getByText(pack, { exact: true }).first().click();
  await gallery.getByText(template, { exact: true }).first().click();
  await gallery.waitFor({ state: "hidden" });
  await page.waitForFunction((count) => window.app.graph._nodes.length !== count, before);
  await page.waitForTimeout(1000);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));  // off-screen nodes load nothing
  await page.waitForTimeout(1000);
}

async function run(page) {
  await page.evaluate((names) => {
    window.seenEvents = [];
    for (const name of names) window.app.api.addEventListener(name, () => window.seenEvents.push(name));
  }, EVENTS);
  await page.getByRole("button", { name: "Run", exact: true }).first().click();
  await page.waitForFunction(
    () => window.seenEvents.includes("execution_success") || window.seenEvents.includes("execution_error"), null,
    { timeout: PATIENCE });
  await page.waitForFunction(
    () => window.app.graph._nodes.some((n) => n.imgs && n.imgs.length && n.imgs.every(
      (i) => i.complete && i.naturalWidth && i.src.includes("/view?"))), null, { timeout: 30000 }).catch(() => undefined);
  await page.waitForTimeout(1500);
}

async function main() {
  const job = JSON.parse(process.argv[2]);
  const seen = { errors: [], console: [], failed: [], events: [], dialogs: [] };
  const browser = await chromium.launchPersistentContext(job.profile, {
    executablePath: job.chromium, headless: true, args: FLAGS, viewport: { width: 1400, height: 900 },
  });
  const page = browser.pages()[0] || (await browser.newPage());
  page.setDefaultTimeout(30000);
  try {
    watch(page, job.url, seen);
    await open(page, job.url);
    seen.dialogs = await dialogs(page);
    seen.version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ || null);
    if (job.start) await page.screenshot({ path: job.start });
    await openTemplate(page, job.pack, job.template);
    seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
    await run(page);
    seen.pictures = await page.evaluate(() => window.app.graph._nodes.flatMap(
      (n) => (n.imgs || []).map((i) => [n.type, i.naturalWidth, i.src.replace(/^.*\/\/[^/]*/, "")])));
    seen.events = await page.evaluate(() => window.seenEvents);
    seen.lateDialogs = await dialogs(page);
  } catch (error) {
    seen.broke = String(error);
  } finally {
    await page.screenshot({ path: job.screenshot }).catch(() => undefined);
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

module.exports = { chromium, watch, open, run, openTemplate, FLAGS };

if (require.main === module) {
  main().catch((error) => {
    process.stderr.write(String(error));
    process.exit(1);
  });
}
