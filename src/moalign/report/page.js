"use strict";
// Videos play while they are seen, a row in step; a click or the space bar stops one, the button all.
const videos = [...document.querySelectorAll("video")];
const button = document.getElementById("pause");
const seen = new Set();
let paused = matchMedia("(prefers-reduced-motion: reduce)").matches;

function settle(video) {
  video.classList.toggle("still", Boolean(video.stopped));
  if (seen.has(video) && !video.stopped && !paused) video.play().catch(() => {});
  else video.pause();
}

function say() {
  button.textContent = paused ? "Play all" : "Pause all";
  button.setAttribute("aria-pressed", String(paused));
  videos.forEach(settle);
}

function toggle(video) {
  video.stopped = !(video.paused);
  if (paused && !video.stopped) video.play().catch(() => {});
  else settle(video);
}

const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      seen.add(target);
      target.currentTime = 0;
    } else seen.delete(target);
    settle(target);
  }
});

// Loops drift apart: now and then a row takes the time of its first video that plays.
setInterval(() => {
  for (const row of document.querySelectorAll(".row")) {
    const [first, ...others] = [...row.querySelectorAll("video")].filter((video) => !video.paused);
    for (const video of others) {
      if (Math.abs(video.currentTime - first.currentTime) > 0.07) video.currentTime = first.currentTime;
    }
  }
}, 2000);

for (const video of videos) {
  watch.observe(video);
  video.addEventListener("click", () => toggle(video));
  video.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    toggle(video);
  });
}
for (const link of document.querySelectorAll('a[href^="#trail-"]')) {
  link.addEventListener("click", () => (document.querySelector(link.hash).open = true));
}
button.addEventListener("click", () => {
  paused = !paused;
  videos.forEach((video) => (video.stopped = false));
  say();
});
say();
