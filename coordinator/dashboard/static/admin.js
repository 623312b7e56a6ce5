// Renews the part of the page that changes, writes times in the viewer's zone, and fetches the history of a block when it is opened.
const live = document.getElementById("live");
const pulse = document.getElementById("pulse");
const said = document.getElementById("said");
const every = 1000 * Number(live.dataset.live);
let asked = 0;
let lost = false;
let alarms = count();

function count() {
  const list = live.querySelector("[data-count]");
  return list ? Number(list.dataset.count) : 0;
}

function local(root) {
  for (const node of root.querySelectorAll("time")) {
    const title = new Date(node.dateTime).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});
    if (node.title !== title) node.title = title;
  }
  for (const node of root.querySelectorAll("text[data-time]")) {
    const text = new Date(node.dataset.time).toLocaleTimeString();
    if (node.textContent !== text) node.textContent = text;
  }
}

// Makes `old` what `fresh` is, and leaves alone what is the same: focus, selection, scrolling and what was opened or typed stay.
function called(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.id || node.getAttribute("aria-labelledby") : null;
}

function become(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || called(old) !== called(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.dataset.loaded) return;
  for (const {name} of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const {name, value} of [...fresh.attributes]) {
    const own = (name === "open" && old.nodeName === "DETAILS") || (name === "title" && old.nodeName === "TIME" && old.dateTime === fresh.getAttribute("datetime"));
    if (!own && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.nodeName === "text" && old.dataset.time && old.dataset.time === fresh.dataset.time) return;
  children(old, fresh);
}

// What has an id is found by it, wherever it stands now: a chosen row stays the row of its run.
function children(old, fresh) {
  const known = new Map([...old.children].filter((node) => node.id).map((node) => [node.id, node]));
  let at = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const same = node.id ? known.get(node.id) : null;
    if (same) {
      if (same === at) at = at.nextSibling; else old.insertBefore(same, at);
      become(same, node);
    } else if (at && !at.id && !node.id) {
      const next = at.nextSibling;
      become(at, node);
      at = next;
    } else {
      old.insertBefore(node, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// A browser lets only pages from this machine, or over HTTPS, write to the clipboard.
function offered(root) {
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

function tell(text, bad) {
  pulse.hidden = false;
  pulse.textContent = text;
  pulse.className = bad ? "lost" : "mute";
}

async function part(path) {
  const address = new URL(path, location.href);
  address.searchParams.set("part", "live");
  address.searchParams.delete("did");
  const answer = await fetch(address, {credentials: "same-origin"});
  if (answer.status === 401) { location.reload(); throw new Error("logged out"); }
  if (!answer.ok) throw new Error(answer.status);
  const root = document.createElement("div");
  root.innerHTML = await answer.text();
  local(root);
  offered(root);
  return root;
}

async function refresh() {
  asked = Date.now();
  try {
    const fresh = await part(location.href.split("#")[0]);
    children(live, fresh);
    local(live);
    tell("live, " + new Date().toLocaleTimeString(), false);
    if (lost) said.textContent = "The coordinator answers again.";
    lost = false;
    const more = count();
    if (more > alarms) said.textContent = more + " things need somebody.";
    alarms = more;
  } catch (error) {
    tell("the coordinator does not answer (" + error.message + "); trying again", true);
    if (!lost) said.textContent = "The coordinator does not answer. What is shown is of " + new Date(asked).toLocaleTimeString() + ".";
    lost = true;
  }
}

async function again() {
  if (!document.hidden && Date.now() - asked >= every) await refresh();
  setTimeout(again, document.hidden ? 1000 : Math.max(200, every - (Date.now() - asked)));
}

live.addEventListener("toggle", async (event) => {
  const place = event.target.open && event.target.querySelector(":scope > [data-load]:not([data-loaded])");
  if (!place) return;
  place.dataset.loaded = "1";
  try {
    place.replaceChildren(...(await part(place.dataset.load)).childNodes);
  } catch (error) {
    delete place.dataset.loaded;
  }
}, true);

// What asks "sure?" is closed by Escape, and by a click beside it.
function close(sure) {
  sure.open = false;
  if (sure.contains(document.activeElement)) sure.querySelector("summary").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelectorAll(".sure[open]").forEach(close);
});
document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
    said.textContent = copy.textContent = "Copied";
  }
  for (const sure of document.querySelectorAll(".sure[open]")) if (!sure.contains(event.target)) close(sure);
});

local(document);
offered(document);
// What happens is shown at once, but never more often than twice a second: many events are one look.
let soon = null;
function happened() {
  if (document.hidden || soon) return;
  soon = setTimeout(async () => { soon = null; await refresh(); }, Math.max(50, 500 - (Date.now() - asked)));
}

// A browser has six connections to a host, for all its tabs: only a page that is seen keeps one.
let stream = null;
function listen() {
  if (document.hidden) {
    if (stream) stream.close();
    stream = null;
  } else if (!stream || stream.readyState === EventSource.CLOSED) {
    stream = new EventSource("/admin/stream");
    stream.onmessage = happened;
  }
}

if (every) {
  asked = Date.now();
  again();
  listen();
  document.addEventListener("visibilitychange", () => { listen(); happened(); });
}
