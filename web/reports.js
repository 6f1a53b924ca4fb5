// What a node reports after a run (its choice, what was found in a file, warnings) as text in the node, in both renderers.
import { app } from "../../scripts/app.js";

const WIDGET = "fewstep_report";
const NODES = [
  "FewStepAdvisor", "FewStepLoadDistilledLoRA", "FewStepDistilledPreset", "FewStepLoadRoutedAdapter", "FewStepLoRAOverSteps",
  "FewStepCalibrateMoments", "FewStepCalibratePlan", "FewStepCalibrateRatios", "FewStepCalibrateStatistics", "FewStepShowStatistics",
];
const HEIGHT = 90; // five lines; a larger node shows more

/** Gives a node the element that shows its report; there from the start, as the newer renderer sees no widget that comes later. */
function place(node) {
  const element = document.createElement("div");
  element.className = "fewstep-plan fewstep-report";
  element.style.minHeight = `${HEIGHT - 10}px`;
  const text = document.createElement("pre");
  text.className = "fewstep-plan-text";
  text.style.whiteSpace = "pre-wrap";
  text.tabIndex = 0;
  text.setAttribute("role", "status");
  text.setAttribute("aria-label", "Report");
  text.textContent = "The report appears after a run.";
  for (const name of ["wheel", "pointerdown", "keydown"]) {
    text.addEventListener(name, (event) => event.stopPropagation()); // scrolling and selecting, not the canvas
  }
  element.append(text);
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getValue: () => "", setValue: () => undefined,
  });
  widget.serialize = false;
  return text;
}

app.registerExtension({
  name: "fewstep.reports",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const text = place(node);
    const before = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest);
      const lines = output?.text;
      if (Array.isArray(lines) && lines.length) text.textContent = lines.join("\n");
    };
  },
});
