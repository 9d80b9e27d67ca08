"use strict";
// The page reads well without any of this: it plays what is in view, moves through checkpoints, and fills in the times.
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const videos = [...document.querySelectorAll("video")];
  if (!calm && "IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting && !target.dataset.stopped) target.play().catch(() => (target.controls = true));
        else if (!isIntersecting) target.pause();
      }
    }, { rootMargin: "100px" });
    for (const video of videos) {
      video.controls = false;
      video.tabIndex = 0;
      const toggle = () => {
        if (video.paused) { delete video.dataset.stopped; video.play(); }
        else { video.dataset.stopped = "yes"; video.pause(); }
      };
      video.addEventListener("click", toggle);
      video.addEventListener("keydown", (event) => {
        if (event.key === " " || event.key === "Enter") { event.preventDefault(); toggle(); }
      });
      seen.observe(video);
    }
  }

  for (const scrub of document.querySelectorAll(".scrub")) {
    const players = scrub.parentElement.querySelector(".players");
    const steps = JSON.parse(players.dataset.steps);
    const output = scrub.querySelector("output");
    scrub.hidden = false;
    scrub.querySelector("input").addEventListener("input", (event) => {
      const chosen = steps[Number(event.target.value)];
      output.value = chosen.label;
      for (const video of players.querySelectorAll("video[data-weights]")) {
        const source = chosen[video.dataset.weights] || chosen.base;
        if (!source || video.getAttribute("src") === source) continue;
        const playing = !video.paused;
        video.removeAttribute("poster");  // it shows the last checkpoint
        video.src = source;
        video.closest("figure").querySelector(".step").textContent = chosen.label;
        if (playing) video.play().catch(() => {});
      }
    });
  }

  const timings = window.bricksTimings || {};
  for (const cell of document.querySelectorAll("[data-timing]")) {
    const told = cell.dataset.timing.split(".").reduce((place, key) => place && place[key], timings.shown || {});
    if (told) cell.textContent = told;
  }
})();
