// FewStep in the browser: every solver, corrector, sampler and inspector node shows the plan that will run.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LivePlans } from "./live_plans.js";

const live = new LivePlans(app, api);

app.registerExtension({
  name: "fewstep.plan",
  setup: () => live.start(),
  nodeCreated: (node) => live.adopt(node),
});
