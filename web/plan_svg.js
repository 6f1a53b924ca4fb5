// A plan as SVG: sigma and lambda against the step, the last run's error estimates, and the coefficients as a heat map.
// Colours come from fewstep.css.
const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 250; // about the width of a node, so that text has the size that fewstep.css gives it
const CHART = { left: 38, right: WIDTH - 34, top: 4, bottom: 64 };
const MAP = { left: CHART.left, right: WIDTH - 34, top: 82, bottom: 132 };
const STRIP = { left: CHART.left, right: CHART.right, top: 82, bottom: 106 }; // of the estimates; the map then moves down
const SHIFT = 34;
const HEIGHT = 146;
let drawings = 0;

function node(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const short = (value) => (value === null ? "∞" : Number(value.toPrecision(3)).toString());
/** A share of 1 in few letters: 2.9%, 0.31%, 4e-6. */
const share = (value) => (value >= 1e-3 ? `${Number((100 * value).toPrecision(2))}%` : value.toExponential(0));
const round = (value) => Math.round(value * 100) / 100;

/** From values to heights; a wide range of positive values is drawn by logarithm, with 0 at the bottom edge. */
function scale(values, { top, bottom }) {
  const finite = values.filter((value) => value !== null);
  const positive = finite.filter((value) => value > 0);
  const wide = positive.length > 1 && finite.every((value) => value >= 0) && Math.max(...positive) > 20 * Math.min(...positive);
  const map = wide ? Math.log : (value) => value;
  const known = wide ? positive : finite;
  const low = Math.min(...known);
  const high = Math.max(...known);
  const span = map(high) - map(low) || 1;
  const heightOf = (value) => (wide && value <= 0 ? bottom : bottom - 3 - ((map(value) - map(low)) / span) * (bottom - top - 6));
  return { low: wide && finite.includes(0) ? 0 : low, high, heightOf };
}

function curve(values, name, side) {
  const { low, high, heightOf } = scale(values, CHART);
  const across = (i) => CHART.left + (i * (CHART.right - CHART.left)) / Math.max(values.length - 1, 1);
  const points = values.map((v, i) => (v === null ? null : [round(across(i)), round(heightOf(v))])).filter(Boolean);
  const group = node("g", { class: `fewstep-${name}` });
  group.append(node("polyline", { points: points.map((p) => p.join(",")).join(" "), fill: "none" }));
  for (const [x, y] of points.length <= 60 ? points : []) {
    group.append(name === "sigma" ? node("circle", { cx: x, cy: y, r: 2 }) : node("rect", { x: x - 1.8, y: y - 1.8, width: 3.6, height: 3.6 }));
  }
  const at = side === "left" ? { x: CHART.left - 4, "text-anchor": "end" } : { x: CHART.right + 4, "text-anchor": "start" };
  const middle = (CHART.top + CHART.bottom) / 2 + 3;
  const words = [[short(high), CHART.top + 8], [name === "sigma" ? "σ" : "λ", middle], [short(low), CHART.bottom]];
  for (const [text, y] of words) group.append(node("text", { ...at, y }, text));
  return { group, across, heightOf };
}

function chart(plan) {
  const sigma = curve(plan.sigmas, "sigma", "left");
  const lambda = curve(plan.lambdas, "lambda", "right");
  const frame = node("g", { class: "fewstep-axis" });
  frame.append(
    node("line", { x1: CHART.left, y1: CHART.bottom, x2: CHART.right, y2: CHART.bottom }),
    node("text", { x: CHART.left, y: CHART.bottom + 12, "text-anchor": "middle" }, "0"),
    node("text", { x: (CHART.left + CHART.right) / 2, y: CHART.bottom + 12, "text-anchor": "middle" }, "step"),
    node("text", { x: CHART.right, y: CHART.bottom + 12, "text-anchor": "middle" }, String(plan.sigmas.length - 1)),
  );
  const inner = node("g", { class: "fewstep-inner" });
  for (const [step, level] of plan.inner) {
    const x = round(sigma.across(step + 0.5));
    const y = round(sigma.heightOf(level));
    inner.append(node("path", { d: `M${x - 2},${y - 2}l4,4m0,-4l-4,4` }));
  }
  return [frame, lambda.group, sigma.group, inner];
}

function heatMap({ rows, columns, values }) {
  const group = node("g", { class: "fewstep-map" });
  const strength = (value) => Math.log1p(10 * Math.abs(value)); // small weights stay visible beside large ones
  const largest = Math.max(...values.flat().filter((v) => v !== null).map(strength), 1e-9);
  const width = (MAP.right - MAP.left) / columns.length;
  const height = (MAP.bottom - MAP.top) / rows.length;
  group.append(node("rect", { class: "fewstep-map-ground", x: MAP.left, y: MAP.top, width: MAP.right - MAP.left, height: MAP.bottom - MAP.top }));
  values.forEach((row, i) => row.forEach((value, j) => {
    if (value === null) return;
    const cell = node("rect", {
      class: value < 0 ? "fewstep-negative" : "fewstep-positive", "fill-opacity": round(0.15 + (0.85 * strength(value)) / largest),
      x: round(MAP.left + j * width), y: round(MAP.top + i * height), width: round(width), height: round(height),
    });
    cell.append(node("title", {}, `${rows[i]}, ${columns[j]}: ${short(value)}`));
    group.append(cell);
  }));
  const name = (text, x, y, anchor) => node("text", { x, y, "text-anchor": anchor }, text);
  const half = width / 2;
  group.append(
    name("first", MAP.left - 3, MAP.top + 8, "end"), name("last", MAP.left - 3, MAP.bottom, "end"),
    name(`${columns[0]}, ${columns[1]} …`, MAP.left, MAP.bottom + 11, "start"),
    name(columns.at(-1), MAP.right - half, MAP.bottom + 11, "middle"),
  );
  return group;
}

/** The SVG element of a plan; its title and description say the same in words. */
export function drawPlan(plan, facts) {
  const id = `fewstep-plan-${(drawings += 1)}`;
  const height = plan.table ? HEIGHT : CHART.bottom + 16;
  const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc ${id}-run` });
  const levels = plan.sigmas.map(short).join(", ");
  svg.append(
    node("title", { id: `${id}-title` }, `${plan.label}: ${facts}`),
    node("desc", { id: `${id}-desc` }, `Sigma by step: ${levels}. Lambda by step: ${plan.lambdas.map(short).join(", ")}.`),
    node("desc", { id: `${id}-run` }),
    ...chart(plan),
    node("g", { class: "fewstep-estimate" }),
  );
  if (plan.table?.rows.length) svg.append(heatMap(plan.table));
  return svg;
}

/** Draws a run's error estimates [[step, value]...] into the SVG of its plan, in place of those before. */
export function drawEstimates(svg, plan, estimates) {
  const known = estimates.filter(([, value]) => value !== null);
  svg.querySelector(`desc[id$="-run"]`).textContent = estimatesInWords(estimates);
  svg.querySelector(".fewstep-map")?.setAttribute("transform", known.length ? `translate(0,${SHIFT})` : "");
  const height = (plan.table ? HEIGHT : CHART.bottom + 16) + (known.length ? SHIFT : 0);
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const group = svg.querySelector(".fewstep-estimate");
  group.replaceChildren();
  if (!known.length) return;
  const { low, high, heightOf } = scale(known.map(([, value]) => value), STRIP);
  const across = (step) => STRIP.left + ((step + 1) * (STRIP.right - STRIP.left)) / Math.max(plan.sigmas.length - 1, 1);
  const points = known.map(([step, value]) => [step, round(across(step)), round(heightOf(value)), value]);
  group.append(
    node("line", { x1: STRIP.left, y1: STRIP.bottom, x2: STRIP.right, y2: STRIP.bottom }),
    node("polyline", { points: points.map(([, x, y]) => `${x},${y}`).join(" "), fill: "none" }),
  );
  for (const [step, x, y, value] of points.length <= 60 ? points : []) {
    const mark = node("path", { d: `M${round(x - 2.5)},${round(y + 2)}h5l-2.5,-4.5z` });
    mark.append(node("title", {}, `step ${step + 1}: ${share(value)}`));
    group.append(mark);
  }
  const left = { x: STRIP.left - 4, "text-anchor": "end" };
  group.append(
    node("text", { ...left, y: STRIP.top + 7 }, share(high)), node("text", { ...left, y: STRIP.bottom + 2 }, share(low)),
    node("text", { x: STRIP.right + 4, y: STRIP.top + 7 }, "error"), node("text", { x: STRIP.right + 4, y: STRIP.bottom + 2 }, "est."),
  );
}

/** The same as a sentence; empty without estimates. */
export function estimatesInWords(estimates) {
  const words = estimates.map(([step, value]) => `step ${step + 1}: ${value === null ? "not finite" : share(value)}`);
  return words.length ? `Error estimates of the last run: ${words.join(", ")}.` : "";
}
