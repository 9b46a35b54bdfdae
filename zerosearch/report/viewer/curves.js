// One curve: lines and dots over the steps, levels across, and a cursor that says the figures of a step.

const EDGE = { top: 10, right: 12, bottom: 26, left: 44 };
const HEIGHT = 190;

function ticks(low, high, most, whole = false) {
  const rough = (high - low || 1) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  if (whole) step = Math.max(1, Math.ceil(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function scales(curve, width) {
  const points = curve.lines.flatMap((line) => line.points);
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value).concat(curve.levels.map((level) => level.value));
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const low = Math.min(0, ...values);
  const high = Math.max(...values, curve.high === null ? -Infinity : curve.high);
  const top = high === low ? low + 1 : curve.high === null ? high + (high - low) * 0.08 : high;
  const [inner, tall] = [width - EDGE.left - EDGE.right, HEIGHT - EDGE.top - EDGE.bottom];
  return {
    first, last, low, top,
    x: (step) => EDGE.left + (first === last ? 0.5 : (step - first) / (last - first)) * inner,
    y: (value) => EDGE.top + (1 - (value - low) / (top - low || 1)) * tall,
    step: (x) => first + ((x - EDGE.left) / inner) * (last - first),
  };
}

function drawing(curve, width) {
  const { first, last, low, top, x, y } = scales(curve, width);
  const across = (value, kind) => ({ class: kind, x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) });
  const grid = ticks(low, top, 4).map((value) => [
    drawn("line", across(value, "grid")),
    drawn("text", { class: "tick", x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" },
      Math.abs(value) >= 10000 ? `${value / 1000}k` : String(value)),
  ]);
  const below = ticks(first, last, Math.max(2, Math.floor(width / 80)), true).map((step) =>
    drawn("text", { class: "tick", x: x(step), y: HEIGHT - 8, "text-anchor": "middle" }, String(step)));
  const levels = curve.levels.map((level, place) => [
    drawn("rect", { class: "band", x: EDGE.left, width: width - EDGE.left - EDGE.right, y: y(level.value + level.error),
      height: Math.max(0, y(level.value - level.error) - y(level.value + level.error)) }),
    drawn("line", across(level.value, `level${place === 0 && curve.levels.length > 1 ? " before" : ""}`)),
  ]);
  const lines = curve.lines.map((line) => line.dots
    ? line.points.map(([step, value]) => drawn("circle", { class: `dot colour-${line.colour}`, cx: x(step), cy: y(value), r: 3 }))
    : [
      drawn("polyline", { class: `line colour-${line.colour}`, points: line.points.map(([s, v]) => `${x(s)},${y(v)}`).join(" ") }),
      line.points.length === 1 && drawn("circle", { class: `dot colour-${line.colour}`, cx: x(line.points[0][0]), cy: y(line.points[0][1]), r: 3.5 }),
    ]);
  return [grid, below, levels, lines];
}

function said(curve, step) {
  const figures = curve.lines.flatMap((line) => {
    const found = line.points.find(([each]) => each === step);
    return found ? [`${line.label} ${figure(found[1])}`] : [];
  });
  return `step ${step}: ${figures.join(", ")}`;
}

function legend(curve) {
  const lines = curve.lines.map((line) => element("span", { class: "key" },
    element("i", { class: `swatch colour-${line.colour}${line.dots ? " dots" : ""}` }), line.label));
  const levels = curve.levels.map((level, place) => element("span", { class: "key" },
    element("i", { class: `swatch across${place === 0 && curve.levels.length > 1 ? " before" : ""}` }), `${level.label} ${figure(level.value)}`));
  return curve.lines.length + curve.levels.length > 1 ? element("p", { class: "legend" }, lines, levels) : null;
}

/* onstep: what happens when a step is chosen, by a click or Enter. */
function curveFigure(curve, onstep) {
  const steps = [...new Set(curve.lines.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
  const newest = said(curve, steps[steps.length - 1]);
  const readout = element("p", { class: "readout", "aria-live": "polite" }, newest);
  const picture = drawn("svg", { height: HEIGHT, role: "img", tabindex: "0", "aria-label": `${curve.title}; ${newest}` });
  const whole = element("figure", { class: "curve" }, element("h3", {}, curve.title), legend(curve), picture, readout);
  const cursor = drawn("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
  let [scale, place] = [null, steps.length - 1];

  const point = (at) => {
    place = Math.min(steps.length - 1, Math.max(0, at));
    const x = scale.x(steps[place]);
    for (const [name, value] of [["x1", x], ["x2", x], ["visibility", "visible"]]) cursor.setAttribute(name, value);
    readout.textContent = said(curve, steps[place]);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = newest;
  };
  picture.addEventListener("pointermove", (event) => {
    const wanted = scale.step(event.clientX - picture.getBoundingClientRect().left);
    const nearest = steps.reduce((best, step, at) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? at : best), 0);
    point(nearest);
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("click", () => onstep && onstep(steps[place]));
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) point(place + move);
    else if (event.key === "Enter" && onstep) onstep(steps[place]);
    else return;
    event.preventDefault();
  });
  let drawnAt = 0;
  const draw = () => {
    const width = Math.max(240, picture.clientWidth || 340);
    if (width === drawnAt) return;
    drawnAt = width;
    scale = scales(curve, width);
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.replaceChildren(...drawing(curve, width).flat(Infinity).filter(Boolean), cursor);
  };
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(whole);
  return whole;
}
