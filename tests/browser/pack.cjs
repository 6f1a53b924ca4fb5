// What the pack brings beside nodes, in a frontend: node pack.cjs '{"url", "chromium", "language", "blueprints", "help"}'.
// Prints one JSON object: titles and labels of a node in the language, the help pages as the page renders them, and for each
// blueprint (added from the search box) the graph that the frontend makes of it; the first one is run.
const { launch, open, run, watch } = require("./page.cjs");

const DEMO = { model: 0, clip: 1, vae: 2 };

const stores = () => document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;

async function helpOf(page, id) {
  await page.evaluate(`window.stores = (${stores})()`);
  return page.evaluate(async (name) => {
    const help = window.stores.get("nodeHelp");
    if (!help) return null;  // newer frontends make it when the panel opens
    help.openHelp(window.stores.get("nodeDef").nodeDefsByName[name]);
    for (let i = 0; i < 100 && (help.isLoading || !help.renderedHelpHtml); i++) await new Promise((done) => setTimeout(done, 50));
    const html = document.createElement("div");
    html.innerHTML = help.renderedHelpHtml;
    const source = html.querySelector("img") && html.querySelector("img").getAttribute("src");
    const picture = source ? (await fetch(source)).headers.get("content-type") : null;
    help.closeHelp();
    return { text: html.textContent, source, picture, rows: html.querySelectorAll("table tr").length, error: help.error };
  }, id);
}

async function addFromSearch(page, name) {
  const before = await page.evaluate(() => window.app.graph._nodes.length);
  await page.evaluate(() => window.app.extensionManager.command.execute("Workspace.SearchBox.Toggle"));
  const box = page.locator(".comfy-vue-node-search-container input, [role=dialog] input").first();
  await box.waitFor({ state: "visible" });
  await box.fill(name);
  await page.getByText(name, { exact: true }).first().waitFor();
  await page.waitForTimeout(1500);
  await box.press("Enter");
  await page.waitForTimeout(500);
  await page.mouse.move(600, 300);
  await page.mouse.click(600, 320);  // newer frontends put the node down where the user clicks
  await page.waitForFunction((count) => window.app.graph._nodes.length > count, before, { timeout: 20000 });
  return page.evaluate(() => window.app.graph._nodes.at(-1).id);
}

async function main() {
  const job = JSON.parse(process.argv[2]);
  const seen = { errors: [], console: [], failed: [], help: {}, blueprints: {} };
  const { browser, page } = await launch(job);
  try {
    watch(page, job.url, seen);
    await open(page, job);
    await page.keyboard.press("Escape");
    for (const id of job.help) seen.help[id] = await helpOf(page, id);
    for (const [index, name] of job.blueprints.entries()) {
      await page.evaluate(() => { window.app.graph.clear(); window.app.canvas.draw(true, true); });
      const id = await addFromSearch(page, name);
      seen.blueprints[name] = await page.evaluate(({ id, index, DEMO }) => {
        const node = window.app.graph.getNodeById(id);
        const found = {
          title: node.title, inputs: node.inputs.map((i) => [i.name, i.type]), outputs: node.outputs.map((o) => [o.name, o.type]),
          widgets: (node.widgets || []).map((w) => w.name), inside: node.subgraph.nodes.map((n) => n.type),
        };
        if (index === 0) {
          const demo = window.LiteGraph.createNode("FewStepDemoCheckpoint");
          const save = window.LiteGraph.createNode("SaveImage");
          window.app.graph.add(demo);
          window.app.graph.add(save);
          for (const [name, slot] of Object.entries(DEMO)) demo.connect(slot, node, node.inputs.findIndex((i) => i.name === name));
          node.connect(0, save, 0);
          const set = (name, value) => { node.widgets.find((w) => w.name === name).value = value; };
          set("prompt", "5"); set("width", 64); set("height", 64); set("steps", 5);
        }
        return found;
      }, { id, index, DEMO });
      if (index === 0) {
        await page.waitForTimeout(500);
        seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
        seen.events = await run(page);
      }
    }
    await page.evaluate(() => window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true));  // the newer renderer
    await page.evaluate(async (DEMO) => {
      window.app.graph.clear();
      const [demo, advisor] = ["FewStepDemoCheckpoint", "FewStepAdvisor"].map((kind) => window.LiteGraph.createNode(kind));
      window.app.graph.add(demo);
      window.app.graph.add(advisor);
      demo.connect(DEMO.model, advisor, advisor.inputs.findIndex((i) => i.name === "model"));
      window.advisor = advisor;
      await window.app.queuePrompt(0);
    }, DEMO);
    await page.locator(".fewstep-report pre").filter({ hasText: "cfg" }).waitFor({ state: "visible" });
    seen.report = await page.evaluate(() => ({
      inVue: Boolean(document.querySelector(".lg-node .fewstep-report")),
      text: document.querySelector(".fewstep-report pre").textContent, title: window.advisor.color ?? null,
      solver: window.LiteGraph.createNode("FewStepUniPC").color, saved: window.advisor.serialize().widgets_values,
    }));
    await page.evaluate((language) => window.app.api.storeSetting("Comfy.Locale", language), job.language);
    await open(page, job);
    seen.node = await page.evaluate(() => {
      const node = window.LiteGraph.createNode("FewStepKSampler");
      return {
        title: node.title, widgets: node.widgets.map((w) => w.label || w.name), slots: node.inputs.map((i) => i.localized_name),
        category: window.LiteGraph.registered_node_types.FewStepKSampler.category,
        inner: window.LiteGraph.registered_node_types.FewStepUniPC.category,
      };
    });
  } catch (error) {
    seen.broke = String(error);
  } finally {
    if (job.screenshot) await page.screenshot({ path: job.screenshot }).catch(() => undefined);
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

main().catch((error) => {
  process.stderr.write(String(error));
  process.exit(1);
});
