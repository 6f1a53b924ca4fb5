// Error estimates while sampling: node estimates.cjs '{"url", "chromium", "pack", "vue", "theme", "shots"}'.
// Runs a template and prints which messages came and what the nodes then draw and say.
const { launch, open, openTemplate, run, watch } = require("./page.cjs");

const job = JSON.parse(process.argv[2]);
const seen = { errors: [], console: [], failed: [] };

const drawn = (page, kind) => page.evaluate((wanted) => {
  const { element } = window.app.graph._nodes.find((n) => n.type === wanted).widgets.find((w) => w.name === "fewstep_plan");
  const group = element.querySelector(".fewstep-estimate");
  const box = group.getBoundingClientRect();
  const line = group.querySelector("polyline");
  return {
    points: line ? line.getAttribute("points").split(" ").length : 0, marks: group.querySelectorAll("path").length,
    words: [...element.querySelectorAll("desc")].map((d) => d.textContent).join(" "), text: element.querySelector("pre").textContent,
    inside: box.bottom <= element.getBoundingClientRect().bottom && box.height > 5, stroke: line && getComputedStyle(line).stroke,
    ground: getComputedStyle(element).backgroundColor, apart: !line || box.bottom <= element.querySelector(".fewstep-map").getBoundingClientRect().top + 1,
    basis: element.querySelector(".fewstep-plan-basis").textContent,
  };
}, kind);

async function main() {
  const { browser, page } = await launch(job);
  try {
    watch(page, job.url, seen);
    await open(page, job);
    await page.evaluate(() => {
      window.estimates = [];
      window.app.api.addEventListener("fewstep.estimates", (e) => window.estimates.push(e.detail));
    });
    await openTemplate(page, job.pack, "corrector_unic");
    await page.waitForTimeout(2000);
    seen.before = await drawn(page, "FewStepUniC");
    await run(page);
    await page.waitForTimeout(2500); // the nodes ask again which plan has run
    seen.messages = await page.evaluate(() => window.estimates);
    seen.corrected = await drawn(page, "FewStepUniC");
    seen.solver = await drawn(page, "FewStepDPMSolverMultistep");
    if (job.shots) await page.screenshot({ path: `${job.shots}-estimates.png` });
  } catch (error) {
    seen.broke = String(error.stack || error);
    if (job.shots) await page.screenshot({ path: `${job.shots}-broke.png` });
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

main();
