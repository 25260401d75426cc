"use strict";
// The page: what the coordinator's streams say, as elements. Texts of jobs, nodes and logs are only ever put in as
// text nodes, so that nothing in them can be markup. No request goes anywhere but to this coordinator.

const main = document.getElementById("main");
const TOKEN = "elastic-token";

// ---- elements

/** h("td", {class: "num"}, "7"): children are elements or texts; null leaves one out. */
function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value != null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child != null) element.append(child);
  return element;
}

/** Changes a place only if it would look different, so that a focus or a selection in it stays. */
function put(place, ...children) {
  const next = h("div", {}, ...children);
  if (next.innerHTML !== place.innerHTML) place.replaceChildren(...next.childNodes);
}

// ---- words

const number = new Intl.NumberFormat("en");
const count = (n) => n < 9999.5 ? n.toFixed(0) : n < 999950 ? (n / 1e3).toFixed(1) + "k" : (n / 1e6).toFixed(2) + "M";
const loss = (x) => x == null ? "–" : x !== 0 && Math.abs(x) < 0.001 ? x.toExponential(2) : x.toFixed(4);
const percent = (x) => x == null ? "–" : (100 * x).toFixed(2) + " %";
function span(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 10) return (ms / 1000).toFixed(1) + " s";
  if (s < 120) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min " + (s % 60) + " s";
  return s < 172800 ? Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min" : Math.floor(s / 86400) + " days";
}
const ago = (unix) => span(Math.max(0, Date.now() - unix)) + " ago";
const clock = (unix) => new Date(unix).toLocaleTimeString("en-GB");
const state = (word) => h("span", { class: "state " + word }, word);
const jobLink = (job) => h("a", { href: "#/jobs/" + encodeURIComponent(job) }, job);

// ---- streams

/** Whoever asks must be let in: sends the token, and asks for one where it is wanted. */
async function ask(path, signal) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (answer.status === 401) throw Object.assign(new Error((await answer.json()).error), { wantsToken: true });
  if (!answer.ok) throw Object.assign(new Error((await answer.json().catch(() => ({}))).error || "HTTP " + answer.status), { told: true });
  return answer;
}

/** Reads server-sent events by fetch, because EventSource cannot send a token. */
async function read(path, signal, on) {
  const answer = await ask(path, signal);
  on("open", null);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      let kind = "message", data = "";
      for (const line of rest.slice(0, end).split("\n")) {
        if (line.startsWith("event:")) kind = line.slice(6).trim();
        else if (line.startsWith("data:")) data += line.slice(5).replace(/^ /, "");
      }
      if (data) on(kind, JSON.parse(data));
    }
  }
}

let live = new AbortController();

/** The one stream of the page that is shown; comes back by itself, and begins with all of it each time. */
async function follow(path, on) {
  const signal = live.signal;
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 8000)) {
    try {
      await read(path, signal, (kind, data) => {
        if (kind === "open") return tell("live", "live");
        pause = 500;
        on(kind, data);
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error.wantsToken) return askForToken(error.message);
      tell("off", "not reached: trying again");
    }
    if (!signal.aborted) {
      tell("off", "not reached: trying again");
      await new Promise((then) => setTimeout(then, pause));
    }
  }
}

function tell(now, words) {
  const link = document.getElementById("link");
  link.dataset.state = now;
  if (link.textContent !== words) link.textContent = words;
}

function askForToken(why) {
  tell("off", "a token is wanted");
  const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const enter = (event) => {
    event.preventDefault();
    sessionStorage.setItem(TOKEN, field.value.trim());
    show();
  };
  const had = sessionStorage.getItem(TOKEN) != null;
  main.replaceChildren(h("form", { class: "card ask", submit: enter },
    h("h1", {}, "Token"),
    h("p", { class: "why", role: had ? "alert" : null }, had ? why : "This cluster shows itself to whoever has a token."),
    h("label", { for: "token" }, "Token", field),
    h("button", {}, "Open"),
    h("p", { class: "soft" }, "It is kept in this tab only.")));
  field.focus();
}

function healthNote(health) {
  if (!health.leads) return h("p", { class: "note" }, "This coordinator stands by" + (health.leader ? "; the leader is " + health.leader + "." : "."));
  if (health.store_away) return h("p", { class: "note" }, "The store is away: " + health.store_away + ". Training goes on.");
  return null;
}

// ---- all jobs, all nodes

function cluster(draw) {
  const jobs = new Map(), nodes = new Map();
  follow("/api/events", (kind, data) => {
    if (kind === "whole") (jobs.clear(), nodes.clear());
    data.jobs.forEach((job) => jobs.set(job.job, job));
    data.nodes.forEach((node) => nodes.set(node.node, node));
    (data.jobs_gone || []).forEach((job) => jobs.delete(job));
    (data.nodes_gone || []).forEach((node) => nodes.delete(node));
    draw([...jobs.values()], [...nodes.values()], data.health);
  });
}

function table(heads, rows, caption) {
  const head = heads.map(([words, kind]) => h("th", { scope: "col", class: kind }, words));
  return h("div", { class: "wide" }, h("table", { class: "stack", "aria-label": caption },
    h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

function showJobs() {
  document.title = "Jobs · elastic";
  const place = h("div", {});
  main.replaceChildren(h("div", { class: "top list" }, h("h1", {}, "Jobs")), place);
  const over = (job) => ["succeeded", "failed", "cancelled"].includes(job.state);
  cluster((jobs, _, health) => {
    jobs.sort((a, b) => over(a) - over(b) || b.submitted_unix_ms - a.submitted_unix_ms);
    const rows = jobs.map((job) => h("tr", {},
      h("td", {}, jobLink(job.job)),
      h("td", {}, state(job.state)),
      h("td", {}, job.steps ? [`${number.format(job.step)} of ${number.format(job.steps)}`, bar(job)] : "–"),
      h("td", { class: "num", "data-label": "loss" }, job.metrics ? loss(job.metrics.loss) : "–"),
      h("td", { class: "num" }, job.samples_per_second ? count(job.samples_per_second) + "/s" : "–"),
      h("td", { class: "num" }, job.workers ? job.workers + (job.workers === 1 ? " worker" : " workers") : "–")));
    const heads = [["Job"], ["State"], ["Steps"], ["Loss", "num"], ["Samples", "num"], ["Workers", "num"]];
    const none = h("div", { class: "card none" }, h("p", {}, "No job yet. On the command line:"), h("code", {}, "elastic submit job.toml"));
    put(place, healthNote(health), rows.length ? h("section", { class: "card" }, table(heads, rows, "Jobs")) : health.leads ? none : null);
  });
}

const bar = (job) => h("progress", { max: job.steps, value: job.step, "aria-label": `Steps of ${job.job}` });

function showNodes() {
  document.title = "Nodes · elastic";
  const place = h("div", {});
  main.replaceChildren(h("div", { class: "top list" }, h("h1", {}, "Nodes")), place);
  cluster((_, nodes, health) => {
    nodes.sort((a, b) => a.node.localeCompare(b.node, "en", { numeric: true }));
    const of = (node) => node.silent_ms > 1000 ? "silent" : node.draining ? "draining" : "ready";
    const rows = nodes.map((node) => h("tr", {},
      h("td", {}, h("strong", {}, node.node)),
      h("td", {}, state(of(node))),
      h("td", {}, `${node.used} of ${node.slots} slots`, node.slots ? h("progress", { max: node.slots, value: node.used, "aria-label": `Slots of ${node.node}` }) : null),
      h("td", { class: "soft" }, node.host),
      h("td", {}, node.jobs.length ? node.jobs.flatMap((job, i) => i ? [", ", jobLink(job)] : [jobLink(job)]) : "–"),
      h("td", { class: "num" }, node.strikes ? node.strikes + (node.strikes === 1 ? " strike" : " strikes") : "–")));
    const heads = [["Node"], ["State"], ["Slots"], ["Host"], ["Jobs"], ["Strikes", "num"]];
    const none = h("div", { class: "card none" }, h("p", {}, "No node yet. On a machine that shall train:"), h("code", {}, "elastic agent --coordinator URL"));
    put(place, healthNote(health), rows.length ? h("section", { class: "card" }, table(heads, rows, "Nodes")) : health.leads ? none : null);
  });
}

// ---- one job

function showJob(id) {
  document.title = id + " · elastic";
  const places = {};
  const place = (name) => places[name] = h("div", {});
  const lossCurve = curve("Loss", "steps", (p) => p[1], loss, (p) => p[5] && { step: p[5][0], value: p[5][1] });
  const rateCurve = curve("Samples per second", "steps", (p) => p[2], count);
  const logs = logView(id);
  main.replaceChildren(place("head"),
    h("div", { class: "two" }, lossCurve.element, rateCurve.element),
    place("members"),
    h("div", { class: "two" },
      h("section", { class: "card" }, h("h2", {}, "Views"), place("views")),
      h("section", { class: "card" }, h("h2", {}, "What happened"), place("diary"))),
    logs.element);
  let points = [], diary = [];
  follow("/api/events?job=" + encodeURIComponent(id), (kind, data) => {
    if (kind === "whole") (points = [], diary = []);
    points.push(...data.points);
    // As the coordinator does: a long curve is as good with every other point.
    if (points.length > 2000) points = points.filter((_, i) => i % 2 || i > points.length - 50);
    diary = diary.concat(data.diary).slice(-128);
    if (!data.job) {
      return put(places.head, healthNote(data.health), h("div", { class: "card none" }, h("p", {}, "This coordinator knows no job " + id + "."), h("a", { href: "#/" }, "All jobs")));
    }
    put(places.head, jobHead(data.job, data.health));
    lossCurve.draw(points);
    rateCurve.draw(points);
    put(places.members, members(data.job));
    put(places.views, views(diary));
    put(places.diary, entries(diary));
    logs.know(data.job);
  });
}

function jobHead(job, health) {
  const metrics = job.metrics, validation = metrics && metrics.validation;
  const fact = (name, value, more) => value == null ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, " " + more) : null));
  const left = metrics && job.state === "running" && job.steps ? (job.steps - job.step) * metrics.step_us / 1000 : 0;
  const fault = job.last_fault;
  return [
    healthNote(health),
    h("div", { class: "top" }, h("h1", {}, job.job), state(job.state)),
    h("p", { class: "why" }, job.reason || "\u00a0"),
    h("section", { class: "card", "aria-label": "Progress" }, h("dl", { class: "facts" },
      fact("Step", number.format(job.step), job.steps ? "of " + number.format(job.steps) : null),
      metrics && !job.is_command ? fact("Loss", loss(metrics.loss)) : null,
      validation ? fact("Validation", percent(validation.accuracy), "loss " + loss(validation.loss)) : null,
      fact("Samples per second", job.samples_per_second ? count(job.samples_per_second) : "–", metrics ? (metrics.step_us / 1000).toFixed(1) + " ms a step" : null),
      fact("Time left", left > 0 ? span(left) : "–"),
      fact("View", job.view ? job.view.term + "." + job.view.gen : "–", job.views ? job.views + " so far" : null),
      fact("Restarts", String(job.restarts)),
      fact("Checkpoint", job.published ? "step " + number.format(job.published.step) : "–")),
      job.steps ? bar(job) : null),
    job.unpublished ? h("p", { class: "note" }, `Checkpoints on ${job.unpublished.node} fail: ${job.unpublished.error}`) : null,
    job.run_dir_differs ? h("p", { class: "note" }, job.run_dir_differs) : null,
    fault ? h("section", { class: "card" + (job.state === "failed" ? " bad" : "") }, h("h2", {}, "Last fault"),
      h("p", { class: "fault" }, h("strong", {}, fault.cause), h("span", { class: "soft" }, ` on ${fault.node}, ${clock(fault.unix_ms)}`))) : null,
  ];
}

function members(job) {
  if (!job.members.length) return null;
  const rows = [...job.members].sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9)).map((m) => h("tr", {},
    h("td", {}, m.rank == null ? "no rank" : "rank " + m.rank),
    h("td", {}, state(m.role || "waiting")),
    h("td", {}, h("strong", {}, m.node), h("span", { class: "soft" }, " slot " + m.slot)),
    h("td", { class: "num" }, m.shards + (m.shards === 1 ? " shard" : " shards")),
    h("td", { class: "num" }, m.round == null ? "–" : "round " + number.format(m.round)),
    h("td", { class: "num soft" }, m.silent_ms > 1000 ? "silent for " + span(m.silent_ms) : "heard")));
  const heads = [["Rank"], ["Role"], ["Node"], ["Shards", "num"], ["Round", "num"], ["Heard", "num"]];
  return h("section", { class: "card" }, h("h2", {}, "Members"), table(heads, rows, "Members"));
}

function views(diary) {
  const made = diary.filter((entry) => entry.view).reverse();
  if (!made.length) return h("p", { class: "empty" }, "None since this coordinator leads.");
  return h("ol", { class: "diary", tabindex: 0, "aria-label": "Views, newest first" }, made.map(({ view, unix_ms }) => {
    const more = view.learners.length ? `, ${view.learners.length} catching up` : "";
    const shards = view.active.map(([, shards]) => shards).join(" + ");
    return h("li", {}, h("time", {}, clock(unix_ms)), h("span", {}, h("strong", {}, `${view.term}.${view.gen}`),
      ` ${view.active.length} active${more}`, view.pace === "pause" ? ", paused" : "", h("span", { class: "soft" }, shards ? " · shards " + shards : "")));
  }));
}

function entries(diary) {
  const other = diary.filter((entry) => !entry.view).reverse();
  if (!other.length) return h("p", { class: "empty" }, "Nothing since this coordinator leads.");
  return h("ol", { class: "diary", tabindex: 0, "aria-label": "What happened, newest first" }, other.map((entry) =>
    h("li", {}, h("time", {}, clock(entry.unix_ms)), h("span", { class: entry.level }, entry.text))));
}

// ---- curves

/** One curve on a canvas; the arrow keys or the pointer read single points. */
function curve(name, unit, of, words, marksOf) {
  const canvas = h("canvas", { role: "img", tabindex: 0, "aria-label": name });
  const read = h("p", { "aria-live": "off" });
  const key = marksOf ? h("span", { class: "key", "aria-hidden": "true" }, h("i", { class: "main" }), "training", h("i", {}), "validation") : null;
  const element = h("section", { class: "card" }, h("h2", {}, name, key), h("div", { class: "curve" }, canvas, read));
  let points = [], at = null, frame = null;

  function draw() {
    frame = null;
    const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(name).trim();
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = window.devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * scale)) (canvas.width = Math.round(width * scale), canvas.height = Math.round(height * scale));
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px system-ui, 'Open Sans', sans-serif";
    const seen = points.filter((p) => of(p) != null && Number.isFinite(of(p)));
    if (!seen.length) {
      pen.fillStyle = color("--soft");
      pen.fillText("No step yet.", 4, height / 2);
      return;
    }
    const marks = marksOf ? marksAt(seen) : [];
    const values = seen.map(of).concat(marks.map((mark) => mark.value)).sort((a, b) => a - b);
    // A first loss far above all others shall not press the rest flat.
    const high = values.length > 40 ? Math.max(values[Math.floor(values.length * .99)], of(seen[seen.length - 1])) : values[values.length - 1];
    // A loss that falls by decades is seen on a scale of decades.
    const decades = marksOf && values[0] > 0 && high / values[0] > 50;
    let lo = marksOf ? values[0] : 0, hi = high;
    if (hi === lo) (hi += Math.abs(hi) * .1 || 1, lo -= Math.abs(lo) * .1);
    const ticks = decades ? powersOf(lo, hi) : ticksOf(lo, hi, 4);
    (lo = Math.min(lo, ticks[0]), hi = Math.max(hi, ticks[ticks.length - 1]));
    const left = 8 + Math.max(...ticks.map((t) => pen.measureText(short(t)).width)), right = width - 8, top = 10, bottom = height - 22;
    const first = seen[0][0], last = Math.max(seen[seen.length - 1][0], first + 1);
    const x = (step) => left + 8 + (step - first) / (last - first) * (right - left - 8);
    const scaled = decades ? Math.log10 : (value) => value;
    const y = (value) => bottom - (scaled(Math.min(Math.max(value, lo), hi)) - scaled(lo)) / (scaled(hi) - scaled(lo)) * (bottom - top);
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    for (const tick of ticks) {
      pen.strokeStyle = color("--line");
      pen.beginPath();
      pen.moveTo(left + 8, Math.round(y(tick)) + .5);
      pen.lineTo(right, Math.round(y(tick)) + .5);
      pen.stroke();
      pen.fillStyle = color("--soft");
      pen.textAlign = "right";
      pen.fillText(short(tick), left + 2, y(tick));
    }
    pen.textBaseline = "alphabetic";
    pen.textAlign = "left";
    pen.fillText(number.format(first), left + 8, height - 4);
    pen.textAlign = "right";
    pen.fillText(number.format(seen[seen.length - 1][0]) + " " + unit, right, height - 4);
    // Where the number of workers changed.
    pen.strokeStyle = color("--soft");
    pen.setLineDash([2, 4]);
    seen.forEach((p, i) => {
      if (!i || p[3] === seen[i - 1][3]) return;
      pen.beginPath();
      pen.moveTo(x(p[0]), top);
      pen.lineTo(x(p[0]), bottom);
      pen.stroke();
    });
    pen.setLineDash([]);
    pen.strokeStyle = color("--accent");
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.beginPath();
    seen.forEach((p, i) => i ? pen.lineTo(x(p[0]), y(of(p))) : pen.moveTo(x(p[0]), y(of(p))));
    pen.stroke();
    pen.fillStyle = color("--warn");
    for (const mark of marks) dot(pen, x(mark.step), y(mark.value), 2.75);
    const chosen = at == null ? null : seen[Math.max(0, Math.min(at, seen.length - 1))];
    if (chosen) {
      pen.fillStyle = color("--accent");
      dot(pen, x(chosen[0]), y(of(chosen)), 4.5);
    }
    const told = chosen || seen[seen.length - 1];
    const line = `step ${number.format(told[0])}: ${words(of(told))}, ${told[3]} ${told[3] === 1 ? "worker" : "workers"}, ${clock(told[4])}`;
    if (read.textContent !== line) read.textContent = line;
    canvas.setAttribute("aria-label", `${name}: now ${words(of(seen[seen.length - 1]))}, least ${words(values[0])}, most ${words(values[values.length - 1])}. Arrow keys read single points.`);
    nearest = (px) => seen.reduce((best, p, i) => Math.abs(x(p[0]) - px) < Math.abs(x(seen[best][0]) - px) ? i : best, 0);
    length = seen.length;
  }

  let nearest = () => 0, length = 0;
  const soon = () => frame ??= requestAnimationFrame(draw);
  function marksAt(seen) {
    const marks = new Map();
    for (const p of seen) {
      const mark = marksOf(p);
      if (mark && mark.value != null && mark.step >= seen[0][0]) marks.set(mark.step, mark);
    }
    return [...marks.values()];
  }
  canvas.addEventListener("pointermove", (event) => (at = nearest(event.offsetX), soon()));
  canvas.addEventListener("pointerleave", () => (at = null, soon()));
  canvas.addEventListener("blur", () => (at = null, read.setAttribute("aria-live", "off"), soon()));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -1e9, End: 1e9 }[event.key];
    if (!by) return;
    event.preventDefault();
    at = Math.max(0, Math.min((at ?? length - 1) + by, length - 1));
    read.setAttribute("aria-live", "polite");
    soon();
  });
  new ResizeObserver(soon).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  return { element, draw: (now) => (points = now, soon()) };
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fill();
}

/** Round numbers between lo and hi. */
function ticksOf(lo, hi, about) {
  const raw = (hi - lo) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let tick = Math.floor(lo / step) * step; tick <= hi + step * .5; tick += step) ticks.push(tick);
  return ticks.map((t) => Math.abs(t) < step / 1e6 ? 0 : t);
}
/** Powers of ten around lo and hi, six at most. */
function powersOf(lo, hi) {
  const first = Math.floor(Math.log10(lo)), last = Math.ceil(Math.log10(hi)), by = Math.ceil((last - first) / 5);
  const powers = [];
  for (let power = first; power < last + by; power += by) powers.push(10 ** power);
  return powers;
}

const short = (x) => Math.abs(x) >= 1e4 ? count(x) : x !== 0 && Math.abs(x) < .001 ? x.toExponential(1).replace(".0e", "e") : String(+x.toPrecision(4));

// ---- logs

const LINES_MAX = 2000;

function logView(id) {
  const lines = h("pre", { class: "logs", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "What the workers print" });
  const rank = h("select", { id: "rank" }, h("option", { value: "" }, "all"));
  const stay = h("input", { type: "checkbox", id: "stay", checked: true });
  const element = h("section", { class: "card" },
    h("div", { class: "tools" }, h("h2", {}, "Logs"), h("label", { for: "rank" }, "Rank", rank), h("label", { for: "stay" }, stay, "Follow")), lines);
  let reading = new AbortController(), isDone = false;

  function add(who, text, kind) {
    lines.append(h("span", { class: kind }, who ? h("b", {}, who + "  ") : null, text + "\n"));
    while (lines.childElementCount > LINES_MAX) lines.firstElementChild.remove();
  }
  /** Comes back by itself until the job is over; after a break the lines begin anew with the end of what is there. */
  async function start() {
    reading.abort();
    reading = new AbortController();
    isDone = false;
    const mine = reading.signal, page = live;
    page.signal.addEventListener("abort", () => reading.abort());
    const path = `/api/jobs/${encodeURIComponent(id)}/logs` + (rank.value ? "?rank=" + rank.value : "");
    let isFresh = true;
    lines.replaceChildren();
    const follow = () => stay.checked && (lines.scrollTop = lines.scrollHeight);
    for (let pause = 500; !mine.aborted && !isDone; pause = Math.min(pause * 2, 8000)) {
      let why = "not reached: trying again";
      try {
        await read(path, mine, (kind, data) => {
          if (kind === "open") return;
          if (kind === "end") return isDone = true;
          if (!isFresh) lines.replaceChildren();
          isFresh = true;
          pause = 500;
          if (kind === "lines") {
            const who = data.rank == null ? `${data.node}/${data.slot}` : `rank ${data.rank}`;
            data.lines.forEach((line) => add(who, line));
          } else if (kind === "missing") add(null, (data.node ? data.node + ": " : "") + data.why, "missing");
          follow();
        });
      } catch (error) {
        if (mine.aborted || error.wantsToken) return;
        if (error.told) why = error.message + ": trying again";
      }
      if (mine.aborted || isDone) return;
      if (isFresh) add(null, "logs: " + why, "missing");
      isFresh = false;
      follow();
      await new Promise((then) => setTimeout(then, pause));
    }
  }
  rank.addEventListener("change", start);
  start();
  return {
    element,
    know({ members }) {
      const known = new Set([...rank.options].map((option) => option.value));
      members.map((m) => m.rank).filter((r) => r != null && !known.has(String(r))).sort((a, b) => a - b)
        .forEach((r) => rank.append(h("option", { value: r }, String(r))));
    },
  };
}

// ---- pages

function show() {
  live.abort();
  live = new AbortController();
  tell("wait", "connecting");
  const [, page, id] = location.hash.split("/");
  const named = page === "jobs" && id;
  document.querySelectorAll("[data-nav]").forEach((link) => {
    const here = link.dataset.nav === (page === "nodes" ? "nodes" : "jobs");
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  });
  if (named) {
    let name = id;
    try { name = decodeURIComponent(id); } catch { /* as it stands */ }
    showJob(name);
  } else if (page === "nodes") showNodes();
  else showJobs();
}

addEventListener("hashchange", () => { show(); main.focus(); scrollTo(0, 0); });
show();
