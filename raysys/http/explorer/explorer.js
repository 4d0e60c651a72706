// The explorer page: one view, kept in the URL's hash. A change goes view -> hash -> ask -> draw.
"use strict";

const STORED_KEY = "raysys.key"; // in the storage of this tab alone
const PAUSE_MS = 120; // of typing, before a title is asked for
const OFFERED = 200; // atoms and values to choose from
const RANKINGS = { // what each says, and the figures that it sorts by
  consume: ["What comes next", "p_consume"],
  rating: ["What will be rated best", "expected_rating"],
  like: ["What will be liked", "p_like"],
  discover: ["Liked, but not found anyway", "p_like", "p_consume"],
  similar: ["Nearest to the profile by cosine"],
  popular: ["What a user of whom nothing is known takes"],
  recent: ["The newest items"],
};
const METRICS = ["recall@20", "ndcg@100", "hit@10", "coverage@20", "novelty@20", "rmse", "nll"];
const SERVED = ["index", "model", "codes"]; // methods of an evaluation that are no baselines
const DEGRADED = {
  unknown_user: "this user is not stored",
  no_history: "no item of the profile is known",
  ranking: "the build cannot give this ranking",
};

const byId = (id) => document.getElementById(id);
const on = (id, type, act) => byId(id).addEventListener(type, act);
const given = (value) => value !== null && value !== undefined;
const filled = (record) => (Object.keys(record).length ? record : undefined);
const isObject = (value) => given(value) && typeof value === "object" && !Array.isArray(value);

// -- the service: the only part that knows its routes and fields ----------------------------

class Failure extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

let key = null;
try {
  key = sessionStorage.getItem(STORED_KEY);
} catch { /* without storage a key is asked for again on the next page */ }

async function ask(path, { body, signal } = {}) {
  const headers = { accept: "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
  let response, text;
  try {
    response = await fetch(path, { ...request, body: body && JSON.stringify(body) });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(0, "The service does not answer.");
  }
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch { /* a proxy's own answer is text */ }
  if (response.ok && answer) return answer;
  const message = answer?.error?.message ?? `The service answers with status ${response.status}.`;
  throw new Failure(response.status, message, Number(response.headers.get("retry-after")) || null);
}

const service = {
  status: () => ask("v1/status"),
  evaluation: async () => (await ask("v1/evaluation")).evaluation,
  atoms: async () => (await ask("v1/atoms?k=1000")).atoms,
  titled: async (title, signal) =>
    (await ask(`v1/items?${new URLSearchParams({ title, k: 12 })}`, { signal })).items,
  details: async (items, signal) => (await ask("v1/items", { body: { items }, signal })).items,
  /** A list for nobody: `popular` or `recent`. */
  start(name, { k, allow, deny }, signal) {
    const query = new URLSearchParams({ k });
    if (filled(allow)) query.set("allow", JSON.stringify(allow));
    if (filled(deny)) query.set("deny", JSON.stringify(deny));
    return ask(`v1/${name}?${query}`, { signal });
  },
  /** A list for every ranking, in one request: [{answer} or {error}]. */
  async lists(rankings, { profile, user, k, allow, deny, atoms }, signal) {
    const query = {
      user_id: user || undefined,
      experiment: false, // whoever looks is not the user
      profile: profile.map(({ id, level }) => ({ item_id: id, event: level || undefined })),
      ...{ k, allow: filled(allow), deny: filled(deny), atoms: filled(atoms) },
      ...{ levels: true, explain: true },
    };
    const queries = rankings.map((ranking) => ({ ...query, ranking }));
    return (await ask("v1/recommend/batch", { body: { queries }, signal })).answers;
  },
};

// -- the view, and the hash that holds it --------------------------------------------------

function viewOf(hash) {
  const held = new URLSearchParams(hash.replace(/^#/, ""));
  const read = (name, accepted, otherwise) => {
    try {
      const value = JSON.parse(held.get(name));
      return accepted(value) ? value : otherwise;
    } catch {
      return otherwise;
    }
  };
  const isText = (value) => typeof value === "string";
  const entries = read("items", Array.isArray, []).filter((e) => isText(e?.[0]) && e[0]);
  const atoms = Object.entries(read("atoms", isObject, {}));
  return {
    profile: entries.map(([id, level]) => ({ id, level: isText(level) ? level : "" })),
    user: held.get("user") ?? "",
    k: read("k", (k) => [5, 10, 20, 50].includes(k), 20),
    allow: read("allow", isObject, {}),
    deny: read("deny", isObject, {}),
    atoms: Object.fromEntries(atoms.filter(([, by]) => typeof by === "number")),
  };
}

function hashOf({ profile, user, k, allow, deny, atoms }) {
  const held = new URLSearchParams();
  const entries = profile.map(({ id, level }) => (level ? [id, level] : [id]));
  if (entries.length) held.set("items", JSON.stringify(entries));
  if (user) held.set("user", user);
  if (k !== 20) held.set("k", k);
  for (const [name, value] of Object.entries({ allow, deny, atoms })) {
    if (filled(value)) held.set(name, JSON.stringify(value));
  }
  return held.size ? `#${held}` : "";
}

let view = viewOf(location.hash);
let facts = null; // what the service says of itself
const titles = new Map(); // {item id: title or null}
const attributes = new Map(); // {item id: {attribute: value}}, of items that were shown
const atomNames = new Map(); // {atom: name or ""}, once the service speaks of atoms
const opened = new Map(); // {"ranking item": toggle}: rows that show more
let unknown = new Set(); // items of the profile that the catalogue lacks
let running = null; // the request for lists whose answer is still wanted
let again = null; // timer of the next try

const nameOf = (id) => titles.get(id) ?? id;
const atomName = (atom) => atomNames.get(String(atom)) || `Atom ${atom}`;
const model = () => facts?.facts?.autoencoder ?? { levels: [], liked: [] };
const isEmpty = () => !view.profile.length && !view.user && !filled(view.atoms);

function change(edit) {
  edit(view);
  history.pushState(null, "", hashOf(view) || location.pathname + location.search);
  drawAsked();
  refresh();
}

function nameAtom(atom, name) {
  atomNames.set(String(atom), name || atomNames.get(String(atom)) || "");
}

function add(id, title) {
  if (title) titles.set(id, title);
  change(({ profile }) => {
    if (!profile.some((e) => e.id === id)) profile.push({ id, level: byId("level").value });
  });
  byId("profile").scrollTop = byId("profile").scrollHeight;
}

const steer = (atom, by) => change(({ atoms }) => { atoms[atom] = by; });

function filter(side, name, text) {
  const [, min, max] = text.match(/^(.*?)\.\.(.*)$/) ?? [];
  change((now) => {
    const before = Array.isArray(now[side][name]) ? now[side][name] : [];
    if (min || max) now[side][name] = { ...(min && { min }), ...(max && { max }) };
    else now[side][name] = [...new Set([...before, text])];
  });
}

// -- drawing: what is said ------------------------------------------------------------------

const sentence = (text) =>
  text.replace(/^[a-z](?=[a-z]* )/, (letter) => letter.toUpperCase()).replace(/[^.!?]$/, "$&.");
const signed = (value) => (value > 0 ? `+${value}` : String(value).replace("-", "−"));
const number = (value) => (given(value) ? value.toFixed(2) : "–");
const count = (value) => value.toLocaleString("en");
const day = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 10);

function percent(p) {
  if (!given(p)) return "–";
  if (p >= 0.0995) return `${Math.round(100 * p)} %`;
  return p >= 0.0001 ? `${(100 * p).toPrecision(2)} %` : "<0.01 %";
}

function conditionText(condition) {
  if (Array.isArray(condition)) return condition.join(" or ");
  return isObject(condition) ? `${condition.min ?? ""}..${condition.max ?? ""}` : String(condition);
}

/** The values of an attribute as filters know them: lists of any depth, and text with `|`. */
function valuesOf(value) {
  if (Array.isArray(value)) return value.flatMap(valuesOf);
  return given(value) && !isObject(value) ? String(value).split("|").filter(Boolean) : [];
}

function attributeText(value) {
  const second = Number.isInteger(value) && value > 3e8 && value < 4e9;
  return second ? `${value} (${day(value)})` : valuesOf(value).join(", ") || JSON.stringify(value);
}

function scoreText(ranking, score) {
  if (ranking === "recent") return `first seen ${day(score)}`;
  if (ranking !== "popular") return `score ${number(score)}`;
  return model().levels.length ? `consume ${percent(score)}` : `${count(score)} rows of the log`;
}

// -- drawing: elements ----------------------------------------------------------------------

function el(tag, attributesOf = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributesOf)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (given(value)) node.setAttribute(name, value);
  }
  node.append(...children.flat(2).filter(given));
  return node;
}

const muted = (text) => el("span", { class: "muted" }, text);
const button = (label, onclick, more = {}) =>
  el("button", { type: "button", onclick, ...more }, label);
const icon = (sign, label, focus, onclick) =>
  button(sign, onclick, { class: "icon plain", "aria-label": label, "data-focus": focus });

/** Draw anew, and leave the keyboard where it was: on the same control, or on its neighbour. */
function keepingFocus(draw) {
  const [, kind, place] = document.activeElement?.dataset?.focus?.match(/^(.*):(\d+)$/s) ?? [];
  draw();
  if (kind === undefined || document.activeElement !== document.body) return;
  const alike = [...document.querySelectorAll("[data-focus]")].filter(
    (node) => node.dataset.focus.replace(/:\d+$/, "") === kind);
  const next = alike[Math.min(place, alike.length - 1)] ?? byId("lists-title");
  next.focus({ preventScroll: true });
}

function drawAsked() {
  const size = view.profile.length;
  keepingFocus(() => byId("profile").replaceChildren(...view.profile.map(profileEntry)));
  byId("profile-size").textContent = size ? `${size} item${size === 1 ? "" : "s"}` : "";
  byId("profile-empty").hidden = size > 0;
  byId("clear").hidden = size === 0;
  if (document.activeElement !== byId("user")) byId("user").value = view.user;
  byId("k").value = view.k;
  drawFilters();
  drawSteering();
}

function levelOptions(chosen) {
  const names = new Set(["", ...model().levels, chosen]);
  const options = [...names].map((value) => el("option", { value }, value || "liked"));
  for (const option of options) option.selected = option.value === chosen;
  return options;
}

function profileEntry(entry, place) {
  const name = nameOf(entry.id);
  const named = { "aria-label": `Level of ${name}`, "data-focus": `level:${place}` };
  const onchange = ({ target }) => change(() => { entry.level = target.value; });
  const select = el("select", { ...named, onchange }, levelOptions(entry.level));
  const remove = () => change(({ profile }) => profile.splice(place, 1));
  const missing = unknown.has(entry.id) ? muted(" (not in the catalogue)") : null;
  return el("li", {}, el("span", { title: name }, name, missing),
    model().levels.length > 1 ? select : el("span"),
    icon("×", `Remove ${name}`, `remove:${place}`, remove));
}

function drawFilters() {
  const chips = ["allow", "deny"].flatMap((side) => Object.entries(view[side]).map(([name, of]) => {
    const text = `${side === "deny" ? "not " : ""}${name}: ${conditionText(of)}`;
    const remove = () => change((now) => { delete now[side][name]; });
    const away = icon("×", `Remove the filter ${text}`, "filter:0", remove);
    return el("li", { class: "chip" }, text, away);
  }));
  keepingFocus(() => byId("filters").replaceChildren(...chips));
  byId("filters-size").textContent = chips.length ? `${chips.length} in use` : "";
  if (chips.length) byId("filter-panel").open = true;
}

function drawSteering() {
  const steered = Object.entries(view.atoms);
  byId("steering").hidden = !atomNames.size && !steered.length;
  byId("steering-size").textContent = steered.length ? `${steered.length} in use` : "";
  if (steered.length) byId("steering").open = true;
  keepingFocus(() => byId("sliders").replaceChildren(...steered.map(slider)));
  const others = [...atomNames.keys()].filter((atom) => !(atom in view.atoms));
  const offered = ["", ...others.slice(0, OFFERED)];
  byId("atom").replaceChildren(...offered.map((value) =>
    el("option", { value }, value ? atomName(value) : "Choose")));
}

function slider([atom, by], place) {
  const id = `slider-${place}`;
  const output = el("output", { for: id }, signed(by));
  const input = el("input", {
    ...{ type: "range", min: -1, max: 1, step: 0.5, value: by },
    ...{ id, "data-focus": `slider:${place}` },
    oninput: ({ target }) => { output.textContent = signed(target.valueAsNumber); },
    onchange: ({ target }) => steer(atom, target.valueAsNumber),
  });
  const remove = () => change(({ atoms }) => { delete atoms[atom]; });
  return el("li", {}, el("label", { for: id }, atomName(atom)), input, output,
    icon("×", `Leave ${atomName(atom)} alone`, `unsteer:${place}`, remove));
}

function drawLists(lists) {
  byId("columns").style.setProperty("--n", Math.max(lists.length, 1));
  keepingFocus(() => byId("columns").replaceChildren(...lists.map(column)));
  const names = lists.map(({ name }) => name).join(" ");
  if (byId("shown").dataset.names === names) return; // on a narrow screen one list is chosen
  byId("shown").dataset.names = names;
  byId("shown").hidden = lists.length < 2;
  byId("columns").dataset.shown = 0;
  const onchange = ({ target }) => { byId("columns").dataset.shown = target.value; };
  const radios = lists.map(({ name }, value) =>
    el("label", {}, el("input", { type: "radio", name: "shown", value, onchange }), name));
  byId("shown").replaceChildren(byId("shown").firstElementChild, ...radios);
  if (lists.length) radios[0].firstElementChild.checked = true;
}

function column({ name, items, error }) {
  const id = `list-${name}`;
  const says = el("p", { class: "muted" }, RANKINGS[name]?.[0]);
  const head = el("header", {}, el("h3", { id }, name), says);
  const legend = ["consume", "like", "rating"].map((text) => el("span", {}, text));
  const empty = error ?? (items.length ? null : "No item meets these filters.");
  return el("section", { class: "column", "aria-labelledby": id }, head,
    given(items[0]?.p_consume)
      ? el("div", { class: "figures legend", "aria-hidden": "true" }, legend) : null,
    empty ? el("p", {}, empty) : el("ol", {}, items.map((item, place) => hit(name, item, place))));
}

function hit(ranking, item, place) {
  const name = nameOf(item.item_id);
  const rowKey = `${ranking} ${item.item_id}`;
  const title = button(name, () => toggle(!opened.has(rowKey)), {
    class: "title",
    "aria-expanded": false,
    "data-focus": `title ${ranking}:${place}`,
  });
  const adding = view.profile.some(({ id }) => id === item.item_id)
    ? el("span")
    : icon("+", `Add ${name} to the profile`, `add ${ranking}:${place}`, () => add(item.item_id));
  const row = el("li", { class: "hit" },
    el("span", { class: "rank" }, place + 1), title, adding, figures(ranking, item));
  const toggle = (open) => {
    title.setAttribute("aria-expanded", open);
    if (open) opened.set(rowKey, toggle);
    else opened.delete(rowKey);
    row.querySelector(".more")?.remove();
    if (open) row.append(more(item));
  };
  if (opened.has(rowKey)) toggle(true);
  return row;
}

const drawOpened = () =>
  keepingFocus(() => [...opened.values()].forEach((toggle) => toggle(true)));

function figures(ranking, item) {
  if (!given(item.p_consume)) return el("div", { class: "score" }, scoreText(ranking, item.score));
  const cell = (field, label, text) =>
    el("span", { class: RANKINGS[ranking]?.includes(field) ? "own" : null },
      el("span", { class: "unseen" }, `${label} `), text);
  return el("div", { class: "figures" },
    cell("p_consume", "consume", percent(item.p_consume)),
    cell("p_like", "like", percent(item.p_like)),
    cell("expected_rating", "rating", number(item.expected_rating)),
    item.levels ? spark(levelsOf(item)) : null);
}

/** [name, probability, whether it is liked], in the build's order, which objects do not keep. */
function levelsOf({ levels }) {
  return model().levels.map((name, place) => [name, levels[name] ?? 0, model().liked[place]]);
}

function bar(side, share, liked) {
  const node = el("i", { class: liked ? "liked" : null });
  node.style[side] = `${100 * share}%`;
  return node;
}

function spark(levels) {
  const most = Math.max(...levels.map(([, p]) => p));
  const bars = levels.map(([, p, liked]) => bar("height", Math.max(0.06, p / most), liked));
  return el("span", { class: "spark", "aria-hidden": "true" }, bars);
}

function distribution(levels) {
  const rows = levels.map(([name, p, liked]) =>
    [["span", name], ["div", bar("width", p, liked)], ["b", percent(p)]]);
  return el("div", { class: "levels" }, rows.flat().map(([tag, child]) => el(tag, {}, child)));
}

function more(item) {
  const part = (title, content) => el("div", {}, el("h4", {}, title), content);
  const pairs = (rows) => el("ul", { class: "pairs" }, rows.map((row) => el("li", {}, row)));
  const parts = [];
  if (item.because?.length) {
    const rows = item.because.map((like) => [nameOf(like.item_id), muted(number(like.score))]);
    parts.push(part("Why: most like it in the profile, by cosine", pairs(rows)));
  }
  if (item.atoms?.length) {
    const rows = item.atoms.map(({ atom, share }, place) => {
      const label = `Steer ${atomName(atom)}`;
      const named = { "aria-label": label, "data-focus": `steer ${item.item_id}:${place}` };
      const signedShare = `${share < 0 ? "−" : ""}${percent(Math.abs(share))}`;
      return [atomName(atom), muted(signedShare), button("Steer", () => steer(atom, 1), named)];
    });
    parts.push(part("Why: atoms that brought most to its score", pairs(rows)));
  }
  if (item.levels) parts.push(part("How it will be rated", distribution(levelsOf(item))));
  const known = Object.entries(attributes.get(item.item_id) ?? {});
  const told = [["id", item.item_id], ...known.filter(([, value]) => given(value) && value !== "")];
  const list = told.map(([name, value]) => [["dt", name], ["dd", attributeText(value)]]);
  const cells = list.flat().map(([tag, text]) => el(tag, {}, text));
  parts.push(part("Item", el("dl", { class: "attributes" }, cells)));
  return el("div", { class: "more" }, parts);
}

/** Offer for filters what the shown items have. */
function drawSeen() {
  const rows = [...attributes.values()];
  const options = (values) => [...new Set(values)].map((value) => el("option", { value }));
  byId("attributes").replaceChildren(...options(rows.flatMap(Object.keys)));
  const values = rows.flatMap((row) => valuesOf(row[byId("attribute").value])).sort();
  byId("values").replaceChildren(...options(values).slice(0, OFFERED));
}

// -- asking --------------------------------------------------------------------------------

/** Learn what is served, where that failed before, and ask for what the view says. */
async function begin() {
  clearTimeout(again);
  drawAsked(); // also where nothing is known yet: the profile is never lost
  try {
    if (!facts) await learn();
  } catch (error) {
    return failed(error);
  }
  drawAsked();
  return refresh();
}

async function refresh() {
  running?.abort();
  clearTimeout(again);
  const { signal } = (running = new AbortController());
  byId("columns").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const lists = await (isEmpty() ? startLists(signal) : rankedLists(signal));
    if (signal.aborted) return;
    succeeded(lists, performance.now() - started);
    await describe(lists, signal).catch(({ message }) => {
      if (!signal.aborted) byId("told").textContent += `; attributes are missing: ${message}`;
    });
  } catch (error) {
    if (!signal.aborted) failed(error);
  } finally {
    if (!signal.aborted) byId("columns").removeAttribute("aria-busy");
  }
}

/** The lists for nobody; one of them may be what the build cannot give. */
async function startLists(signal) {
  const names = ["popular", "recent"];
  const answers = await Promise.allSettled(names.map((name) => service.start(name, view, signal)));
  const reasons = answers.map(({ reason }) => reason);
  const grave = reasons.find((reason) => reason && reason.status !== 422);
  if (grave && reasons.every((reason) => reason)) throw grave;
  return answers.map(({ value, reason }, place) => ({
    ...{ name: names[place], items: value?.items ?? [] },
    error: reason && sentence(reason.message),
  }));
}

async function rankedLists(signal) {
  const names = facts.rankings.slice(0, 4);
  const answers = await service.lists(names, view, signal);
  if (answers.every(({ error }) => error)) {
    const [{ error: { type, message } }] = answers;
    throw new Failure(type === "unknown_user" ? 404 : 422, message);
  }
  return answers.map(({ answer, error }, place) => ({
    ...{ name: names[place], items: [], ...answer },
    error: error && sentence(error.message),
  }));
}

function succeeded(lists, ms) {
  for (const { item_id, title, atoms } of lists.flatMap(({ items }) => items)) {
    titles.set(item_id, title);
    for (const { atom, name } of atoms ?? []) {
      if (!atomNames.size) learnAtoms();
      nameAtom(atom, name);
    }
  }
  byId("failure").hidden = true;
  byId("user").removeAttribute("aria-invalid");
  unknown = new Set(lists.flatMap((list) => list.unknown_items ?? []));
  drawLists(lists);
  drawAsked();
  const longest = Math.max(...lists.map(({ items }) => items.length));
  const names = lists.map(({ name }) => name).join(", ");
  byId("told").textContent = `${longest} items by ${names}, ${Math.round(ms)} ms`;
  const why = lists.find(({ degraded }) => degraded)?.degraded;
  byId("hint").hidden = !isEmpty() && !why;
  byId("hint").textContent = why
    ? `These lists are made by ${why.answered_by}: ${DEGRADED[why.reason]}.`
    : `Add an item${facts.n_users ? ", or name a stored user" : ""}: ` +
      "then the rankings of this build stand side by side.";
  const build = lists.find(({ build_id }) => build_id)?.build_id;
  if (build && build !== facts.build_ids.index) learn().catch(failed); // another one is served
}

/** Ask for the attributes of what is shown, and for titles that a shared view lacks. */
async function describe(lists, signal) {
  const shown = lists.flatMap(({ items }) => items.map(({ item_id }) => item_id));
  const asked = new Set([...shown, ...view.profile.map(({ id }) => id)]);
  const missing = [...asked].filter((id) => !attributes.has(id)).slice(0, 1000);
  if (missing.length) {
    for (const item of await service.details(missing, signal)) {
      titles.set(item.item_id, item.title);
      attributes.set(item.item_id, item.attributes);
    }
    if (view.profile.some(({ id }) => missing.includes(id))) drawAsked();
    drawOpened();
  }
  drawSeen();
}

async function learnAtoms() {
  try {
    for (const { atom, name, items: [strongest] } of await service.atoms()) {
      const like = strongest && `Atom ${atom}, as in ${strongest.title ?? strongest.item_id}`;
      nameAtom(atom, name ?? like);
    }
    drawSteering();
    drawOpened();
  } catch { /* those of the lists are known */ }
}

function failed(error) {
  if (!(error instanceof Failure)) console.error(error);
  const { status, message, retryAfter } = error instanceof Failure
    ? error : new Failure(0, "The page failed to read the answer.");
  if (status === 401) return askForKey(key ? sentence(message) : "", true);
  const passing = [0, 429].includes(status) || status >= 500;
  const parts = [el("span", {}, sentence(message))];
  if (retryAfter) {
    parts.push(el("span", {}, `Asks again in ${retryAfter} s.`));
    again = setTimeout(begin, 1000 * retryAfter);
  }
  if (status === 403) parts.push(button("Give a key", () => askForKey("")));
  if (passing) parts.push(button("Ask again", begin));
  else drawLists([]);
  byId("told").textContent = "";
  byId("hint").hidden = true;
  byId("failure").replaceChildren(...parts);
  byId("failure").hidden = false;
  if (status === 404 && view.user) byId("user").setAttribute("aria-invalid", "true");
}

function askForKey(told, needed = false) {
  byId("key-open").hidden = false;
  byId("key-forget").hidden = !key;
  byId("key-told").textContent = told;
  byId("key").value = "";
  byId("key-dialog").dataset.needed = needed || "";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function useKey(text) {
  key = text;
  try {
    if (text) sessionStorage.setItem(STORED_KEY, text);
    else sessionStorage.removeItem(STORED_KEY);
  } catch { /* see above */ }
  byId("key-dialog").dataset.needed = "";
  byId("key-dialog").close();
  begin();
}

// -- facts of the build --------------------------------------------------------------------

async function learn() {
  facts = await service.status();
  attributes.clear();
  const { n_items, n_users, build_ids, following } = facts;
  const sizes = `${count(n_items)} items, ${count(n_users)} stored users`;
  byId("facts").hidden = false;
  byId("build").textContent = `index ${build_ids.index} · ${sizes}`;
  byId("user-form").hidden = !n_users;
  byId("level-field").hidden = model().levels.length < 2;
  byId("level").replaceChildren(...levelOptions(byId("level").value));
  const { levels, fitted_until, period } = model();
  const told = {
    ...{ Catalogue: sizes, Rankings: facts.rankings.join(", "), Levels: levels.join(", ") },
    "Fitted until": fitted_until ? `${day(fitted_until)} (${period})` : "",
    "Kind of index": facts.facts.index.kind,
    "Served since": following ? day(following.served_since) : "",
    "Not served": following?.refused,
    ...{ ...build_ids, raysys: facts.version },
  };
  byId("facts-list").replaceChildren(...Object.entries(told).filter(([, value]) => value).map(
    ([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  service.evaluation().then(drawEvaluation, ({ message }) => {
    byId("evaluation").textContent = sentence(message);
  });
}

function drawEvaluation(found) {
  if (!found) {
    const none = muted("What is served was not evaluated: raysys evaluate does it.");
    return byId("evaluation").replaceChildren(none);
  }
  const { period, users, methods } = found;
  const names = new Set([...SERVED.filter((name) => methods[name]), ...Object.keys(methods)]);
  const metrics = METRICS.filter((metric) => [...names].some((name) => methods[name][metric]));
  const from = found.cutoffs?.[period];
  const caption = `Evaluated on the ${period} window${from ? `, from ${day(from)} on` : ""}: ` +
    `${count(users)} users, 95 % intervals`;
  const cell = ({ mean, ci_low, ci_high } = {}, own = false) => {
    const half = own && given(ci_high) ? ` ± ${((ci_high - ci_low) / 2).toFixed(3)}` : "";
    return el("td", {}, given(mean) ? [mean.toFixed(3), muted(half)] : "–");
  };
  const rows = [...names].map((name) => {
    const own = SERVED.includes(name);
    return el("tr", { class: own ? "own" : null }, el("th", { scope: "row" }, name),
      metrics.map((metric) => cell(methods[name][metric], own)));
  });
  const head = ["Method", ...metrics].map((name) => el("th", { scope: "col" }, name));
  return byId("evaluation").replaceChildren(el("table", {},
    el("caption", {}, el("span", {}, caption)),
    el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

// -- finding items by title: a combobox ----------------------------------------------------

const finder = { items: [], active: -1, timer: 0, running: null };

function showFound(items, told = "") {
  Object.assign(finder, { items, active: -1 });
  byId("titles").replaceChildren(...items.map(({ item_id, title }, place) => {
    const option = { role: "option", id: `found-${place}`, "aria-selected": false };
    const id = given(title) ? muted(` ${item_id}`) : null;
    return el("li", { ...option, onclick: () => choose(place) }, title ?? item_id, id);
  }));
  byId("titles").hidden = !items.length;
  byId("title").setAttribute("aria-expanded", items.length > 0);
  byId("title").removeAttribute("aria-activedescendant");
  byId("titles-told").textContent = told;
}

function activate(place) {
  const options = [...byId("titles").children];
  finder.active = (place + options.length) % options.length;
  options.forEach((option, at) => option.setAttribute("aria-selected", at === finder.active));
  options[finder.active].scrollIntoView({ block: "nearest" });
  byId("title").setAttribute("aria-activedescendant", `found-${finder.active}`);
}

function choose(place) {
  const { item_id, title } = finder.items[place];
  byId("title").value = "";
  showFound([]);
  add(item_id, title);
}

async function find(text) {
  const { signal } = (finder.running = new AbortController());
  try {
    const [titled, named] = await Promise.all(
      [service.titled(text, signal), service.details([text], signal)]);
    const items = [...named, ...titled.filter(({ item_id }) => item_id !== named[0]?.item_id)];
    if (!signal.aborted) showFound(items, items.length ? "" : "No title holds all of these words.");
  } catch (error) {
    if (signal.aborted) return;
    showFound([]);
    failed(error);
  }
}

// -- what people do -------------------------------------------------------------------------

on("title", "input", () => {
  clearTimeout(finder.timer);
  finder.running?.abort();
  const text = byId("title").value.trim();
  if (text) finder.timer = setTimeout(find, PAUSE_MS, text);
  else showFound([]);
});
on("title", "keydown", (event) => {
  const moves = { ArrowDown: finder.active + 1, ArrowUp: Math.max(finder.active, 0) - 1 };
  if (event.key in moves && finder.items.length) activate(moves[event.key]);
  else if (event.key === "Enter" && finder.items.length) choose(Math.max(finder.active, 0));
  else if (event.key === "Escape") showFound([]);
  else return;
  event.preventDefault();
});
on("title", "blur", () => showFound([]));
on("titles", "mousedown", (event) => event.preventDefault()); // else the list would close first
on("clear", "click", () => {
  change((now) => { now.profile = []; });
  byId("profile-title").focus();
});
on("user-form", "submit", (event) => {
  event.preventDefault();
  change((now) => { now.user = byId("user").value.trim(); });
});
on("k", "change", () => change((now) => { now.k = Number(byId("k").value); }));
on("attribute", "input", drawSeen);
on("filter-form", "submit", (event) => {
  event.preventDefault();
  const [name, text] = ["attribute", "value"].map((id) => byId(id).value.trim());
  if (!name || !text) return;
  filter(byId("side").value, name, text);
  byId("value").value = "";
  byId("value").focus();
});
on("atom", "change", () => byId("atom").value && steer(byId("atom").value, 1));
on("key-open", "click", () => askForKey(""));
on("key-cancel", "click", () => byId("key-dialog").close());
on("key-forget", "click", () => useKey(null));
on("key-form", "submit", (event) => {
  event.preventDefault();
  const text = byId("key").value.trim();
  if (/^[!-~]+$/.test(text)) useKey(text);
  else byId("key-told").textContent = text ? "A key has no spaces or accents." : "No key yet.";
});
on("key-dialog", "close", ({ target }) => {
  if (target.dataset.needed) failed(new Failure(403, "Nothing is answered without a key."));
});
addEventListener("popstate", () => {
  view = viewOf(location.hash);
  begin();
});

byId("key-open").hidden = !key;
begin();
