"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const player = $("player"), canvas = $("picture"), handle = $("handle"), slider = $("slider");
  const stage = canvas.parentElement;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { width, height } = data;
  // The first frames of a movie are its worst: they have neighbours on one side only.
  const state = { frame: data.frames.length >> 1, wipe: 0.5, view: "wipe", contrast: "shared", timer: 0 };
  const loaded = new Map();

  // Pixel values come as 8-bit PNGs over a known range; decoded once, when first shown.
  function decode(url) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const scratch = document.createElement("canvas");
        scratch.width = width; scratch.height = height;
        const pen = scratch.getContext("2d", { willReadFrequently: true });
        pen.drawImage(image, 0, 0);
        const rgba = pen.getImageData(0, 0, width, height).data;
        const grey = new Uint8Array(width * height);
        for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
        resolve(grey);
      };
      image.onerror = reject;
      image.src = url;
    });
  }
  function load(k) {
    if (!loaded.has(k)) {
      const frame = data.frames[k];
      loaded.set(k, Promise.all([decode(frame.raw), decode(frame.denoised)]));
    }
    return loaded.get(k);
  }

  function lookup(kind) {
    const [from, to] = data.stored[kind];
    const [low, high] = state.contrast === "own" ? data.own[kind] : data.shared;
    return Uint8ClampedArray.from({ length: 256 }, (_, g) =>
      Math.round(((from + (g / 255) * (to - from) - low) / (high - low)) * 255));
  }

  async function draw() {
    const k = state.frame;
    const [raw, denoised] = await load(k);
    if (k !== state.frame) return;
    const out = context.createImageData(width, height);
    const pixels = new Uint32Array(out.data.buffer);
    const put = (i, g) => { pixels[i] = 0xff000000 | (g << 16) | (g << 8) | g; };
    if (state.view === "residual") {
      const value = (kind) => {
        const [from, to] = data.stored[kind];
        return Float32Array.from({ length: 256 }, (_, g) => from + (g / 255) * (to - from));
      };
      const a = value("raw"), b = value("denoised"), scale = 127.5 / (3 * data.sigma);
      for (let i = 0; i < raw.length; i++) {
        put(i, Math.max(0, Math.min(255, Math.round(127.5 + (a[raw[i]] - b[denoised[i]]) * scale))));
      }
    } else {
      const left = lookup("raw"), right = lookup("denoised");
      const edge = Math.round(state.wipe * width);
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) put(i, x < edge ? left[raw[i]] : right[denoised[i]]);
      }
    }
    context.putImageData(out, 0, 0);
    canvas.dataset.shown = `${k} ${state.view} ${state.contrast} ${Math.round(state.wipe * 100)}`;
    if (k + 1 < data.frames.length) load(k + 1);
  }

  const number = (x) => Number(x.toPrecision(4)).toString().replace("-", "−");
  function show() {
    const index = data.frames[state.frame].index;
    slider.value = state.frame;
    const time = data.seconds ? `, ${number(index * data.seconds)} s` : "";
    // Counted from 0, as on the plots' axes, in the warnings and in --frames.
    $("where").textContent = `frame ${index} / ${data.total - 1}${time}`;
    slider.setAttribute("aria-valuetext", $("where").textContent);
    handle.style.left = `${100 * state.wipe}%`;
    handle.setAttribute("aria-valuenow", Math.round(100 * state.wipe));
    const residual = state.view === "residual";
    player.classList.toggle("residual", residual);
    $("tag-left").textContent = residual ? "residual: raw − denoised" : "raw";
    for (const view of ["wipe", "residual"]) {
      $(`view-${view}`).setAttribute("aria-pressed", state.view === view);
    }
    for (const contrast of ["shared", "own"]) {
      $(`contrast-${contrast}`).setAttribute("aria-pressed", state.contrast === contrast);
      $(`contrast-${contrast}`).disabled = residual;
    }
    const range = ([low, high]) => `${number(low)} to ${number(high)}`;
    $("contrast-text").textContent = residual
      ? `Grey is zero, black and white are ±${number(3 * data.sigma)} (3 σ).`
      : state.contrast === "shared"
        ? `Both sides black to white: ${range(data.shared)}.`
        : `Black to white: raw ${range(data.own.raw)}, denoised ${range(data.own.denoised)}.`;
    for (const plot of document.querySelectorAll("svg[data-per-frame]")) {
      const line = plot.querySelector('[id$="-cursor"]');
      line.setAttribute("transform", `translate(${index * plot.dataset.perFrame} 0)`);
    }
    draw();
  }

  function go(frame) {
    const n = data.frames.length;
    state.frame = ((frame % n) + n) % n;
    show();
  }
  function play(on) {
    clearInterval(state.timer);
    state.timer = on && data.frames.length > 1 ? setInterval(() => go(state.frame + 1), 160) : 0;
    $("play").textContent = state.timer ? "❚❚" : "▶";
    $("play").setAttribute("aria-label", state.timer ? "Pause" : "Play");
  }
  function wipe(to) { state.wipe = Math.max(0, Math.min(1, to)); show(); }
  function set(key, value) { state[key] = value; show(); }

  slider.addEventListener("input", () => { play(false); go(Number(slider.value)); });
  $("play").addEventListener("click", () => play(!state.timer));
  for (const view of ["wipe", "residual"]) {
    $(`view-${view}`).addEventListener("click", () => set("view", view));
  }
  for (const contrast of ["shared", "own"]) {
    $(`contrast-${contrast}`).addEventListener("click", () => set("contrast", contrast));
  }
  for (const grip of [canvas, handle]) {
    const follow = (event) => {
      const box = canvas.getBoundingClientRect();
      wipe((event.clientX - box.left) / box.width);
    };
    grip.addEventListener("pointerdown", (event) => {
      if (state.view !== "wipe" || event.button) return;
      grip.setPointerCapture(event.pointerId);
      if (grip === canvas) follow(event);
    });
    grip.addEventListener("pointermove", (event) => {
      if (grip.hasPointerCapture(event.pointerId)) follow(event);
    });
  }
  const strides = {
    ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05,
    PageDown: -0.25, PageUp: 0.25, Home: -1, End: 1,
  };
  // On the player alone: elsewhere on the page these keys scroll.
  player.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const on = event.target, key = event.key;
    if (on === handle && key in strides) wipe(state.wipe + strides[key]);
    else if (key === " " && on.tagName !== "BUTTON") play(!state.timer);
    else if (key === "ArrowLeft" && on !== slider) { play(false); go(state.frame - 1); }
    else if (key === "ArrowRight" && on !== slider) { play(false); go(state.frame + 1); }
    else if (key === "r" || key === "R") set("view", state.view === "wipe" ? "residual" : "wipe");
    else if (key === "c" || key === "C") set("contrast", state.contrast === "own" ? "shared" : "own");
    else return;
    event.preventDefault();
  });

  // Small frames are shown larger, whole steps at a time, so that pixels stay square.
  // Bar, handle and tags are placed in per cent of the stage, so it is the stage that is sized.
  stage.style.width = `${width * Math.max(1, Math.floor(640 / Math.max(width, height)))}px`;
  // The controls stay in sight below it.
  stage.style.maxWidth = `min(100%, ${Math.round((66 * width) / height)}vh)`;
  show();
})();
