// The graph as people use it: every node of the pack from the search box; a template queued, saved, the page loaded anew, a picture
// of it dragged in; a long run cancelled.
const { addFromSearch, came, clear, command, dialogs, fit, frames, nodeIds, openTemplate, prompt, ready, run, set } = require("./page.cjs");

/** All nodes at once, and what stands in their drawings when they have settled. */
async function drawings(page, kinds) {
  await clear(page);
  await page.evaluate((types) => types.forEach((type, i) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [(i % 8) * 320, Math.floor(i / 8) * 560];
    window.app.graph.add(node);
  }), kinds);
  const found = () => page.evaluate(() => Object.fromEntries(window.app.graph._nodes.map((node) => {
    const element = node.widgets?.find((w) => w.name === "fewstep_plan")?.element;
    return [node.type, element ? [element.classList.contains("fewstep-plan-error"), element.getAttribute("aria-label")] : null];
  })));
  await page.waitForFunction(() => window.app.graph._nodes.every((node) => {
    const label = node.widgets?.find((w) => w.name === "fewstep_plan")?.element.getAttribute("aria-label");
    return label === undefined || (label !== "Plan" && !label.includes("when the graph is read"));
  }));
  return found();
}

/** Widths of the pictures that a node shows. */
async function pictures(page, id, vue) {
  const look = ([wanted, inVue]) => {
    const images = inVue ? [...document.querySelectorAll(`[data-node-id="${wanted}"] img`)] : window.app.graph.getNodeById(wanted).imgs ?? [];
    const done = images.filter((image) => image.complete && image.naturalWidth && image.src.includes("/view?"));
    return done.length ? done.map((image) => image.naturalWidth) : null;
  };
  await page.waitForFunction(look, [id, vue]);
  return page.evaluate(look, [id, vue]);
}

/** Drops a picture of the server onto the graph. */
const drop = (page, file) => page.evaluate(async (wanted) => {
  const answer = await window.app.api.fetchApi(`/view?${new URLSearchParams(wanted)}`);
  const data = new DataTransfer();
  data.items.add(new File([await answer.blob()], wanted.filename, { type: "image/png" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.querySelector("canvas#graph-canvas").dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
  }
}, file);

/** Until the graph has as many nodes, and how it would run then. */
async function graphOf(page, count) {
  await page.waitForFunction((wanted) => window.app.graph._nodes.length === wanted, count);
  await frames(page);
  return prompt(page);
}

const queue = (page) => page.evaluate(async () => {
  const { queue_running: running, queue_pending: pending } = await (await window.app.api.fetchApi("/queue")).json();
  return [...running, ...pending].length;
});

module.exports = async function graph(page, job, seen, shot, doing) {
  const size = page.viewportSize();
  await page.setViewportSize({ width: 900, height: 620 }); // quicker to draw
  seen.added = {};
  for (const [type, title] of Object.entries(job.nodes)) {
    doing(`${title} from the search box`);
    seen.added[type] = (await addFromSearch(page, title)).type;
  }
  doing("the drawings of all nodes");
  seen.drawings = await drawings(page, Object.keys(job.nodes));
  await page.setViewportSize(size);

  doing(`the template ${job.template}`);
  await openTemplate(page, job.pack, job.template);
  const kinds = await nodeIds(page);
  seen.prompt = await prompt(page);
  const count = Object.keys(seen.prompt).length;
  doing("queueing it");
  seen.events = await run(page);
  seen.files = await page.evaluate(() => window.seenEvents.filter(([name, detail]) => name === "executed" && detail.output.images)
    .flatMap(([, detail]) => detail.output.images));
  seen.pictures = await pictures(page, kinds.SaveImage, job.vue);
  await shot("queued");

  doing("saving it and loading the page anew");
  const name = `few steps ${job.vue ? "vue" : "canvas"}`;
  await page.keyboard.press("Control+s");
  await page.getByRole("dialog").getByRole("textbox").fill(name);
  const stored = (answer) => answer.request().method() === "POST" && answer.url().includes("/userdata/workflows");
  await Promise.all([page.waitForResponse(stored), page.keyboard.press("Enter")]);
  seen.stored = await page.evaluate(async (title) => {
    const answer = await window.app.api.fetchApi(`/userdata/${encodeURIComponent(`workflows/${title}.json`)}`);
    return (await answer.json()).nodes.length;
  }, name);
  await page.reload({ waitUntil: "domcontentloaded" });
  await ready(page);
  seen.reloaded = await graphOf(page, count);

  doing("dragging a picture in");
  await clear(page);
  await drop(page, seen.files[0]);
  seen.dropped = await graphOf(page, count);
  seen.redrawn = await page.waitForFunction(() => document.querySelector(".fewstep-plan svg title")?.textContent).then((h) => h.jsonValue());

  doing("cancelling a run");
  await fit(page);
  const { FewStepSchedule: schedule } = await nodeIds(page);
  await set(page, schedule, "steps", 1000);
  await run(page, ["progress"]);
  const cancel = page.getByRole("button", { name: "Cancel current run" });
  await cancel.click();
  seen.cancelled = await came(page, ["execution_interrupted", "execution_success", "execution_error"]);
  await page.waitForFunction(() => document.querySelector("button[aria-label='Cancel current run']").disabled);
  seen.idle = { queue: await queue(page), running: await page.evaluate(() => window.app.runningNodeId ?? null), dialogs: await dialogs(page) };
  await shot("cancelled");
  await set(page, schedule, "steps", 3);
  seen.again = await run(page);
};
