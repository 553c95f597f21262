"use strict";
// Text reaches the page as text nodes and attributes alone: tokens may hold anything.
const table = JSON.parse(document.getElementById("data").textContent);
const { ks, features } = table;
const byId = new Map(features.map((one) => [one.feature, one]));
const K = ks[ks.length - 1];
const STRONGEST = 10, ADDED = 3; // contexts at k, and of those that k adds
const state = { at: ks.length - 1, sort: null, ascending: true, shown: features, open: null };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const count = (n) => n.toLocaleString("en");
const number = (x) => (x === null ? "–" : String(Number(x.toPrecision(3))));
function percent(share) {
  if (share === 0) return "0 %";
  return share < 0.0001 ? "< 0.01 %" : `${Number((100 * share).toPrecision(2))} %`;
}
const rangeOf = (i) =>
  i === 0 || ks[i] === ks[i - 1] + 1 ? `${ks[i]}` : `${ks[i - 1] + 1}–${ks[i]}`;
const groupOf = (rank) => ks.findIndex((k) => rank <= k);
// From the first ranks, dark blue, to the last, light orange: lightness tells them apart
// too. They stand out from both color schemes' backgrounds.
const COLORS = [[62, 84, 176], [36, 134, 170], [84, 176, 134], [236, 178, 66]];
function color(group) {
  const at = ks.length > 1 ? group / (ks.length - 1) * (COLORS.length - 1) : 0;
  const i = Math.min(Math.floor(at), COLORS.length - 2);
  const mixed = COLORS[i].map((from, c) => Math.round(from + (at - i) * (COLORS[i + 1][c] - from)));
  return `rgb(${mixed.join(", ")})`;
}

// What has no glyph of its own, in words that nobody takes for text.
const MARKS = { "\n": "↵", "\t": "⇥", "\r": "␍" };
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (c) => MARKS[c] ?? `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
function code(text) {
  return element("code", { class: "token" }, visible(text).replace(/^ | $/g, "·"));
}

// The list

const COLUMNS = [
  { name: () => "feature", title: "the feature's index", value: (f) => f.feature,
    cell: (f) => [element("a", { href: `#${f.feature}` }, String(f.feature))] },
  { name: () => `at k = ${ks[state.at]}`, title: "share of tokens on which it is active at this k", down: true,
    value: (f) => f.frequency[state.at], cell: (f) => [percent(f.frequency[state.at])] },
  { name: () => "mean rank", title: "mean rank among the active features of a token",
    value: (f) => f.mean_rank ?? Infinity, cell: (f) => [number(f.mean_rank)] },
  { name: () => "promotes", title: "the token whose logit it raises most",
    value: (f) => (f.promoted ? f.promoted[0][0].trim().toLowerCase() : ""),
    cell: (f) => (f.promoted ? [code(f.promoted[0][0])] : ["–"]) },
];

function drawHead() {
  const row = document.querySelector("thead tr");
  row.replaceChildren(...COLUMNS.map((column, i) => {
    const sorted = state.sort === column;
    const arrow = sorted ? (state.ascending ? " ▲" : " ▼") : "";
    const button = element("button", { type: "button", title: `Sort: ${column.title}` },
      column.name() + arrow);
    button.onclick = () => {
      state.ascending = sorted ? !state.ascending : !column.down;
      state.sort = column;
      drawList();
      document.querySelectorAll("thead button")[i].focus();
    };
    const head = element("th", { scope: "col" }, button);
    if (sorted) head.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
    if (i === COLUMNS.length - 1) head.className = "left";
    return head;
  }));
}

function matches(feature, query) {
  if (!query) return true;
  if (/^\d+$/.test(query) && String(feature.feature).startsWith(query)) return true;
  const has = (text) => text.toLowerCase().includes(query);
  return (feature.promoted ?? []).some(([token]) => has(token)) ||
    feature.contexts.some((one) => has(one.tokens[one.peak]));
}

function drawList() {
  drawHead();
  const query = document.getElementById("search").value.trim().toLowerCase();
  state.shown = features.filter((one) => matches(one, query));
  if (state.sort) {
    const { value } = state.sort, sign = state.ascending ? 1 : -1;
    state.shown.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
  }
  document.getElementById("found").textContent =
    `${count(state.shown.length)} of ${count(features.length)} features`;
  document.querySelector("tbody").replaceChildren(...state.shown.map((feature) => {
    const cells = COLUMNS.map((column) => element("td", {}, ...column.cell(feature)));
    cells[cells.length - 1].className = "left";
    const row = element("tr", { "data-feature": feature.feature }, ...cells);
    row.onclick = () => { location.hash = feature.feature; };
    return row;
  }));
  markOpen();
}

function markOpen() {
  for (const row of document.querySelectorAll("tbody tr[data-feature]")) {
    const open = Number(row.dataset.feature) === state.open?.feature;
    if (open) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

// Charts

const WIDTH = 360, HEIGHT = 150, LEFT = 46, BOTTOM = 20, TOP = 8;

// bars: lists of [height, fill] from the bottom up; labels: [place in bars, text].
function chart(summary, bars, labels, form) {
  const largest = Math.max(...bars.map((bar) => bar.reduce((sum, [h]) => sum + h, 0)), 0) || 1;
  const step = (WIDTH - LEFT) / bars.length, scale = (HEIGHT - TOP - BOTTOM) / largest;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary });
  for (const share of [0, 0.5, 1]) {
    const y = HEIGHT - BOTTOM - share * largest * scale;
    svg.append(drawn("line", { x1: LEFT, x2: WIDTH, y1: y, y2: y }),
      drawn("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, form(share * largest)));
  }
  bars.forEach((bar, i) => {
    let y = HEIGHT - BOTTOM;
    for (const [height, fill] of bar) {
      if (!height) continue;
      const size = Math.max(height * scale, 0.75);
      y -= size;
      const rect = drawn("rect", { x: LEFT + i * step + Math.min(1, step / 8), y,
        width: Math.max(step - Math.min(2, step / 4), 0.5), height: size });
      if (fill) rect.setAttribute("fill", fill); else rect.setAttribute("class", "off");
      svg.append(rect);
    }
  });
  for (const [place, text] of labels) {
    svg.append(drawn("text", { x: LEFT + place * step, y: HEIGHT - 5, "text-anchor": "middle" }, text));
  }
  return svg;
}

function figure(title, svg, ...caption) {
  return element("figure", {}, element("h3", {}, title), svg,
    element("figcaption", {}, ...caption));
}

function ranksFigure(feature) {
  const k = ks[state.at];
  const bars = feature.ranks.map((n, i) => [[n, i < k ? color(groupOf(i + 1)) : null]]);
  const labels = ks.filter((one, i) => K <= 32 || i % 2 === 0 || one === K)
    .filter((one) => one === 1 || one * (WIDTH - LEFT) / K > 14)
    .map((one) => [one - 0.5, String(one)]);
  const shares = ks.map((one, i) => `${rangeOf(i)}: ${percent(inGroup(feature, i) / (feature.firings || 1))}`);
  return figure("At which rank it enters",
    chart(`Tokens by rank. ${shares.join(", ")} of its tokens.`, bars, labels, compact),
    "Tokens by the feature's rank among the token's active features. Gray: not yet at this k.");
}
const inGroup = (feature, i) =>
  feature.ranks.slice(i ? ks[i - 1] : 0, ks[i]).reduce((sum, n) => sum + n, 0);
const compact = (n) => Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 }).format(n);

function frequencyFigure(feature) {
  const bars = feature.frequency.map((share, i) => [[share, i <= state.at ? color(i) : null]]);
  const text = ks.map((k, i) => `k = ${k}: ${percent(feature.frequency[i])}`).join(", ");
  return figure("How often it is active at k",
    chart(`Share of tokens. ${text}.`, bars, ks.map((k, i) => [i + 0.5, String(k)]), percent),
    `Share of tokens: ${percent(feature.frequency[0])} at k = 1, ${percent(feature.frequency[ks.length - 1])} at k = ${K}.`);
}

function activationsFigure(feature) {
  const groups = feature.activations, n = groups[0].length;
  const bars = Array.from({ length: n }, (_, bin) =>
    groups.map((counts, i) => [counts[bin], i <= state.at ? color(i) : null]));
  const end = n * feature.bin_width;
  const labels = n ? [0, 0.25, 0.5, 0.75, 1].map((share) => [share * n, number(share * end)]) : [];
  labels.forEach((label, i) => { if (i === 4) label[0] -= n * 0.03; });
  const key = element("ul", { class: "key" }, ...ks.map((_, i) => {
    const swatch = element("i");
    swatch.style.background = i <= state.at ? color(i) : "var(--off)";
    return element("li", {}, swatch, rangeOf(i));
  }));
  const made = figure("Activations, by rank",
    chart(`Histogram of activations, mean ${number(feature.mean_activation)}, largest ${number(feature.max_activation)}.`,
      bars, labels, compact),
    "Tokens by activation. Colors: the feature's rank there.");
  made.append(key);
  return made;
}

// Tables

function logits(title, effects, kind) {
  const largest = Math.max(...effects.map(([, value]) => Math.abs(value))) || 1;
  return element("table", { class: `logits ${kind}` }, element("caption", {}, title),
    element("tbody", {}, ...effects.map(([token, value]) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${100 * Math.abs(value) / largest}%`;
      return element("tr", {}, element("td", { class: "left" }, code(token)),
        element("td", {}, (value > 0 ? "+" : "") + number(value)), element("td", {}, bar));
    })));
}

function companions(title, rows, none) {
  if (!rows.length) return element("p", { class: "quiet" }, none);
  const named = (index) => (byId.has(index)
    ? element("a", { href: `#${index}` }, String(index)) : String(index));
  const names = ["feature", "of its tokens", "of all tokens"];
  // Known of the features on this page alone.
  if (rows.some(([index]) => byId.get(index)?.promoted)) names.push("promotes");
  return element("table", {}, element("caption", {}, title),
    element("thead", {}, element("tr", {}, ...names.map((name, i) =>
      element("th", { scope: "col", class: i % 3 ? "" : "left" }, name)))),
    element("tbody", {}, ...rows.map(([index, share, all]) => {
      const promoted = byId.get(index)?.promoted;
      const cells = [named(index), percent(share), percent(all), promoted ? code(promoted[0][0]) : ""];
      return element("tr", {}, ...cells.slice(0, names.length).map((cell, i) =>
        element("td", { class: i % 3 ? "" : "left" }, cell)));
    })));
}

// Contexts

function excerpt(context, largest, k) {
  const active = new Map(context.active.map(([place, act, rank]) => [place, [act, rank]]));
  const tokens = context.tokens.map((token, place) => {
    const span = element("span", { class: "token" });
    // The mark of a line's end stands before it.
    const parts = token.split("\n");
    parts.forEach((part, i) => {
      span.append(visible(part));
      if (i < parts.length - 1) span.append(element("span", { class: "mark" }, "↵"));
    });
    if (active.has(place)) {
      const [act, rank] = active.get(place);
      span.title = `activation ${number(act)}, rank ${rank}`;
      if (rank <= k) span.style.background = `rgba(var(--hot), ${(0.12 + 0.5 * act / largest).toFixed(2)})`;
      else span.classList.add("later");
    }
    if (place === context.peak) span.classList.add("peak");
    return span;
  });
  return element("li", {},
    element("div", { class: "quiet" }, element("b", {}, number(context.activation)),
      ` at rank ${context.rank}`),
    element("p", {}, ...tokens));
}

function oneEach(contexts) {
  const seen = new Set();
  return contexts.filter(({ context }) => !seen.has(context) && seen.add(context));
}

function contexts(feature) {
  const i = state.at, k = ks[i], before = i ? ks[i - 1] : 0;
  const list = (some) => element("ol", { class: "contexts" },
    ...some.map((one) => excerpt(one, feature.max_activation, k)));
  const strongest = oneEach(feature.contexts.filter((one) => one.rank <= k)).slice(0, STRONGEST);
  const added = oneEach(feature.contexts.filter((one) => one.rank > before && one.rank <= k))
    .filter((one) => !strongest.includes(one)).slice(0, ADDED);
  const made = [element("h3", {}, `Strongest at k = ${k}`)];
  if (strongest.length) {
    made.push(element("p", { class: "quiet" },
      "Colored: active at this k, the stronger the activation the deeper. Underlined: the largest. " +
      "Dotted: active only at a larger k."), list(strongest));
  } else {
    made.push(element("p", { class: "quiet" }, `At k = ${k} it is active on no token.`));
  }
  if (i && added.length) {
    made.push(element("h3", {}, `Added from k = ${before} to ${k}`),
      element("p", { class: "quiet" },
        `Its strongest where its rank is ${rangeOf(i)}, so that it does not show at k = ${before}.`),
      list(added));
  }
  return made;
}

// One feature

function facts(feature) {
  const half = ks.find((_, i) => 2 * feature.frequency[i] >= feature.frequency[ks.length - 1]);
  const pairs = [
    [`active at k = ${ks[state.at]}`, percent(feature.frequency[state.at])],
    [`tokens, at k = ${K}`, count(feature.firings)],
    ["mean rank", number(feature.mean_rank)],
    ["half of them at k =", feature.firings ? String(half) : "–"],
    ["mean activation", number(feature.mean_activation)],
    ["largest", number(feature.max_activation)],
  ];
  return element("dl", { class: "facts" }, ...pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function steps(feature) {
  const at = state.shown.indexOf(feature);
  const button = (text, to) => {
    const made = element("button", { type: "button" }, text);
    made.disabled = !state.shown[to];
    made.onclick = () => { location.hash = state.shown[to].feature; };
    return made;
  };
  return element("div", { class: "steps" }, element("h2", {}, `Feature ${feature.feature}`),
    element("span", {}, button("← previous", at - 1), " ", button("next →", at + 1)));
}

function drawFeature() {
  const article = document.getElementById("feature"), feature = state.open;
  if (!feature) return;
  article.setAttribute("aria-label", `Feature ${feature.feature}`);
  if (!feature.firings) {
    article.replaceChildren(steps(feature), element("p", {},
      `It is active on none of the ${count(table.tokens)} tokens.`), ...effects(feature));
    return;
  }
  article.replaceChildren(steps(feature), facts(feature),
    element("div", { class: "columns" }, ranksFigure(feature), frequencyFigure(feature),
      activationsFigure(feature)),
    ...contexts(feature),
    element("h3", {}, "Features on the same tokens"),
    element("p", { class: "quiet" }, "Those that are there far more often than by chance."),
    element("div", { class: "columns" },
      companions("Before it, with larger activations", feature.before, "None before it."),
      companions("After it, joining at a larger k", feature.after, "None joins after it.")),
    ...effects(feature));
}

function effects(feature) {
  const title = element("h3", {}, "Direct effect on the next token");
  if (!feature.promoted) return [title, element("p", { class: "quiet" }, `Not known: ${table.no_logits}.`)];
  return [title, element("p", { class: "quiet" }, "On the logits, of an activation of 1."),
    element("div", { class: "columns" }, logits("Promoted", feature.promoted, "up"),
      logits("Suppressed", feature.suppressed, "down"))];
}

function setK(at) {
  state.at = at;
  document.querySelectorAll("#ks input")[at].checked = true;
  drawList();
}

// The part of the address after #: a feature, or a feature and k, as in #12/8.
function openFromHash(event) {
  // Without one, nothing is wanted: Number("") is 0, a feature as well.
  const [index, k] = location.hash ? location.hash.slice(1).split("/").map(Number) : [];
  if (ks.includes(k)) setK(ks.indexOf(k));
  const wanted = byId.get(index);
  state.open = wanted ?? state.open ?? state.shown[0] ?? features[0];
  markOpen();
  drawFeature();
  document.querySelector("tr[aria-current]")?.scrollIntoView({ block: "nearest" });
  if (event) {
    const article = document.getElementById("feature");
    article.focus({ preventScroll: true });
    article.scrollIntoView({ block: "nearest" });
    if (article.getBoundingClientRect().top < 0 || innerWidth < 960) article.scrollIntoView();
  }
}

function start() {
  const { provenance } = table;
  document.title = `${table.sae}: features at every k`;
  document.getElementById("about").textContent =
    `${count(features.length)} of the ${count(table.d_sae)} features of ${table.sae} ` +
    `(${table.architecture}, K = ${K}), ${table.chosen}; on ${count(table.tokens)} tokens` +
    (provenance.dataset ? ` of ${provenance.dataset}, at ${provenance.hooks} of ${provenance.model}.` : ".");
  document.getElementById("ks").append(...ks.map((k, i) => {
    const input = element("input", { type: "radio", name: "k", value: k });
    input.checked = i === state.at;
    input.onchange = () => {
      setK(i);
      history.replaceState(null, "", `#${state.open.feature}/${k}`);
      drawFeature();
    };
    return element("label", {}, input, element("span", {}, String(k)));
  }));
  document.getElementById("provenance").append(...Object.entries(provenance).flatMap(
    ([name, value]) => [element("dt", {}, name), element("dd", {},
      typeof value === "object" ? JSON.stringify(value) : String(value))]));
  document.getElementById("search").oninput = drawList;
  addEventListener("hashchange", openFromHash);
  drawList();
  openFromHash();
}

start();
