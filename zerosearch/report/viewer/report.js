// The report, section by section.

const report = JSON.parse(document.getElementById("data").textContent);

function section(title, id, ...children) {
  return element("section", { id }, element("h2", {}, title), children);
}

function score(run) {
  const { after, before } = run.scores;
  if (!after) return null;
  return element("div", { class: "score" },
    element("p", { class: "big" }, after[0], element("span", { class: "error" }, `± ${after[1]}`)),
    element("p", { class: "quiet" }, `F1 with the real search engine, ${counted(Number(after[2]), "question")}`),
    before && element("p", {}, "before reinforcement ", element("b", {}, before[0]), element("span", { class: "error" }, ` ± ${before[1]}`)),
    element("p", { class: "final" }, element("code", {}, run.final)));
}

function alarms(run) {
  if (!run.curves.some((curve) => curve.title.startsWith("Reward"))) return element("p", { class: "quiet" }, "No step was taken.");
  if (!run.alarms.length) return element("p", { class: "well" }, "✓ No figure was beyond its limit.");
  return element("ul", { class: "alarms" }, run.alarms.map((alarm) => element("li", { class: alarm.stopped ? "stopped" : null },
    element("b", {}, alarm.since === alarm.until ? `step ${alarm.since}` : `steps ${alarm.since} to ${alarm.until}`),
    ` ${alarm.sentence}${alarm.stopped ? "; the run stops for this" : ""}`)));
}

function tables(content) {
  return content.tables.map((each, place) => table(each, place < 2));
}

function pairs(rows) {
  return element("dl", { class: "pairs" }, rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function runView(run, number) {
  const episodes = browser(run, number);
  const reinforcement = run.sources.find((source) => source.name === "reinforcement");
  const toStep = (curve) => reinforcement && !curve.title.startsWith("Loss of") ? (step) => {
    episodes.show({ source: "reinforcement", step: String(step) });
    document.getElementById("episodes").scrollIntoView();
  } : null;
  const view = [
    run.failure && element("p", { class: "failure", role: "alert" }, element("b", {}, "This run ended early. "), run.failure),
    element("div", { class: "head" }, score(run), pairs(run.recipe)),
    run.tables.length > 0 && section("Results", "results", tables(run),
      run.verdicts.map((each) => element("p", { class: each.holds ? "well" : "ill" }, `${each.holds ? "✓" : "✗"} Control: ${each.said}`)),
      element("p", { class: "quiet" }, run.legend), run.notes.map((note) => element("p", { class: "quiet" }, note))),
    run.curves.length > 0 && section("Learning", "learning",
      reinforcement && element("p", { class: "quiet" }, "Choose a step to read its episodes."),
      element("div", { class: "curves" }, run.curves.map((curve) => curveFigure(curve, toStep(curve))))),
    section("Health", "health", alarms(run)),
    section("Episodes", "episodes", episodes.whole),
    section("Recipe and versions", "recipe",
      element("details", {}, element("summary", {}, "the resolved recipe"), element("pre", { tabindex: "0" }, run.settings)),
      element("details", {}, element("summary", {}, "versions"), pairs(run.versions))),
  ];
  return { view: view.filter(Boolean), episodes };
}

function start() {
  const place = document.getElementById("report");
  const body = element("div");
  let shown = null;
  const tabs = report.runs.map((run, number) => element("button", { type: "button", onclick: () => open(number) }, run.name));

  function open(number) {
    if (Number(addressed().run || 0) !== number) history.replaceState(null, "", number ? `#run=${number}` : "#");
    shown = runView(report.runs[number], number);
    body.replaceChildren(...shown.view);
    tabs.forEach((tab, each) => tab.setAttribute("aria-pressed", String(each === number)));
  }

  const together = report.together.map((each) => element("section", {}, element("h2", {}, each.title),
    each.final && element("p", { class: "final" }, element("code", {}, each.final)), tables(each)));
  const several = report.runs.length > 1;
  place.append(
    element("header", {}, element("p", { class: "kind" }, "ZeroSearch"), element("h1", {}, several ? counted(report.runs.length, "run") : report.title),
      element("p", { class: "quiet" }, element("a", { href: "#episodes" }, "to the episodes ↓"))),
    ...(several ? together : []),
    ...(several ? [element("p", { class: "tabs", role: "group", "aria-label": "runs" }, tabs)] : []),
    body,
    ...(several ? [] : together));
  const wanted = addressed().episode;
  open(Math.min(report.runs.length - 1, Math.max(0, Number(addressed().run) || 0)));
  if (wanted) requestAnimationFrame(() => document.getElementById("episodes").scrollIntoView({ behavior: "instant" }));

  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) shown.episodes.show(addressed());
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const by = { j: 1, k: -1 }[event.key];
    if (by) shown.episodes.move(by);
    else if (event.key === "/" && shown.episodes.fields.find) {
      event.preventDefault();
      shown.episodes.fields.find.focus();
    }
  });
}

start();
