// Choosing an episode: filters, the list of what they leave, and the one that is shown. The address says which.

const AT_ONCE = 60;

function addressed() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function keyOf(episode, run) {
  return `${run.sources[episode.source].name}:${episode.line}`;
}

function option(value, text, chosen) {
  return element("option", { value, selected: value === chosen }, text);
}

/* run: what is shown; number: its place among the runs of the page. */
function browser(run, number) {
  const asked = addressed();
  const state = { source: "", step: "", kind: "", verdict: "", find: "" };
  const fields = {};
  const list = element("ol", { class: "list" });
  const count = element("p", { class: "quiet", role: "status" });
  const detail = element("article", { class: "episode", tabindex: "-1", "aria-label": "the chosen episode" });
  const words = new Map();
  let [found, chosen, limit] = [[], null, AT_ONCE];

  const wordsOf = (episode) => {
    if (!words.has(episode)) {
      const texts = episode.segments.filter((each) => each.by !== "prompt").flatMap((each) => each.parts.map(([, text]) => run.texts[text]));
      words.set(episode, [episode.question, ...episode.golden, ...texts].join("\n").toLowerCase());
    }
    return words.get(episode);
  };
  const fits = (episode) =>
    run.sources[episode.source].name === state.source &&
    (!state.step || String(episode.step) === state.step) &&
    (!state.kind || state.kind === `kind ${episode.kind}` || state.kind === `family ${episode.family}`) &&
    (!state.verdict || verdict(episode) === state.verdict) &&
    (!state.find || wordsOf(episode).includes(state.find.toLowerCase()));

  const remember = () => {
    const kept = Object.entries({ ...state, episode: chosen ? keyOf(chosen, run) : "" }).filter(([, value]) => value);
    if (number) kept.unshift(["run", String(number)]);
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  };
  const choose = (episode, focus) => {
    chosen = episode || null;
    detail.replaceChildren(...(chosen ? episodeView(chosen, run, state.find) : [element("p", { class: "quiet" }, "No episode fits.")]).flat(Infinity));
    for (const row of list.querySelectorAll("a")) {
      const own = chosen !== null && row.dataset.key === keyOf(chosen, run);
      if (own) {
        row.setAttribute("aria-current", "true");
        list.scrollTop += Math.min(0, row.offsetTop - list.scrollTop) + Math.max(0, row.offsetTop + row.offsetHeight - list.scrollTop - list.clientHeight);
      } else row.removeAttribute("aria-current");
    }
    if (focus) detail.focus({ preventScroll: true });
    remember();
  };
  const rowOf = (episode) => {
    const how = verdict(episode);
    const meta = [episode.step ? `step ${episode.step}, sample ${episode.sample}` : kindName(episode.kind), `F1 ${episode.f1.toFixed(2)}`, counted(episode.searches.length, "search", "searches")];
    return element("li", {}, element("a", { href: `#${new URLSearchParams({ episode: keyOf(episode, run) })}`, "data-key": keyOf(episode, run),
      onclick: (event) => { event.preventDefault(); choose(episode); if (matchMedia("(max-width: 56rem)").matches) detail.scrollIntoView(); } },
      element("span", { class: `sign ${how}`, title: VERDICTS[how] }, SIGNS[how]),
      element("span", { class: "text" }, marked(episode.question, state.find), element("span", { class: "quiet" }, meta.join(" · ")))));
  };
  const fill = () => {
    const shown = found.slice(0, limit).map(rowOf);
    if (found.length > limit) {
      shown.push(element("li", {}, element("button", { class: "more", onclick: () => { limit += AT_ONCE; fill(); } }, `show more of ${found.length}`)));
    }
    list.replaceChildren(...shown);
    choose(chosen);
  };
  const filter = () => {
    found = run.episodes.filter(fits);
    limit = AT_ONCE;
    if (!found.includes(chosen)) chosen = found[0] || null;
    limit = Math.max(limit, found.indexOf(chosen) + 1);
    const source = run.sources.find((each) => each.name === state.source);
    const left = source.total - source.shown;
    count.replaceChildren(`${counted(found.length, "episode")} of ${source.shown.toLocaleString("en")} here`,
      ...(left ? [element("span", { class: "left-out" }, `; ${left.toLocaleString("en")} more are only in ${source.file}`)] : []));
    fill();
  };
  const refill = () => {
    const own = run.episodes.filter((episode) => run.sources[episode.source].name === state.source);
    const steps = [...new Set(own.map((episode) => episode.step))].filter(Boolean);
    if (!steps.includes(Number(state.step))) state.step = "";
    fields.step.replaceChildren(option("", "all steps", state.step), ...steps.map((step) => option(String(step), `step ${step}`, state.step)));
    fields.step.parentNode.hidden = steps.length < 2;
    const kinds = [...new Set(own.map((episode) => episode.kind))].filter(Boolean).sort();
    fields.kind.replaceChildren(option("", "all kinds", state.kind), ...kinds.map((kind) => element("optgroup", { label: kindName(kind) },
      option(`kind ${kind}`, `all of ${kindName(kind)}`, state.kind),
      [...new Set(own.filter((each) => each.kind === kind).map((each) => each.family))].filter(Boolean).sort().map((family) =>
        option(`family ${family}`, family.replaceAll("_", " "), state.kind)))));
    if (fields.kind.value !== state.kind) state.kind = "";
    fields.kind.parentNode.hidden = !kinds.length;
  };
  const field = (name, label, control) => {
    fields[name] = control;
    control.addEventListener(name === "find" ? "input" : "change", () => {
      state[name] = control.value;
      if (name === "source") refill();
      filter();
    });
    return element("label", {}, element("span", {}, label), control);
  };
  const show = (wanted) => {
    const asks = run.episodes.find((episode) => keyOf(episode, run) === wanted.episode);
    for (const name of Object.keys(state)) state[name] = wanted[name] || "";
    if (!run.sources.some((source) => source.name === state.source)) {
      state.source = run.sources[asks ? asks.source : 0].name;
    }
    refill();
    for (const name of Object.keys(state)) fields[name].value = state[name];
    chosen = asks || null;
    filter();
  };
  const move = (by) => {
    const place = found.indexOf(chosen) + by;
    if (place < 0 || place >= found.length) return;
    chosen = found[place];
    if (place >= limit) { limit += AT_ONCE; fill(); } else choose(chosen);
  };

  if (!run.episodes.length) return { whole: element("p", { class: "quiet" }, "No trajectory was written."), show: () => {}, move: () => {}, fields };
  const filters = element("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    field("source", "stage or system", element("select", {}, run.sources.map((source) => option(source.name, source.name)))),
    field("step", "step", element("select")),
    field("kind", "kind or family", element("select")),
    field("verdict", "answer", element("select", {}, option("", "right and wrong"), Object.entries(VERDICTS).map(([value, text]) => option(value, text)))),
    field("find", "text", element("input", { type: "search", placeholder: "in questions and episodes  ( / )", autocomplete: "off", spellcheck: "false" })));
  list.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    move(by);
    const row = list.querySelector("[aria-current]");
    if (row) row.focus();
  });
  const steps = element("p", { class: "steps" },
    element("button", { type: "button", onclick: () => move(-1) }, "← previous"), element("button", { type: "button", onclick: () => move(1) }, "next →"),
    element("span", { class: "quiet keys" }, "keys: ", element("kbd", {}, "j"), " ", element("kbd", {}, "k"), " next and previous, ", element("kbd", {}, "/"), " text"));
  const whole = element("div", {}, filters, element("div", { class: "panes" },
    element("nav", { "aria-label": "episodes" }, count, list), element("div", {}, steps, detail)));
  show(asked);
  return { whole, show, move, fields };
}
