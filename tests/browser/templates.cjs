// Pictures of the templates: each one is opened, run, and taken with nothing of the page around it.
const { clear, command, frames, run, still } = require("./page.cjs");
const SCALE = 0.65; // above the frontend's limit for readable text
const MARGIN = 16;
const BARE = { "Comfy.Graph.CanvasInfo": false, "Comfy.Graph.CanvasMenu": false, "Comfy.Minimap.Visible": false,
  "Comfy.Execution.PreviewMethod": "none" };

/** Shows the graph at its top left corner; its size in pixels. */
const place = (page) => page.evaluate(([scale, margin]) => {
  const { canvas, graph } = window.app;
  const boxes = graph._nodes.map((node) => node.boundingRect ?? node.getBounding());
  const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
  const at = canvas.canvas.getBoundingClientRect();
  canvas.ds.scale = scale;
  canvas.ds.offset = [margin / scale - left - at.x / scale, margin / scale - top - at.y / scale];
  canvas.setDirty(true, true);
  return [right - left, bottom - top].map((length) => Math.ceil(length * scale) + 2 * margin);
}, [SCALE, MARGIN]);

module.exports = async function templates(page, job, seen, shot, doing) {
  await page.evaluate(async (settings) => {
    for (const [name, value] of Object.entries(settings)) await window.app.extensionManager.setting.set(name, value);
  }, BARE);
  await page.addStyleTag({ content: "[class*=hamburger], button:has(.pi-bars) { display: none !important }" }); // the bars' own button
  const focus = () => command(page, "Workspace.ToggleFocusMode"); // hides the page's bars, the Run button too
  for (const name of job.templates) {
    doing(name);
    await clear(page);
    await page.evaluate(async ([pack, wanted]) => {
      const answer = await fetch(`/api/workflow_templates/${pack}/${wanted}.json`);
      await window.app.loadGraphData(await answer.json());
    }, [job.pack, name]);
    seen[name] = (await run(page)).includes("execution_success");
    await page.waitForFunction(() => window.app.graph._nodes.filter((node) => node.type === "SaveImage")
      .every((node) => node.imgs?.length && node.imgs.every((image) => image.complete && image.naturalWidth)));
    await page.waitForFunction(() => [...document.querySelectorAll(".fewstep-plan")].every(
      (plan) => plan.ariaLabel !== "Plan" && !plan.ariaLabel?.includes("when the graph is read")));
    await focus();
    let [width, height] = await place(page);
    await page.setViewportSize({ width, height });
    await frames(page);
    [width, height] = await place(page); // the page's bars, if any, have moved
    await still(page, () => [...document.querySelectorAll(".fewstep-plan")].map((plan) => [plan.ariaLabel, plan.getBoundingClientRect()]));
    await page.mouse.move(1, 1);
    await shot(name);
    await focus();
  }
};
