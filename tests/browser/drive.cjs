// Drives the frontend in headless chromium: node drive.cjs '{"url", "chromium", "workflow", "screenshot", "profile"}'.
// Prints one JSON object with what the page did.
const fs = require("fs");
const { chromium } = require(process.env.FEWSTEP_PLAYWRIGHT || "playwright-core");

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

async function main() {
  const job = JSON.parse(process.argv[2]);
  const seen = { errors: [], failed: [], events: [], dialogs: [] };
  const browser = await chromium.launchPersistentContext(job.profile, {
    executablePath: job.chromium, headless: true, args: FLAGS, viewport: { width: 1400, height: 900 },
  });
  try {
    const page = browser.pages()[0] || (await browser.newPage());
    page.on("pageerror", (error) => seen.errors.push(String(error)));
    page.on("response", (response) => {
      const own = response.url().startsWith(job.url);
      if (own && response.status() >= 400) seen.failed.push(`${response.status()} ${response.url().slice(job.url.length)}`);
    });
    await page.goto(job.url, { waitUntil: "domcontentloaded", timeout: 120000 });
    await page.waitForFunction(() => window.app && window.app.graph && window.app.canvas && window.app.api, null,
      { timeout: 120000 });
    await page.waitForFunction(() => document.querySelector("canvas#graph-canvas") && !document.querySelector("#splash-loader"),
      null, { timeout: 60000 });
    await page.waitForTimeout(3000);
    seen.dialogs = await page.$$eval("[role=dialog]", (all) => all.map((d) => d.innerText.slice(0, 300)));
    seen.version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ || null);
    seen.defaultNodes = await page.evaluate(() => window.app.graph._nodes.map((n) => n.type));
    if (job.start) await page.screenshot({ path: job.start });
    const workflow = JSON.parse(fs.readFileSync(job.workflow, "utf8"));
    await page.evaluate(async (graph) => {
      window.fewstepEvents = [];
      const names = ["execution_start", "execution_cached", "progress_state", "executing", "progress", "b_preview",
        "b_preview_with_metadata", "executed", "execution_success", "execution_error"];
      for (const name of names) window.app.api.addEventListener(name, () => window.fewstepEvents.push(name));
      if (graph.nodes) await window.app.loadGraphData(graph);
      else await window.app.loadApiJson(graph, "example");
    }, workflow);
    seen.nodes = await page.evaluate(() => window.app.graph._nodes.map((n) => n.type));
    await page.waitForTimeout(1000);
    await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));  // off-screen nodes load nothing
    await page.waitForTimeout(1000);
    seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
    await page.evaluate(() => window.app.queuePrompt(0));
    await page.waitForFunction(
      () => window.fewstepEvents.includes("execution_success") || window.fewstepEvents.includes("execution_error"), null,
      { timeout: 120000 });
    await page.waitForFunction(
      () => window.app.graph._nodes.some((n) => n.imgs && n.imgs.length && n.imgs.every(
        (i) => i.complete && i.naturalWidth && i.src.includes("/view?"))), null, { timeout: 30000 }).catch(() => undefined);
    seen.pictures = await page.evaluate(() => window.app.graph._nodes.flatMap(
      (n) => (n.imgs || []).map((i) => [n.type, i.naturalWidth, i.src.replace(/^.*\/\/[^/]*/, "")])));
    seen.events = await page.evaluate(() => window.fewstepEvents);
    await page.waitForTimeout(1500);
    seen.lateDialogs = await page.$$eval("[role=dialog]", (all) => all.map((d) => d.innerText.slice(0, 300)));
    await page.screenshot({ path: job.screenshot });
  } catch (error) {
    seen.broke = String(error);
    const page = browser.pages()[0];
    if (page) await page.screenshot({ path: job.screenshot }).catch(() => undefined);
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

main().catch((error) => {
  process.stderr.write(String(error));
  process.exit(1);
});
