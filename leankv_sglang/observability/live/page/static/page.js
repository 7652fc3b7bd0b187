// The server makes all pictures and tables; this puts in what it sends, and asks what a prompt would hit.
"use strict";

const live = document.getElementById("live");
const pause = document.getElementById("pause");
const form = document.getElementById("head-form");
let source = null;

function connect() {
  const query = new URLSearchParams(new FormData(form));
  source = new EventSource(document.body.dataset.events.split("?")[0] + "?" + query);
  source.addEventListener("sections", (event) => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      const place = document.getElementById(id);
      if (place) place.innerHTML = html;
    }
    live.textContent = "Live, every second";
  });
  source.onerror = () => { live.textContent = "The server does not answer; trying again"; };
}

function disconnect() {
  if (source) source.close();
  source = null;
}

pause.addEventListener("click", () => {
  const paused = source !== null;
  if (paused) disconnect(); else connect();
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
  live.textContent = paused ? "Paused" : "Connecting";
});

function again() {
  if (source) { disconnect(); connect(); }
}

form.addEventListener("submit", (event) => { event.preventDefault(); again(); });

document.getElementById("heads").addEventListener("click", (event) => {
  const { layer, head } = event.target.dataset;
  if (layer === undefined) return;
  form.elements.layer.value = layer;
  form.elements.head.value = head;
  again();
});

const probe = document.getElementById("probe-form");
probe.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = document.getElementById("probe-answer");
  const text = probe.elements.text.value;
  const body = probe.elements.chat.checked ? { messages: [{ role: "user", content: text }] } : { text };
  if (probe.elements.cache_salt.value) body.cache_salt = probe.elements.cache_salt.value;
  if (probe.elements.profile.value) body.leankv = { profile: probe.elements.profile.value };
  answer.textContent = "Asking";
  try {
    const response = await fetch("leankv/probe", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const found = await response.json();
    answer.textContent = response.ok ? found.sentence : found.error.message;
  } catch (error) {
    answer.textContent = "The server does not answer.";
  }
});
// Until here it could not be sent: by itself a form would leave the page.
probe.querySelector("button").disabled = false;

connect();
