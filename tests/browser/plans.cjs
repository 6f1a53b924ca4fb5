// The drawings in the nodes, as a user meets them: node plans.cjs '{"url", "chromium", "profile", "pack", "vue", "theme", "shots"}'.
// Adds a node from the search box, changes widgets, saves and loads, runs a template, provokes an error. Prints what was seen.
const { chromium, watch, open, run, openTemplate, FLAGS } = require("./drive.cjs");

const job = JSON.parse(process.argv[2]);
const seen = { errors: [], console: [], failed: [] };

const drawing = (page, id) => page.evaluate((wanted) => {
  const element = window.app.graph.getNodeById(wanted).widgets.find((w) => w.name === "fewstep_plan").element;
  const svg = element.querySelector("svg");
  const box = element.getBoundingClientRect();
  const style = getComputedStyle(element);
  return {
    label: element.getAttribute("aria-label"), facts: element.querySelector(".fewstep-plan-facts").textContent,
    basis: element.querySelector(".fewstep-plan-basis").textContent, shown: element.isConnected && box.width > 50 && box.height > 50,
    width: box.width, height: box.height, svg: svg && svg.querySelectorAll("polyline").length, cells: element.querySelectorAll(".fewstep-map rect").length,
    title: svg && svg.querySelector("title").textContent, desc: svg && svg.querySelector("desc").textContent,
    error: element.classList.contains("fewstep-plan-error"), ground: style.backgroundColor,
    colours: [style.color, ...[...element.querySelectorAll("polyline")].map((line) => getComputedStyle(line).stroke)],
    box: { x: box.x, y: box.y, width: box.width, height: box.height },
  };
}, id);

async function settled(page, id, what) {
  await page.waitForFunction(([wanted, text]) => {
    const widget = window.app.graph.getNodeById(wanted)?.widgets?.find((w) => w.name === "fewstep_plan");
    return widget && widget.element.getAttribute("aria-label").includes(text);
  }, [id, what], { timeout: 20000 });
  await page.waitForTimeout(400);
  return drawing(page, id);
}

async function pixels(page, id) {
  const { box } = await drawing(page, id);
  const shot = await page.screenshot({ clip: { ...box, width: Math.max(box.width, 1), height: Math.max(box.height, 1) } });
  return require("node:crypto").createHash("sha256").update(shot).digest("hex");
}

const set = (page, id, name, value) => page.evaluate(([wanted, label, to]) => {
  const node = window.app.graph.getNodeById(wanted);
  const widget = node.widgets.find((w) => w.name === label);
  widget.value = to;
  widget.callback?.(to, window.app.canvas, node);
  window.app.canvas.setDirty(true, true);
}, [id, name, value]);

async function addFromSearch(page, title) {
  await page.evaluate(() => window.app.graph.clear());
  await page.mouse.dblclick(600, 200);
  await page.waitForFunction(() => document.activeElement?.tagName === "INPUT"); // else the letters are shortcuts
  await page.keyboard.type(title, { delay: 20 });
  await page.waitForTimeout(1200);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => window.app.graph._nodes.length === 1, null, { timeout: 20000 });
  await page.waitForTimeout(300);
  await page.mouse.move(420, 150);
  await page.mouse.click(420, 150); // newer frontends let the node hang on the mouse until then
  await page.waitForTimeout(300);
  return page.evaluate(() => window.app.graph._nodes[0].id);
}

async function main() {
  const browser = await chromium.launchPersistentContext(job.profile, {
    executablePath: job.chromium, headless: true, args: FLAGS, viewport: { width: 1400, height: 900 },
  });
  const page = browser.pages()[0] || (await browser.newPage());
  page.setDefaultTimeout(30000);
  const shot = (name) => job.shots && page.screenshot({ path: `${job.shots}-${name}.png` });
  try {
    watch(page, job.url, seen);
    await open(page, job.url);
    await page.evaluate(async ([vue, theme]) => {
      await window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue);
      await window.app.extensionManager.setting.set("Comfy.ColorPalette", theme);
    }, [job.vue, job.theme]);
    await page.waitForTimeout(1500);

    const id = await addFromSearch(page, "UniPC (FewStep)");
    seen.vueNodes = await page.locator("[data-node-id]").count();
    seen.added = await settled(page, id, "8 evaluations");
    await shot("added");
    seen.pixelsBefore = await pixels(page, id);
    await set(page, id, "corrector", false);
    await page.waitForTimeout(1500);
    seen.changed = await settled(page, id, "8 evaluations");
    seen.pixelsAfter = await pixels(page, id);
    seen.zoom = {};
    for (const scale of [0.5, 2]) {
      await page.evaluate((to) => { window.app.canvas.ds.changeScale(to, [700, 450]); window.app.canvas.setDirty(true, true); }, scale);
      await page.waitForTimeout(800);
      seen.zoom[scale] = await drawing(page, id);
      await shot(`zoom-${scale}`);
    }
    await page.evaluate(() => { window.app.canvas.ds.changeScale(1, [700, 450]); window.app.canvas.setDirty(true, true); });
    await page.waitForTimeout(500);
    const button = page.locator(".fewstep-plan-toggle").first();
    await button.focus();
    await page.keyboard.press("Enter");
    seen.table = await page.locator(".fewstep-plan-text").first().innerText();
    await page.keyboard.press("Enter");
    seen.saved = await page.evaluate(() => window.app.graph.serialize().nodes[0].widgets_values);
    seen.exported = await page.evaluate(async () => Object.values((await window.app.graphToPrompt()).output)[0].inputs);
    await page.evaluate(async () => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize()))));
    seen.reloaded = await settled(page, id, "8 evaluations");
    seen.reloadedValues = await page.evaluate(() => window.app.graph.serialize().nodes[0].widgets_values);

    await openTemplate(page, job.pack, "corrector_unic");
    const kinds = await page.evaluate(() => Object.fromEntries(window.app.graph._nodes.map((n) => [n.type, n.id])));
    const schedule = kinds.FewStepSchedule ?? Object.entries(kinds).find(([kind]) => kind.endsWith("Schedule"))[1];
    seen.corrector = await settled(page, kinds.FewStepUniC, "Drawn from");
    await set(page, schedule, "steps", 5);
    seen.fewer = await settled(page, kinds.FewStepUniC, "5 steps");
    await shot("template");
    await run(page);
    seen.events = await page.evaluate(() => window.seenEvents);
    await shot("run");

    const solver = kinds.FewStepDPMSolverMultistep;
    await set(page, solver, "order", 6); // needs another solver_type
    seen.faultyNode = String(solver);
    seen.faulty = await settled(page, solver, "order");
    await page.evaluate(() => window.app.api.addEventListener("execution_error", (e) => { window.seenError = e.detail; }));
    await run(page);
    seen.error = await page.evaluate(() => window.seenError && { node: window.seenError.node_id, kind: window.seenError.node_type, text: window.seenError.exception_message });
    await shot("error");
  } catch (error) {
    seen.broke = String(error.stack || error);
    await shot("broke");
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

main();
