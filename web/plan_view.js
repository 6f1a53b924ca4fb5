// The drawing of one node: an SVG, the same as text, and a line that says what it is drawn from.
import { drawEstimates, drawPlan, estimatesInWords } from "./plan_svg.js";

const HEIGHT = 260; // host/ui_layout.py leaves room for it

function loadStyle() {
  const href = new URL("./fewstep.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
  document.head.append(link);
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

export class PlanView {
  constructor() {
    loadStyle();
    this.height = HEIGHT;
    this.element = make("section", "fewstep-plan");
    this.element.setAttribute("aria-label", "Plan");
    this.plan = null;
    this.run = null; // the last run's sigmas and estimates
    this.facts = make("div", "fewstep-plan-facts");
    this.toggle = make("button", "fewstep-plan-toggle", "Table");
    this.toggle.type = "button";
    this.toggle.setAttribute("aria-pressed", "false");
    this.toggle.addEventListener("click", () => this.turn(this.text.hidden));
    this.picture = make("div", "fewstep-plan-picture");
    this.text = make("pre", "fewstep-plan-text");
    this.text.tabIndex = 0;
    this.basis = make("div", "fewstep-plan-basis");
    this.basis.setAttribute("role", "status");
    const head = make("div", "fewstep-plan-head");
    head.append(this.facts, this.toggle);
    this.element.append(head, this.picture, this.text, this.basis);
    for (const name of ["wheel", "pointerdown", "keydown"]) {
      this.text.addEventListener(name, (event) => event.stopPropagation()); // scrolling and selecting, not the canvas
    }
    this.turn(false);
    this.showMessage("The plan appears when the graph is read.");
  }

  /** The table as text instead of the picture. */
  turn(toText) {
    this.text.hidden = !toText;
    this.picture.hidden = toText;
    this.toggle.textContent = toText ? "Drawing" : "Table";
    this.toggle.setAttribute("aria-pressed", String(toText));
  }

  /** A plan, or the error that stands in its place. */
  show(plan) {
    if (plan.error) {
      this.showMessage(plan.error.message, !["NotKnownYet"].includes(plan.error.type));
      return;
    }
    const facts = factsOf(plan);
    this.plan = plan;
    this.element.classList.remove("fewstep-plan-empty", "fewstep-plan-error");
    this.element.setAttribute("aria-label", `Plan: ${facts}. ${plan.basis.text}`);
    this.facts.textContent = facts;
    this.picture.replaceChildren(drawPlan(plan, facts));
    this.showEstimates(this.run);
    this.basis.textContent = plan.basis.text;
    this.basis.classList.toggle("fewstep-plan-assumed", !plan.basis.known);
  }

  /** The error estimates of a run {sigmas, estimates}; drawn where the run has the steps that are shown. */
  showEstimates(run) {
    this.run = run;
    if (!this.plan) return;
    const estimates = run && sameLevels(run.sigmas, this.plan.sigmas) ? run.estimates : [];
    drawEstimates(this.picture.firstElementChild, this.plan, estimates);
    this.text.textContent = [this.plan.text, estimatesInWords(estimates), this.plan.citations].filter(Boolean).join("\n\n");
  }

  /** A sentence and no drawing. */
  showMessage(message, isError = false) {
    this.plan = null;
    this.element.classList.add("fewstep-plan-empty");
    this.element.classList.toggle("fewstep-plan-error", isError);
    this.element.setAttribute("aria-label", `Plan: ${message}`);
    this.facts.textContent = "";
    this.picture.replaceChildren();
    this.text.textContent = message;
    this.basis.textContent = message;
    this.basis.classList.remove("fewstep-plan-assumed");
  }
}

function sameLevels(a, b) {
  return a.length === b.length && a.every((value, i) => Math.abs(value - b[i]) <= 1e-3 * Math.abs(value));
}

function factsOf(plan) {
  const count = plan.nfe === null ? "evaluations chosen while running" : `${plan.nfe} evaluations`;
  const parts = [`${plan.steps} steps`, count];
  if (plan.peak_latents !== null) parts.push(`peak ${plan.peak_latents} latents`);
  if (plan.stochastic) parts.push("stochastic");
  if (plan.biased) parts.push("biased");
  return parts.join(", ");
}
