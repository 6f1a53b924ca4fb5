// The drawings in the nodes, as a user meets them: a node is added, changed, zoomed, read as text, saved and loaded; a template is
// changed and run; a fault is made.
const { createHash } = require("node:crypto");
const { addFromSearch, frames, marked, nodeIds, openTemplate, prompt, run, set, still, toggle } = require("./page.cjs");

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

/** The drawing, once it says ``what`` and stands still. */
async function settled(page, id, what) {
  await page.waitForFunction(([wanted, text]) => {
    const element = window.app.graph.getNodeById(wanted)?.widgets?.find((w) => w.name === "fewstep_plan")?.element;
    return element && `${element.getAttribute("aria-label")} ${element.textContent}`.includes(text);
  }, [id, what], { timeout: 20000 });
  await still(page, (wanted) => {
    const widget = window.app.graph.getNodeById(wanted).widgets.find((w) => w.name === "fewstep_plan");
    const { x, y, width, height } = widget.element.getBoundingClientRect();
    return [x, y, width, height];
  }, id);
  return drawing(page, id);
}

async function pixels(page, id) {
  const { box } = await drawing(page, id);
  return createHash("sha256").update(await page.screenshot({ clip: box })).digest("hex");
}

async function zoom(page, id, scale) {
  await page.evaluate((to) => { window.app.canvas.ds.changeScale(to, [700, 450]); window.app.canvas.setDirty(true, true); }, scale);
  await frames(page);
  return settled(page, id, "8 evaluations");
}


/** What the frontend itself says about an error: a dialog at once, or a note whose button opens its details. */
async function said(page, text) {
  const details = page.getByRole("button", { name: "View details" });
  const found = page.getByText(text).and(page.locator(":not(.fewstep-plan *)")).first();
  await found.or(details).first().waitFor();
  if (await details.count()) await details.click();
  await found.waitFor();
  return found.innerText();
}

module.exports = async function plans(page, job, seen, shot, doing) {
  doing("a node from the search box");
  const { id } = await addFromSearch(page, "UniPC (FewStep)", { byMouse: true });
  seen.added = await settled(page, id, "8 evaluations");
  seen.vueNodes = await page.locator("[data-node-id]").count();
  await shot("added");
  seen.pixelsBefore = await pixels(page, id);
  doing("a click on a widget");
  await toggle(page, id, "corrector", job.vue);
  seen.changed = await settled(page, id, "corrector=False");
  seen.pixelsAfter = await pixels(page, id);
  seen.zoom = {};
  for (const scale of [0.5, 2]) {
    doing(`zoom ${scale}`);
    seen.zoom[scale] = await zoom(page, id, scale);
    await shot(`zoom-${scale}`);
  }
  await zoom(page, id, 1);
  doing("the table, by keyboard");
  await page.locator(".fewstep-plan-toggle").first().focus();
  await page.keyboard.press("Enter");
  seen.table = await page.locator(".fewstep-plan-text").first().innerText();
  await page.keyboard.press("Enter");
  doing("saving and loading");
  const saved = () => page.evaluate(() => window.app.graph.serialize().nodes[0].widgets_values);
  seen.saved = await saved();
  seen.exported = Object.values(await prompt(page))[0].inputs;
  await page.evaluate(async () => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize()))));
  seen.reloaded = await settled(page, id, "8 evaluations");
  seen.reloadedValues = await saved();

  doing("a template");
  await openTemplate(page, job.pack, "corrector_unic");
  const kinds = await nodeIds(page);
  seen.corrector = await settled(page, kinds.FewStepUniC, "Drawn from");
  await set(page, kinds.FewStepSchedule, "steps", 5);
  seen.fewer = await settled(page, kinds.FewStepUniC, "5 steps");
  await shot("template");
  seen.events = await run(page);
  await shot("run");

  doing("a fault");
  const solver = kinds.FewStepDPMSolverMultistep;
  await set(page, solver, "order", 6); // needs another solver_type
  seen.faultyNode = String(solver);
  seen.faulty = await settled(page, solver, "order is 6");
  await run(page);
  seen.error = await page.evaluate(() => {
    const [, detail] = window.seenEvents.find(([name]) => name === "execution_error") ?? [];
    return detail && { node: detail.node_id, kind: detail.node_type, text: detail.exception_message };
  });
  seen.said = await said(page, "order is 6");
  seen.marked = await marked(page, job.vue);
  await shot("error");
  await page.keyboard.press("Escape"); // older frontends say it in a dialog
  await page.waitForFunction(() => ![...document.querySelectorAll("[role=dialog]")].some((dialog) => dialog.innerText));
};
