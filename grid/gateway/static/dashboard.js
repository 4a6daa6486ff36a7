"use strict";

// Keeps the page current. The gateway says what has changed over an event stream; the changed parts are fetched as HTML
// that the gateway has rendered and escaped. Nothing that a peer wrote is ever turned into HTML here.

const PARTS = ["summary", "nodes", "datasets", "traffic"];
const shown = {};
const busy = new Set();
const waiting = new Map();

function element(part) {
  return document.getElementById(part);
}

function openKeys(root) {
  return new Set(Array.from(root.querySelectorAll("details[open]"), (item) => item.dataset.key));
}

function replace(part, html) {
  const old = element(part);
  const made = new DOMParser().parseFromString(html, "text/html").getElementById(part);
  if (!made || old.innerHTML === made.innerHTML) {
    return;
  }
  const open = openKeys(old);
  const focused = old.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  for (const item of made.querySelectorAll("details")) {
    item.open = open.has(item.dataset.key);
  }
  const scrolled = new Map(Array.from(old.querySelectorAll("[data-scroll]"), (item) => [item.dataset.scroll, item.scrollTop]));
  old.replaceWith(made);
  for (const item of made.querySelectorAll("[data-scroll]")) {
    item.scrollTop = scrolled.get(item.dataset.scroll) || 0;
  }
  if (focused !== undefined) {
    const again = Array.from(made.querySelectorAll("[data-key]")).find((item) => item.dataset.key === focused);
    if (again) {
      again.focus({ preventScroll: true });
    }
  }
  ages();
}

async function refresh(part, version) {
  if (busy.has(part)) {
    waiting.set(part, version);
    return;
  }
  busy.add(part);
  try {
    const answer = await fetch(`/fragments/${part}${location.search}`, { headers: { Accept: "text/html" } });
    if (answer.status === 401) {
      location.reload();
      return;
    }
    if (answer.ok) {
      replace(part, await answer.text());
      shown[part] = version;
    }
  } catch (error) {
    live("lost"); // The stream reconnects by itself and then reports every part again.
  } finally {
    busy.delete(part);
  }
  if (waiting.has(part)) {
    const next = waiting.get(part);
    waiting.delete(part);
    refresh(part, next);
  }
}

const LIVE = { on: "live", lost: "reconnecting…", off: "connecting…" };

function live(state) {
  const badge = element("live");
  badge.dataset.state = state;
  badge.textContent = LIVE[state];
}

const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function ages() {
  for (const item of document.querySelectorAll("time[data-age]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(item.dateTime)) / 1000);
    const [size, unit] = UNITS.find(([size]) => seconds >= size) || [1, "second"];
    item.textContent = seconds < 10 ? "just now" : relative.format(-Math.floor(seconds / size), unit);
  }
}

function start() {
  const stream = new EventSource("/api/v1/events");
  stream.addEventListener("open", () => live("on"));
  stream.addEventListener("error", () => live("lost"));
  stream.addEventListener("versions", (event) => {
    live("on");
    const versions = JSON.parse(event.data);
    for (const part of PARTS) {
      if (versions[part] !== shown[part]) {
        refresh(part, versions[part]);
      }
    }
  });
  addEventListener("pagehide", () => stream.close());
  setInterval(ages, 5000);
  ages();
}

start();
