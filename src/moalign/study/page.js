"use strict";
// The token stands behind # in the link, which browsers keep to themselves.
const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const sides = ["left", "right"].map(at);
const choices = [...document.querySelectorAll("[data-choice]")];
let trial = null;
let began = 0; // when both began to play
let ready = false; // both were seen once in full
let sending = false;
let failed = null; // what "Try again" repeats

function show(name) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
}

function trouble(text, again) {
  failed = again;
  at("what").textContent = text;
  at("retry").hidden = !again;
  show("trouble");
}

async function ask(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}` } };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    return trouble("The study cannot be reached. Please check your connection; no vote is lost.", () => ask(path, body));
  }
  const told = await answer.json();
  if (answer.ok) return next(told);
  const again = answer.status === 403 ? null : answer.status === 429 ? () => ask(path, body) : () => ask("next");
  trouble(told.error, again);
}

function next(told) {
  sending = false;
  at("progress").textContent = `${told.done} of ${told.total}`;
  at("bar").style.width = `${(100 * told.done) / told.total}%`;
  if (!told.trial) return show("done");
  trial = told.trial;
  at("prompt").textContent = `“${told.prompt}”`;
  at("question").textContent = told.question;
  ready = false;
  began = 0;
  choices.forEach((button) => button.classList.remove("chosen"));
  allow(false);
  at("hint").textContent = "The buttons wake when both videos have played once.";
  for (const video of sides) {
    video.src = told[video.id];
    video.load();
  }
  if (at("welcome").hidden || told.done > 0) show("trial");
}

function allow(may) {
  ready = may;
  for (const button of choices) if (button.dataset.choice !== "broken") button.disabled = !may;
  at("again").disabled = !may;
}

// Both start together, once both can.
function together() {
  if (began || at("trial").hidden || sides.some((video) => video.readyState < 4)) return;
  sides[0].style.setProperty("--shape", `${sides[0].videoWidth} / ${sides[0].videoHeight}`);
  sides[1].style.setProperty("--shape", `${sides[0].videoWidth} / ${sides[0].videoHeight}`);
  began = performance.now();
  const mine = trial;
  for (const video of sides) {
    video.currentTime = 0;
    video.play().catch(() => {});
  }
  setTimeout(() => {
    if (mine !== trial) return;
    allow(true);
    at("hint").textContent = "";
  }, 1000 * Math.max(...sides.map((video) => video.duration)));
}

function choose(choice) {
  if (sending || at("trial").hidden || (choice !== "broken" && !ready)) return;
  sending = true;
  choices.find((button) => button.dataset.choice === choice).classList.add("chosen");
  const seconds = began ? (performance.now() - began) / 1000 : 0;
  ask("vote", { trial, choice, seconds: Math.round(seconds * 1000) / 1000 });
}

function replay() {
  if (!ready) return;
  for (const video of sides) {
    video.currentTime = 0;
    video.play().catch(() => {});
  }
}

for (const video of sides) {
  video.addEventListener("canplaythrough", together);
  video.addEventListener("error", () => (at("hint").textContent = "A video did not load; please say so below."));
}
for (const button of choices) button.addEventListener("click", () => choose(button.dataset.choice));
at("again").addEventListener("click", replay);
at("retry").addEventListener("click", () => failed && failed());
at("start").addEventListener("click", () => {
  show("trial");
  together();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "ArrowLeft" || event.key === "1") choose("left");
  else if (event.key === "ArrowRight" || event.key === "2") choose("right");
  else if (event.key === "r" || event.key === "R") replay();
  else return;
  event.preventDefault();
});

show("welcome");
ask("next");
