// Titles in the host's own colours by what a node does. Categories are translated before a script sees them, so nodes are listed.
import { app } from "../../scripts/app.js";

const PALETTE = {
  "solvers": "blue", "correctors": "cyan", "schedules": "yellow", "calibration": "purple", "distilled": "green", "demo": "brown"
};
const NODES = {
  "solvers": [
    "FewStepDDIM", "FewStepDPMSolverMultistep", "FewStepDPMSolverSinglestep", "FewStepDPMSolverAdaptive", "FewStepDPMSolverSDE",
    "FewStepSASolver", "FewStepUniPC", "FewStepDEIS", "FewStepDEISRungeKutta", "FewStepIPNDM", "FewStepPNDM", "FewStepGradientEstimation",
    "FewStepConsistency", "FewStepFittedSolver", "FewStepDPMSolverV3"
  ],
  "correctors": ["FewStepUniC", "FewStepTimeShift", "FewStepDynamicCompensation", "FewStepDualFast", "FewStepTeleport",
    "FewStepSigmaClock"],
  "schedules": [
    "FewStepSchedule", "FewStepUniformTimeSchedule", "FewStepUniformLambdaSchedule", "FewStepQuadraticTimeSchedule",
    "FewStepKarrasSchedule", "FewStepExponentialSchedule", "FewStepEDMSchedule", "FewStepBetaSchedule", "FewStepShiftedSchedule",
    "FewStepTrailingSchedule", "FewStepKLOptimalSchedule"
  ],
  "calibration": [
    "FewStepLoadCalibration", "FewStepCalibrateMoments", "FewStepCalibratePlan", "FewStepCalibrateRatios",
    "FewStepCalibrateStatistics", "FewStepShowStatistics", "FewStepOfficialStatistics", "FewStepPromptList"
  ],
  "distilled": ["FewStepLoadDistilledLoRA", "FewStepDistilledPreset", "FewStepLoadRoutedAdapter", "FewStepLoRAOverSteps"],
  "demo": ["FewStepDemoCheckpoint"]
};

const colours = new Map(Object.entries(NODES).flatMap(([part, ids]) => ids.map((id) => [id, PALETTE[part]])));

app.registerExtension({
  name: "fewstep.colours",
  nodeCreated(node) {
    const named = window.LGraphCanvas?.node_colors?.[colours.get(node.comfyClass)];
    if (named && !node.color) node.color = named.color;  // the title alone: drawings stay on the theme's own ground
  },
});
