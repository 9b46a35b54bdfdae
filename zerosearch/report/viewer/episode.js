// One episode, read from top to bottom: who wrote what, what was searched and found, what it earned.

const SAYS = { think: "thinks", search: "searches", information: "reads", answer: "answers", text: "writes" };
const VERDICTS = { right: "right", partly: "partly right", wrong: "wrong", none: "no answer" };
const SIGNS = { right: "✓", partly: "◐", wrong: "✗", none: "–" };
const KINDS = { one_hop: "one hop", two_hop: "two hops", comparison: "comparison" };

function verdict(episode) {
  if (episode.answer === null) return "none";
  return episode.em === 1 ? "right" : episode.f1 > 0 ? "partly" : "wrong";
}

function kindName(kind) {
  return KINDS[kind] || kind.replaceAll("_", " ");
}

function tokensBy(episode, by) {
  return episode.segments.filter((segment) => segment.by === by).reduce((sum, segment) => sum + segment.tokens, 0);
}

/* The trajectory's tokens in proportion: what the policy wrote, and what it was given. */
function strip(episode, learned) {
  const shares = ["policy", "observation", "prompt"].map((by) => [by, tokensBy(episode, by)]);
  const bar = element("div", { class: "strip", "aria-hidden": "true" }, episode.segments.filter((each) => each.tokens).map((segment) => {
    const part = element("i", { class: `by-${segment.by}`, title: `${segment.by}: ${counted(segment.tokens, "token")}` });
    part.style.flexGrow = segment.tokens;
    return part;
  }));
  const said = { policy: "the policy wrote", observation: "it read", prompt: "of the prompt" };
  const keys = shares.map(([by, tokens]) => element("span", { class: "key" },
    element("i", { class: `swatch by-${by}` }), `${counted(tokens, "token")} ${said[by]}${learned[by]}`));
  return [bar, element("p", { class: "legend" }, keys)];
}

/* Documents in the form in which they stand in the page; nothing is left out. */
function documentsOf(text, find, golden) {
  return text.split(/^(?=Doc \d+(?:\(Title: |: ))/m).map((part) => {
    const [, number, title, rest] = /^Doc (\d+)\(Title: ([^\n]*?)\) ([^]*)$/.exec(part) || [];
    if (!number) return element("div", { class: "document" }, element("p", {}, marked(part.trimEnd(), find, golden)));
    return element("div", { class: "document" },
      element("h5", {}, element("span", { class: "number" }, number), marked(title, find, golden)),
      element("p", {}, marked(rest.trimEnd(), find, golden)));
  });
}

function pageLabels(search) {
  if (!search) return [];
  const told = { useful: "the simulator was told to write a useful page", noisy: "the simulator was told to write a noisy page" };
  return [
    search.noise
      ? element("span", { class: `badge ${search.noise}`, title: told[search.noise] }, `told to be ${search.noise}`)
      : element("span", { class: "badge real", title: "no label: this page was not simulated" }, "not simulated"),
    search.shown && element("span", { class: "badge shown", title: "a document of this page holds a golden answer" }, "shows the answer"),
    search.error && element("span", { class: "badge error" }, search.error),
    element("span", { class: "quiet" }, counted(search.documents, "document")),
  ];
}

function partOf(sort, text, segment, episode, find) {
  const reads = segment.by === "observation";
  const says = reads && sort === "text" ? "is told" : segment.by === "prompt" ? "prompt" : SAYS[sort];
  const golden = sort === "information" || sort === "answer" ? episode.golden : [];
  const labels = sort === "information" ? pageLabels(episode.searches[segment.page]) : [];
  const body = sort === "information" ? documentsOf(text, find, golden) : element("p", {}, marked(text, find, golden));
  return element("div", { class: `part ${sort}${sort === "answer" ? ` ${verdict(episode)}` : ""}` }, element("h4", {}, says, labels), body);
}

/* What the loss makes of a writer's tokens, where episodes are learned from. */
function learnedFrom(source) {
  if (source.name !== "reinforcement" && source.name !== "demonstrations") return { policy: "", observation: "", prompt: "" };
  return { policy: ", learned from", observation: ", masked", prompt: ", masked" };
}

function segmentOf(segment, run, episode, find) {
  const parts = segment.parts.map(([sort, text]) => partOf(sort, run.texts[text], segment, episode, find));
  const said = `${segment.by}, ${counted(segment.tokens, "token")}${learnedFrom(run.sources[episode.source])[segment.by]}`;
  if (segment.by === "prompt") {
    return element("li", { class: "segment by-prompt" },
      element("details", {}, element("summary", {}, said), parts));
  }
  return element("li", { class: `segment by-${segment.by}` }, element("p", { class: "by" }, said), parts);
}

function earned(episode) {
  const parts = Object.entries(episode.parts).map(([name, value]) => `${name.replaceAll("_", " ")} ${figure(value)}`);
  const scores = [["F1", figure(episode.f1)], ["EM", String(episode.em)]];
  if (episode.reward !== null) scores.push(["reward", `${figure(episode.reward)}${parts.length ? ` (${parts.join(", ")})` : ""}`]);
  scores.push(["searches", String(episode.searches.length)]);
  if (episode.invalid) scores.push(["invalid actions", String(episode.invalid)]);
  if (episode.cut[0]) scores.push(["turns cut off", String(episode.cut[0])]);
  if (episode.cut[1]) scores.push(["pages cut", String(episode.cut[1])]);
  if (episode.ending !== "answered") scores.push(["ended", episode.ending.replaceAll("_", " ")]);
  return scores;
}

function episodeView(episode, run, find) {
  const source = run.sources[episode.source];
  const how = verdict(episode);
  const about = [source.name, kindName(episode.kind), episode.family.replaceAll("_", " "),
    episode.step ? `step ${episode.step}, sample ${episode.sample}` : ""].filter(Boolean).join(" · ");
  const facts = [
    ["golden", episode.golden.map((answer) => element("span", { class: "chip" }, answer))],
    ["answer", element("span", { class: `chip ${how}` }, episode.answer === null ? "no answer" : episode.answer)],
  ];
  return [
    element("p", { class: "about" }, about),
    element("h3", { class: "question" }, marked(episode.question, find)),
    element("dl", { class: "facts" }, facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    element("dl", { class: "facts scores" }, earned(episode).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    strip(episode, learnedFrom(source)),
    element("ol", { class: "segments" }, episode.segments.map((segment) => segmentOf(segment, run, episode, find))),
    element("p", { class: "quiet place" }, `Question ${episode.id}${episode.set ? ` of ${episode.set}` : ""}; line ${episode.line} of ${source.file}.`),
  ];
}
