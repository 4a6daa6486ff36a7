"use strict";

// Keeps a page current. The gateway tells over one event stream what has changed; the page asks for itself again and takes over
// the parts that show it, rendered and escaped by the gateway. Nothing that a peer wrote is turned into HTML here, and without
// this script everything works but the liveness. A page that is not in sight has no stream and asks for nothing.

const LEAST_WAIT_MS = 500;
const IDLE_SHARE = 10; // A page rests ten times as long as its last request took.
const RETRY_MS = 5000;
const TYPING_MS = 200;

const dirty = new Set();
const sources = new Map(); // Id of a part -> the HTML that it came as.
let stream = null;
let seen = document.getElementById("top").dataset.cursor;
let timer = null;
let wait = LEAST_WAIT_MS;
let current = null; // The request that is under way.

// ---------------------------------------------------------------- taking over parts

function parts(root) {
  return Array.from(root.querySelectorAll("[data-topics]"));
}

function keyed(root, key) {
  return Array.from(root.querySelectorAll("[data-key]")).find((item) => item.dataset.key === key);
}

function replace(old, made) {
  for (const item of made.querySelectorAll("details")) {
    const before = keyed(old, item.dataset.key);
    item.open = Boolean(before && before.open);
  }
  const focused = old.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = new Map(Array.from(old.querySelectorAll("[data-scroll]"), (item) => [item.dataset.scroll, item]));
  const places = new Map(Array.from(scrolled, ([name, item]) => [name, [item.scrollLeft, item.scrollTop]]));
  old.replaceWith(made);
  for (const item of made.querySelectorAll("[data-scroll]")) {
    [item.scrollLeft, item.scrollTop] = places.get(item.dataset.scroll) || [0, 0];
  }
  const again = focused === undefined ? undefined : keyed(made, focused);
  if (again) {
    again.focus({ preventScroll: true });
  }
  copyButtons(made);
}

function selecting(part) {
  const selection = getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
}

function take(html) {
  const made = new DOMParser().parseFromString(html, "text/html");
  for (const old of parts(document)) {
    const fresh = dirty.has(old.id) ? made.getElementById(old.id) : null;
    if (fresh && fresh.outerHTML !== sources.get(old.id) && !selecting(old)) {
      sources.set(old.id, fresh.outerHTML);
      replace(old, fresh);
    }
  }
  dirty.clear();
  ages();
}

async function refresh() {
  timer = null;
  if (current) {
    current.abort();
  }
  const request = new AbortController();
  current = request;
  const began = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal: request.signal });
    if (answer.status === 401 || answer.status === 404) {
      location.reload(); // The page says by itself what is the matter.
      return;
    }
    if (answer.ok) {
      take(await answer.text());
    }
  } catch (error) {
    if (error.name === "AbortError") {
      return; // A newer request is under way.
    }
    live("lost"); // The stream comes back by itself, and what is dirty stays dirty.
  } finally {
    if (current === request) {
      current = null;
    }
  }
  wait = Math.max(LEAST_WAIT_MS, IDLE_SHARE * (performance.now() - began));
  if (dirty.size) {
    schedule(wait);
  }
}

function schedule(delay) {
  if (timer === null && !current && !document.hidden) {
    timer = setTimeout(refresh, delay);
  }
}

function everything() {
  for (const part of parts(document)) {
    dirty.add(part.id);
  }
}

// ---------------------------------------------------------------- the stream

const TOPICS = ["nodes", "datasets", "sessions", "traffic", "log", "jobs"];

function changed(topic, data) {
  for (const part of parts(document)) {
    const about = topic === "jobs" ? part.dataset.job : part.dataset.node;
    const foreign = about !== undefined && data.id !== undefined && data.id !== about;
    if (part.dataset.topics.split(" ").includes(topic) && !foreign) {
      dirty.add(part.id);
    }
  }
  if (dirty.size) {
    schedule(wait);
  }
}

const LIVE = { on: "live", lost: "reconnecting…", off: "not live" };

function live(state) {
  const badge = document.getElementById("live");
  if (badge.dataset.state !== state) {
    badge.dataset.state = state;
    badge.textContent = LIVE[state];
  }
}

function listen() {
  if (stream || document.hidden) {
    return;
  }
  const opened = new EventSource(`/events/stream?after=${encodeURIComponent(seen)}`);
  stream = opened;
  opened.addEventListener("open", () => {
    live("on");
    if (dirty.size) {
      schedule(0);
    }
  });
  opened.addEventListener("error", () => {
    live("lost");
    if (opened.readyState === EventSource.CLOSED && stream === opened) {
      hush(); // Refused, for example as too many pages are open or the gateway wants a new token.
      setTimeout(again, RETRY_MS);
    }
  });
  for (const topic of TOPICS) {
    opened.addEventListener(topic, (event) => {
      seen = event.lastEventId;
      changed(topic, JSON.parse(event.data));
    });
  }
  opened.addEventListener("reset", (event) => {
    seen = event.lastEventId;
    everything();
    schedule(0);
  });
}

function hush() {
  if (stream) {
    stream.close();
    stream = null;
  }
}

function again() {
  if (!stream && !document.hidden) {
    everything();
    schedule(0);
    listen();
  }
}

// ---------------------------------------------------------------- what readers do

let typing = null;

function search(form) {
  const address = new URL(form.action);
  for (const [name, value] of new FormData(form)) {
    if (value) {
      address.searchParams.append(name, value);
    }
  }
  if (address.href !== location.href) {
    history.replaceState(null, "", address);
    everything();
    clearTimeout(timer);
    refresh();
  }
}

function copyButtons(root) {
  for (const box of root.querySelectorAll("pre[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(box.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch (error) {
        getSelection().selectAllChildren(box.querySelector("code")); // Where the browser does not let us, the reader copies.
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    box.append(button);
  }
}

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function ages() {
  for (const item of document.querySelectorAll("time[data-age]")) {
    const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(item.dateTime)) / 1000));
    const [size, unit] = UNITS.find(([size]) => seconds >= size) || [1, "s"];
    const text = `${Math.floor(seconds / size)}\u00a0${unit}${item.dataset.age === "for" ? "" : " ago"}`;
    if (item.textContent !== text) {
      item.textContent = text;
    }
  }
}

function start() {
  for (const form of document.querySelectorAll("form[data-search]")) {
    form.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => search(form), TYPING_MS);
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      hush();
      clearTimeout(timer);
      timer = null;
    } else {
      ages();
      listen();
      if (dirty.size) {
        schedule(0);
      }
    }
  });
  addEventListener("pagehide", hush);
  addEventListener("pageshow", listen);
  setInterval(() => document.hidden || ages(), 1000);
  copyButtons(document);
  ages();
  listen();
}

start();
