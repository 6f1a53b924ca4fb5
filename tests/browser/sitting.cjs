// One sitting at a frontend: node sitting.cjs '{"url", "chromium", "vue", "theme", "shots", "parts", "pack", "template", "nodes"}'.
// Opens the page and does each part: "plans", "graph" or "templates". Prints what was seen as JSON; where a part breaks off, "broke" says why and
// which picture shows the page then. "shots" is the start of the pictures' names.
const { launch, open, watch } = require("./page.cjs");
const PARTS = { plans: require("./plans.cjs"), graph: require("./graph.cjs"), templates: require("./templates.cjs") };

async function main() {
  const job = JSON.parse(process.argv[2]);
  const seen = { vue: job.vue, errors: [], console: [], failed: [] };
  const { browser, page } = await launch(job);
  const shot = (name) => page.screenshot({ path: `${job.shots}-${name}.png` });
  let doing = "opening the page";
  try {
    watch(page, job.url, seen);
    await open(page, job);
    seen.version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ || null);
    for (const name of job.parts) {
      seen[name] = {};
      await PARTS[name](page, job, seen[name], shot, (what) => { doing = `${name}: ${what}`; });
    }
  } catch (error) {
    seen.broke = `${doing}: ${error.stack || error}`;
    await shot("broke").then(() => { seen.picture = `${job.shots}-broke.png`; }, () => undefined);
  } finally {
    await browser.close();
  }
  process.stdout.write(JSON.stringify(seen));
}

main().catch((error) => {
  process.stderr.write(String(error.stack || error));
  process.exit(1);
});
