// What hands do to a run's page: pointing and moving in image and Z, the slider, Play, the curves.

// ---- moving about in image and Z, which go together ----

function cellUnder(page, event) {
  const {view, shown} = page, box = event.currentTarget.getBoundingClientRect();
  const col = Math.floor(view.x + (event.clientX - box.left) / view.scale);
  const row = Math.floor(view.y + (event.clientY - box.top) / view.scale / view.tall);
  return !shown || row < 0 || col < 0 || row >= shown.rows || col >= shown.cols ? -1 : row * shown.cols + col;
}

// What lies at (x, y) of the panel stays there
function zoom(page, factor, x, y) {
  const {view, shown} = page, canvas = page.find('.image');
  if (!shown || shown.whole) return;
  [x, y] = [x ?? canvas.clientWidth / 2, y ?? canvas.clientHeight / 2];
  const least = canvas.clientWidth / Math.max(shown.cols, shown.rows) / 2;
  const scale = clamp(view.scale * factor, Math.min(least, view.scale), Math.max(160, view.scale));
  view.x += x / view.scale - x / scale;
  view.y += (y / view.scale - y / scale) / view.tall;
  Object.assign(view, {scale, fitted: false});
  moveTo(page, view.x, view.y);
}

// The middle of the panel stays on the grid
function moveTo(page, x, y) {
  const {view, shown} = page, canvas = page.find('.image');
  const wide = canvas.clientWidth / view.scale / 2, tall = canvas.clientHeight / view.scale / view.tall / 2;
  Object.assign(view, {
    x: clamp(x, -wide, shown.cols - wide), y: clamp(y, -tall, shown.rows - tall), fitted: false});
  refresh(page);
}

function showWhole(page) {
  page.view.fitted = true;
  refresh(page);
}

// Pointing shows a patch; a click pins it, or frees it; a drag of more than 4 pixels moves both panels
function listenToPointer(page, canvas) {
  let start = null;
  canvas.onpointerdown = event => {
    canvas.focus({preventScroll: true});
    canvas.setPointerCapture(event.pointerId);
    start = {x: event.clientX, y: event.clientY, view: {...page.view}, dragged: false};
  };
  canvas.onpointermove = event => {
    if (!page.shown || page.shown.whole) return;
    const dx = start ? event.clientX - start.x : 0, dy = start ? event.clientY - start.y : 0;
    if (start) start.dragged = start.dragged || Math.hypot(dx, dy) > 4;
    if (start?.dragged) {
      const {x, y, scale, tall} = start.view;
      return moveTo(page, x - dx / scale, y - dy / scale / tall);
    }
    const k = cellUnder(page, event);
    if (k == page.hover) return;
    page.hover = k;
    askForPatch(page);
    refresh(page);
  };
  canvas.onpointerup = event => {
    const k = start && !start.dragged ? cellUnder(page, event) : -1;
    start = null;
    if (k >= 0) pinTo(page, k == page.pin ? -1 : k);
  };
  canvas.onpointerleave = canvas.onpointercancel = () => {
    page.hover = -1;
    askForPatch(page);
    refresh(page);
  };
  canvas.ondblclick = () => showWhole(page);
}

// The wheel zooms only in a panel that has the focus, or with a modifier, so that one can scroll past it
function listenToWheel(page, canvas) {
  canvas.addEventListener('wheel', event => {
    if (!canvas.matches(':focus') && !event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), turn = clamp(event.deltaY || event.deltaX, -200, 200);
    zoom(page, Math.exp(-turn * .002), event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
}

// Arrows move the pin, Enter pins what is pointed at, Escape frees it; + - 0 zoom
function listenToKeys(page, canvas) {
  const arrows = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  canvas.addEventListener('keydown', event => {
    const arrow = arrows[event.key], {shown} = page;
    const action = {
      '+': () => zoom(page, 1.4), '=': () => zoom(page, 1.4), '-': () => zoom(page, 1 / 1.4),
      '0': () => showWhole(page),
      Enter: () => pinTo(page, patchShown(page, shown)), Escape: page.pin >= 0 && (() => pinTo(page, -1))}[event.key];
    if (!shown || shown.whole || !arrow && !action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (action) return action();
    const [row, col] = cellOf(Math.max(patchShown(page, shown), 0), shown.cols);
    const step = page.pin < 0 && page.hover < 0 ? 0 : 1;   // the first arrow pins the patch that is shown
    pinTo(page, clamp(row + step * arrow[0], 0, shown.rows - 1) * shown.cols +
      clamp(col + step * arrow[1], 0, shown.cols - 1));
  });
}

// ---- the slider, Play and the curves ----

function placeSlider(page) {
  const slider = page.find('.slider');
  slider.max = lastPlace(page);
  if (!page.sliding) slider.value = page.target?.place ?? 0;
}

function lastPlace(page) {
  const index = page.model.get('index') || [], n = page.model.get('curves')?.n || 0;
  return Math.max(n, index.length ? index[index.length - 1][4] : 0, 1);
}

// Ticks at the ends of epochs, numbered as far as there is room
function showTicks(page) {
  const ends = page.model.get('curves')?.epochs || [], last = lastPlace(page), ticks = page.find('.ticks');
  const every = Math.ceil(ends.length / Math.max(1, Math.floor(ticks.clientWidth / 56)));
  ticks.replaceChildren(...ends.flatMap((place, i) => {
    if ((i + 1) % every) return [];
    const tick = document.createElement('span');
    tick.style.left = 100 * place / last + '%';
    tick.textContent = i + 1 == every ? `epoch ${i + 1}` : i + 1;
    return [tick];
  }));
}

// The frames changed: the one shown stays while it is there, else the nearest takes its place
function showIndex(page) {
  const entries = entriesOf(page);
  for (const name of ['.slider', '.play', '.png']) page.find(name).disabled = !entries.length && !page.shown;
  if (page.live || !page.target) return goTo(page, newestFrame(page));
  const {id, place} = page.target;
  if (!entries.some(entry => entry[0] == id)) goToEntry(page, entryAt(entries, place));
  else goTo(page, page.target);   // again, if it has not come yet
}

// Play by place at a steady pace, the whole run in 24 seconds
function play(page, on) {
  if (page.playing) cancelAnimationFrame(page.playing);
  page.playing = null;
  page.find('.play').textContent = on ? 'Hold' : 'Play';
  if (!on) return;
  setLive(page, false);
  const entries = entriesOf(page), first = entries[0]?.[4] ?? 0, last = entries[entries.length - 1]?.[4] ?? 0;
  let place = page.target && page.target.place < last ? page.target.place : first, before = performance.now();
  function step(now) {
    place += (last - first) / 24 * Number(page.find('.speed').value) * Math.max(now - before, 0) / 1000;
    before = now;
    const entry = entryAt(entriesOf(page), place);
    if (entry && entry[0] != page.target?.id) goToEntry(page, entry);
    if (place >= last) return play(page, false);
    page.playing = requestAnimationFrame(step);
  }
  page.playing = requestAnimationFrame(step);
}

// Arrow keys go from frame to frame, not from place to place
function listenToSlider(page) {
  const slider = page.find('.slider');
  const steps = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10};
  slider.oninput = () => {
    play(page, false);
    choose(page, entryAt(entriesOf(page), Number(slider.value)));
  };
  slider.onpointerdown = () => { page.sliding = true; };
  slider.onpointerup = slider.onchange = () => { page.sliding = false; };
  slider.onkeydown = event => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    play(page, false);
    const entries = entriesOf(page), at = entries.findIndex(([id]) => id == page.target?.id);
    choose(page, entries[clamp(at + steps[event.key], 0, entries.length - 1)]);
  };
  page.find('.play').onclick = () => play(page, !page.playing);
  page.find('.live').onclick = () => setLive(page, !page.live);
}

function drawCurves(page) {
  const curves = page.model.get('curves') || {}, n = lastPlace(page);
  const plot = (name, lines, empty) => {
    const svg = page.find(name);
    return {svg, lines, legend: page.find(name + '-legend'), scales: drawPlot(svg, lines, n, empty)};
  };
  page.plots = [plot('.losses', lossCurves(curves), 'after the first inner iteration'),
    plot('.metrics', metricCurves(curves), 'after the first epoch')];
  placeSlider(page);
  showTicks(page);
  page.redraw = false;
}

// One cursor in both plots: at the mouse, else at the frame shown
function drawCursor(page) {
  const place = page.pointed ?? page.shown?.place;
  for (const {svg, lines, legend, scales} of page.plots) {
    const line = svg.querySelector('.cursor'), x = place == null ? -9 : scales.x(place);
    line.setAttribute('x1', x);
    line.setAttribute('x2', x);
    plotLegend(legend, lines, place ?? Infinity);
    svg.setAttribute('aria-label', `at inner iteration ${place ?? '-'}: ${legend.textContent}`);
  }
}

function listenToPlots(page) {
  for (const svg of page.el.querySelectorAll('.plot')) {
    const placeUnder = event => page.plots[0].scales.place(event.clientX - svg.getBoundingClientRect().left);
    svg.onpointermove = event => {
      page.pointed = Math.round(placeUnder(event));
      drawCursor(page);
    };
    svg.onpointerleave = () => {
      page.pointed = null;
      drawCursor(page);
    };
    svg.onclick = event => choose(page, entryAt(entriesOf(page), placeUnder(event)));
  }
}
