// Keeps the drawings in the nodes up to date: notices that the graph has changed, asks the server, redraws; while sampling it
// adds the error estimates that the server sends.
import { PlanView } from "./plan_view.js";

const WIDGET = "fewstep_plan";
const LOOK_EVERY = 250; // ms; no event tells of every change in both renderers (undo, pasted nodes, other packs' scripts)
const KEPT_RUNS = 32;
const LONGEST_TEXT = 200; // prompts do not matter for a plan

const WITH_MORE = ["FewStepKSampler", "FewStepPlanInspector", "FewStepFittedSolver"]; // with a plan, though not a SAMPLER alone

/** Whether a node has a plan to show. */
function hasPlan(node) {
  const kind = node.constructor?.comfyClass ?? node.comfyClass ?? "";
  if (!kind.startsWith("FewStep")) return false;
  const outputs = node.outputs ?? [];
  return WITH_MORE.includes(kind) || (outputs.length === 1 && outputs[0].type === "SAMPLER");
}

/** A text that changes with what decides the plans: nodes, their modes, widgets and links; not places, colours or titles. */
function signature(graph) {
  const parts = [];
  for (const node of graph?._nodes ?? []) {
    const values = (node.widgets ?? []).filter((w) => w.name !== WIDGET && w.serialize !== false).map((w) => w.value);
    parts.push(node.id, node.type, node.mode, values, (node.inputs ?? []).map((input) => input.link));
    if (node.subgraph) parts.push(signature(node.subgraph));
  }
  return JSON.stringify(parts, (key, value) => (typeof value === "object" && value && !Array.isArray(value) ? null : value));
}

/** The graph without what plans do not need: titles and long texts. */
function slim(prompt) {
  const nodes = {};
  for (const [id, { class_type, inputs }] of Object.entries(prompt)) {
    const kept = Object.entries(inputs).filter(([, value]) => !(typeof value === "string" && value.length > LONGEST_TEXT));
    nodes[id] = { class_type, inputs: Object.fromEntries(kept) };
  }
  return nodes;
}

/** The id under which a node runs: nodes inside subgraphs have the ids of those before theirs. */
function executionId(node, prompt) {
  const id = String(node.id);
  const inside = node.graph?.rootGraph && node.graph !== node.graph.rootGraph;
  if (!inside) return id in prompt ? id : null;
  return Object.keys(prompt).find((key) => key.endsWith(`:${id}`) && prompt[key].class_type === node.comfyClass) ?? null;
}

export class LivePlans {
  constructor(app, api) {
    this.app = app;
    this.api = api;
    this.views = new Map(); // node -> {view, asked}
    this.seen = "";
    this.changing = false;
    this.busy = false;
    this.runs = new Map(); // recipe -> its last run's sigmas and estimates
  }

  start() {
    setInterval(() => this.look(), LOOK_EVERY);
    this.api.addEventListener("execution_success", () => this.again()); // a run tells which model and sigmas it used
    this.api.addEventListener("fewstep.estimates", ({ detail }) => this.estimate(detail));
  }

  /** Gives a new node its drawing. */
  adopt(node) {
    if (!hasPlan(node)) return;
    const view = new PlanView();
    const widget = node.addDOMWidget(WIDGET, WIDGET, view.element, {
      serialize: false, hideOnZoom: false, getMinHeight: () => view.height, getValue: () => "", setValue: () => undefined,
    });
    widget.serialize = false;
    this.views.set(node, { view, asked: null });
    const removed = node.onRemoved;
    node.onRemoved = (...args) => {
      this.views.delete(node);
      return removed?.apply(node, args);
    };
    this.seen = "";
  }

  /** Shows a run's estimates in every node whose solver it runs. */
  estimate(run) {
    this.runs.delete(run.recipe);
    this.runs.set(run.recipe, run);
    if (this.runs.size > KEPT_RUNS) this.runs.delete(this.runs.keys().next().value);
    for (const { view } of this.views.values()) {
      if (view.plan?.recipe === run.recipe) view.showEstimates(run);
    }
  }

  /** Asks anew for every drawing. */
  again() {
    for (const entry of this.views.values()) entry.asked = null;
    this.seen = "";
  }

  /** Refreshes once the graph has changed and has been still for one look: typing a number asks once. */
  look() {
    if (document.hidden || !this.views.size || this.busy) return;
    const found = signature(this.app.rootGraph ?? this.app.graph);
    if (found !== this.seen) {
      this.seen = found;
      this.changing = true;
    } else if (this.changing) {
      this.changing = false;
      this.busy = true;
      this.refresh().finally(() => (this.busy = false));
    }
  }

  async refresh() {
    let prompt;
    try {
      prompt = slim((await this.app.graphToPrompt()).output);
    } catch {
      return; // a graph that is being put together; the next change asks again
    }
    for (const [node, entry] of [...this.views]) {
      const id = executionId(node, prompt);
      if (id === null) {
        entry.asked = null;
        entry.view.showMessage("This node is muted or bypassed.");
        continue;
      }
      const body = JSON.stringify({ prompt, node: id });
      if (entry.asked === body) continue;
      entry.asked = body;
      const plan = await this.ask(body);
      entry.view.run = this.runs.get(plan.recipe) ?? null;
      entry.view.show(plan);
    }
  }

  async ask(body) {
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
      const response = await this.api.fetchApi("/fewstep/plan", options);
      return await response.json();
    } catch (error) {
      return { error: { type: "NoAnswer", message: `the server gave no plan: ${error.message}` } };
    }
  }
}
