// A run as a page: while it trains, and played again. `render` is called by anywidget, or by `start` in a file of its
// own. One object, `page`, holds what a view knows:
//   model, el, find   the traits, the element, and what finds an element inside of it
//   frames, pictures  what came from Python so far, bounded in memory
//   target            the frame to show, {id, place}; `shown`: the frame that is drawn, `live`: follow the newest
//   view, seen        the part of the grid that is seen; the states that were seen so far, for the legend
//   pin, hover        cells: pinned, under the mouse; -1: none

const ENDED = ['stopped', 'failed', 'finished', 'lost'];   // states of a run that has no more use for its buttons
const RUN_CONTROLS = ['pause', 'inner', 'batch', 'stop', 'slow', 'fraction', 'accumulate'];
const IMAGE_CHOICES = {states: 'states', times: 'times sampled', age: 'age', adds: 'what it adds'};
const Z_CHOICES = {
  colours: 'three colours', norm: 'norm', age: 'age', times: 'times sampled', adds: 'what it adds', channel: 'channel'};

// Colours come from JupyterLab's theme, or from the page of a replay
const CSS = `
.patchgd-run {
  --fg: var(--jp-ui-font-color1, #222); --bg: var(--jp-layout-color1, #fff); --soft: var(--jp-layout-color2, #f0f2f4);
  --line: var(--jp-border-color1, #c3c8ce); --muted: color-mix(in srgb, var(--fg) 78%, var(--bg));
  --edge: color-mix(in srgb, var(--fg) 58%, var(--bg)); --side: 520px;
  container-type: inline-size; color: var(--fg); background: var(--bg); font-size: 13px; line-height: 1.35;
  max-width: 1400px; box-sizing: border-box;
  & *, & *::before { box-sizing: border-box; }
  & [hidden] { display: none !important; }
  &.large { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none; z-index: 10000; overflow: auto;
    margin: 0; border: 0; padding: 4px 16px 12px; font-size: 18px; --side: 720px; }
  & .bar, & .facts, & .more, & .time, & .foot { display: flex; flex-wrap: wrap; align-items: center; gap: 3px 12px; }
  & .bar { min-height: 36px; position: sticky; top: 0; z-index: 3; background: var(--bg);
    border-bottom: 1px solid var(--line); padding: 3px 0; }
  & .facts { min-height: 34px; padding: 3px 0; }
  & .more { padding: 5px 10px; background: var(--soft); border-radius: 5px; margin-bottom: 4px; gap: 4px 24px; }
  & .group { display: flex; align-items: center; gap: 4px; } & progress { margin: 0 6px; }
  & .right { margin-left: auto; }
  & button, & select, & input { font: inherit; color: var(--fg); }
  & button, & select, & input[type=number] { background: var(--soft); border: 1px solid var(--edge); border-radius: 4px;
    height: 1.95em; padding: 0 .7em; margin: 0; }
  & select { padding: 0 .3em; max-width: 13em; }
  & button { cursor: pointer; white-space: nowrap; }
  & button:hover:enabled { border-color: var(--fg); }
  & button[aria-pressed=true] { background: #1668b8; border-color: #1668b8; color: #fff; }
  & :is(button, input, select):disabled { opacity: .55; cursor: not-allowed; border-style: dashed; }
  & input[type=range] { accent-color: #1668b8; margin: 0; vertical-align: middle; }
  & :is(button, select, input, canvas):focus-visible { outline: 3px solid #e66100; outline-offset: 1px; }
  & canvas:focus { outline: 2px solid #e66100; outline-offset: -2px; touch-action: none; }
  & .slow { width: 80px; } & output { display: inline-block; min-width: 3em; }
  & progress { width: 110px; height: 9px; accent-color: #1668b8; vertical-align: middle; }
  & .status { font-weight: 600; flex: 1 1 200px; min-width: 0; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; }
  & .status.whole { flex-basis: 100%; white-space: normal; overflow-wrap: anywhere; }
  & .status::before { content: ''; display: inline-block; width: .75em; height: .75em; margin-right: .5em;
    border-radius: 50%; border: 1px solid var(--fg); background: var(--dot, #8a8f96); vertical-align: -1px; }
  & .status:is([data-state=training], [data-state=finished]) { --dot: #2aa84a; }
  & .status[data-state=failed] { --dot: #d42a2a; }
  & .status:is([data-state=paused], [data-state=lost]) { --dot: #f0a202; }
  & .status:is([data-state=validating], [data-state=elsewhere]) { --dot: #2f86e0; }
  & .panels { display: grid; grid-template-columns: minmax(0, var(--side)) minmax(0, var(--side)) 17em;
    gap: 14px; }
  &.flat .panels { grid-template-columns: minmax(0, calc(2 * var(--side))) 17em; row-gap: 4px; }
  &.flat .pin { grid-area: 1 / 2 / 3; }
  & figure { margin: 0; min-width: 0; }
  & figcaption { display: flex; align-items: center; gap: 8px; min-height: 26px; margin-bottom: 3px; }
  & figcaption b { font-weight: 600; } & figcaption select { min-width: 4em; } & .channel { width: 5em; }
  & .screen { position: relative; border: 1px solid var(--line); background: var(--soft); overflow: hidden; }
  & .screen canvas { display: block; width: 100%; cursor: crosshair; touch-action: pan-y; }
  & .veil { position: absolute; inset: 0; display: grid; place-items: center; text-align: center; padding: 16px;
    background: var(--soft); color: var(--fg); font-size: 1.1em; }
  & .zoom { margin-left: auto; display: flex; gap: 3px; } & .zoom button { padding: 0 .6em; }
  & .legend { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 12px; min-height: 1.8em; padding-top: 4px;
    font-size: .93em; }
  & .legend span { white-space: nowrap; } & .legend canvas { vertical-align: -4px; border: 1px solid var(--edge); }
  & .pin .cell { font-weight: 600; margin-bottom: 3px; height: 26px; line-height: 26px; white-space: nowrap; }
  & .patch { width: 200px; height: 200px; image-rendering: pixelated; display: block; background: var(--soft);
    border: 1px solid var(--line); }
  & .pin-text { white-space: pre-line; margin: 4px 0; height: 5.5em; overflow: hidden; }
  & .latent { display: block; width: 100%; height: 64px; }
  & .key { font-size: .93em; }
  & .key i { display: inline-block; width: 12px; height: 9px; background: #3d8fd1; }
  & .key i + i { height: 3px; background: #e66100; vertical-align: 3px; }
  & .time { flex-wrap: nowrap; align-items: flex-start; margin-top: 2px; } & .play { min-width: 4.6em; }
  & .track { position: relative; flex: 1; min-width: 60px; padding-bottom: 1em; }
  & .slider { width: 100%; display: block; height: 1.95em; }
  & .ticks { position: absolute; left: 8px; right: 8px; bottom: 0; height: 1.2em; font-size: .85em; line-height: 1; }
  & .ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; padding-top: 3px; }
  & .ticks span::before { content: ''; position: absolute; left: 50%; top: -1px; height: 5px;
    border-left: 1px solid var(--fg); }
  & .where { min-width: 15.5em; line-height: 1.95em; } & .verdict { font-weight: 600; }
  & .plots { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin-top: 2px; }
  & .plots .plot { display: block; width: 100%; height: 11em; cursor: crosshair; font-size: 11px; }
  &.large .plots .plot { font-size: 15px; }
  & .plots figcaption { flex-wrap: wrap; gap: 0 12px; min-height: 20px; margin: 0; }
  & .plots .legend { padding: 0; min-height: 0; }
  & .plots text { font-size: 1em; fill: var(--fg); }
  & .rule { stroke: var(--line); stroke-width: .7; } & .axis { stroke: var(--edge); }
  & .cursor { stroke: var(--fg); stroke-width: 1.2; stroke-dasharray: 4 2; }
  & .foot { gap: 2px 0; color: var(--muted); min-height: 20px; font-size: .93em; }
  & .foot span:not([hidden]) ~ span:not([hidden])::before { content: '|'; margin: 0 10px; }
  & .say { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
}
@container (max-width: 899px) {
  .patchgd-run .panels { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  .patchgd-run .pin { grid-column: 1 / -1; display: grid; grid-template-columns: 200px minmax(0, 1fr); gap: 0 14px;
    & .cell { grid-column: 1 / -1; } }
  .patchgd-run.flat .panels { grid-template-columns: minmax(0, 1fr); }
  .patchgd-run.flat .pin { grid-area: auto; }
}
@container (max-width: 639px) {
  .patchgd-run :is(.panels, .plots) { grid-template-columns: minmax(0, 1fr); }
  .patchgd-run .time { flex-wrap: wrap; & .track { flex-basis: 100%; order: -1; } }
}`;

// ---- elements ----

function button(name, text, title) {
  return `<button type="button" class="${name}" title="${title}">${text}</button>`;
}

function choice(name, label, choices) {
  const options = Object.entries(choices).map(([value, text]) => `<option value="${value}">${text}</option>`);
  return `<select class="${name}" aria-label="${label}">${options.join('')}</select>`;
}

function controlElements() {
  return `
    <div class="bar">
      <span class="group training" role="group" aria-label="training">
        ${button('pause', 'Pause', 'hold training after this inner iteration')}
        ${button('inner', 'Inner step', 'one inner iteration, then pause')}
        ${button('batch', 'Batch', 'to the end of this batch, then pause')}
        ${button('stop', 'Stop', 'end training: the checkpoint is written, results are kept')}
      </span>
      <span class="group"><span class="epoch"></span> <progress max="1" aria-label="progress of the run"></progress>
        <span class="left"></span></span>
      <span class="status" role="status" aria-live="polite"></span>
    </div>
    <div class="facts">
      <label>slide <select class="watch"></select></label>
      <label class="training">slow down <input class="slow" type="range" min="0" max="2" step="0.1"
        title="seconds to wait after each inner iteration"> <output class="seconds"></output></label>
      <span class="verdict"></span> <span class="loss"></span>
      <span class="group right">
        ${button('large', 'Large', 'fill the window, with large text; Esc ends it')}
        ${button('settings', 'Settings', 'sampling fraction and accumulation steps')}
        ${button('png', 'PNG', 'save what is shown as a picture')}
        ${button('gif', 'GIF', 'save the run as a moving picture')}
      </span>
    </div>
    <div class="more" hidden>
      <label class="of-fraction">sampling fraction <input class="fraction" type="range" min="0.01" max="1" step="0.01">
        <output class="share"></output></label>
      <label class="of-accumulate">inner iterations per optimizer step
        <input class="accumulate" type="number" min="0" max="999"> (0: all of a batch)</label>
      <span>both from the next batch on</span>
    </div>`;
}

function panelElements() {
  const zoom = button('nearer', '+', 'zoom in (+)') + button('farther', '&minus;', 'zoom out (&minus;)') +
    button('fit', 'whole', 'all cells with content (0)');
  const canvas = (name, text) => `<canvas class="${name}" tabindex="0" role="application" aria-label="${text}"
    aria-roledescription="grid of patches"></canvas>`;
  return `
    <div class="panels">
      <figure>
        <figcaption><b>image</b> ${choice('over', 'shown on the image', IMAGE_CHOICES)} <span class="what"></span>
          <span class="zoom" role="group" aria-label="zoom of image and Z">${zoom}</span></figcaption>
        <div class="screen">${canvas('image', 'image')}<div class="veil"></div></div>
        <div class="legend of-image"></div>
      </figure>
      <figure>
        <figcaption><b>Z</b> ${choice('of-z', 'shown of Z', Z_CHOICES)}
          <input class="channel" type="number" min="0" value="0" aria-label="channel of Z" hidden></figcaption>
        <div class="screen">${canvas('z', 'Z')}<div class="veil of-z"></div></div>
        <div class="legend z-legend"></div>
      </figure>
      <div class="pin" role="group" aria-label="one patch">
        <div class="cell"></div><canvas class="patch" role="img" aria-label="the patch"></canvas>
        <div><div class="pin-text"></div>
        <canvas class="latent" role="img" aria-label="its latent"></canvas>
        <div class="key"><i></i> its latent <i></i> mean of filled cells</div></div>
      </div>
    </div>`;
}

function timeElements() {
  const plot = (name, title) => `<figure>
    <figcaption><b>${title}</b><span class="legend ${name}-legend"></span></figcaption>
    <svg class="plot ${name}" role="img" aria-label="${title}"></svg></figure>`;
  const speeds = {'.5': 'half speed', '1': 'speed 1', '2': 'speed 2', '4': 'speed 4'};
  return `
    <div class="time">
      ${button('play', 'Play', 'play the run from the frame shown')}
      <div class="track"><input class="slider" type="range" min="0" step="1" aria-label="frame of the run">
        <div class="ticks" aria-hidden="true"></div></div>
      <span class="where"></span> ${choice('speed', 'speed of playing', speeds)}
      ${button('live', 'Live', 'always show the newest frame')}
    </div>
    <div class="plots">${plot('losses', 'loss')}${plot('metrics', 'metrics by epoch')}</div>
    <div class="foot"><span class="title"></span><span class="memory"></span><span class="lr"></span>
      <span class="saved"></span></div>
    <div class="say" aria-live="polite"></div>`;
}

// ---- what a view holds ----

// A store that forgets what was used longest ago when it holds more than `limit` bytes
function boundedStore(limit) {
  const items = new Map();
  let held = 0;
  return {
    get(key) {
      const item = items.get(key);
      if (item && items.delete(key)) items.set(key, item);
      return item && item.value;
    },
    has: key => items.has(key),
    put(key, value, size) {
      held += size - (items.get(key)?.size || 0);
      items.delete(key);
      items.set(key, {value, size});
      for (const [old, item] of items) {
        if (held <= limit || old === key) break;
        items.delete(old);
        held -= item.size;
      }
    }};
}

function createPage(model, el) {
  el.classList.add('patchgd-run');
  el.innerHTML = `<style>${CSS}</style>${controlElements()}${panelElements()}${timeElements()}`;
  for (const element of el.querySelectorAll('button, select, input, canvas')) {
    element.dataset.lmSuppressShortcuts = 'true';   // JupyterLab's keys, such as d d, which deletes the cell
  }
  const find = selector => el.querySelector(selector);
  return {
    model, el, find, frames: boundedStore(44e6), pictures: boundedStore(20e6), asked: new Map(), wanting: 0,
    target: null, shown: null, live: true, playing: null, sliding: false, plots: [], pointed: null, drawing: 0,
    redraw: true, view: {x: 0, y: 0, scale: 1, tall: 1, fitted: true}, boxes: new Map(), seen: new Set(),
    pin: -1, hover: -1, sharp: {}, over: 'states', ofZ: 'colours', channel: 0, colours: null};
}

// Draw soon, and once however often this is called
function refresh(page) {
  if (!page.drawing) page.drawing = requestAnimationFrame(() => { page.drawing = 0; drawPage(page); });
}

// Ask Python for something unless it was asked in the last two seconds
function ask(page, key, message) {
  const now = performance.now();
  if (now - (page.asked.get(key) ?? -1e9) < 2000) return;
  page.asked.set(key, now);
  page.model.send(message);
}

// ---- which frame ----

// Whether there is something to control: a run that has not ended
function isRunning(page) {
  return page.model.get('about').live && !ENDED.includes(page.model.get('status').state);
}

// The frames that the slider leads to: all, or when the run has ended those of the chosen slide
function entriesOf(page) {
  const index = page.model.get('index') || [], name = isRunning(page) ? '' : page.find('.watch').value;
  return name ? index.filter(entry => entry[5] == name) : index;
}

// The last frame up to a place of the run, or the first
function entryAt(entries, place) {
  let found = entries[0];
  for (const entry of entries) if (entry[4] <= place) found = entry;
  return found;
}

function newestFrame(page) {
  const frame = page.model.get('frame') || {}, entries = entriesOf(page);
  const last = entries[entries.length - 1], other = last && !isRunning(page) && page.find('.watch').value;
  if (frame.head && !other) return {id: frame.head.id, place: frame.head.place};
  return last && {id: last[0], place: last[4]};
}

// Show a frame: at once if it is here, else ask for it; one question at a time, so that dragging waits for none
function goTo(page, target) {
  if (!target) return;
  page.target = target;
  const frame = page.frames.get(target.id);
  if (frame) showFrame(page, frame);
  else if (!page.wanting || performance.now() - page.wanting > 2000) {
    page.wanting = performance.now();
    page.model.send({kind: 'want', id: target.id});
  }
  placeSlider(page);
}

function goToEntry(page, entry) {
  if (entry) goTo(page, {id: entry[0], place: entry[4]});
}

// Leave the newest frame for one that somebody chose
function choose(page, entry) {
  setLive(page, false);
  goToEntry(page, entry);
}

function setLive(page, live) {
  page.live = live;
  page.find('.live').setAttribute('aria-pressed', live);
  if (live) {
    play(page, false);
    goTo(page, newestFrame(page));
  }
}

function showFrame(page, frame) {
  const before = page.shown;
  page.shown = frame;
  page.el.dataset.id = frame.id;
  frame.state.forEach(state => page.seen.add(state));
  if (before && (before.rows != frame.rows || before.cols != frame.cols)) page.pin = page.hover = -1;
  if (before?.name != frame.name) {
    page.sharp = {};
    askForPatch(page);
  }
  page.boxes.set(frame.name, joinBoxes(page.boxes.get(frame.name), contentBox(frame), frame));
  if (!page.pictures.has(frame.name)) ask(page, 'picture ' + frame.name, {kind: 'picture', name: frame.name});
  refresh(page);
}

// The box around both boxes, so that the crop of a slide does not jump from frame to frame
function joinBoxes(old, [top, left, bottom, right], {rows, cols}) {
  if (!old || old.rows != rows || old.cols != cols) return {rows, cols, box: [top, left, bottom, right]};
  const [a, b, c, d] = old.box;
  return {rows, cols, box: [Math.min(a, top), Math.min(b, left), Math.max(c, bottom), Math.max(d, right)]};
}

// A frame from Python: kept, and shown if it is the one that is waited for
function receiveFrame(page, head, data) {
  if (!page.frames.has(head.id)) {
    const frame = unpackFrame(head, data);
    page.frames.put(head.id, frame, frame.size * 2);
  }
  if (page.target && page.target.id == head.id) showFrame(page, page.frames.get(head.id));
}

async function receive(page, message, buffers) {
  if (message.kind == 'frame') {
    page.wanting = 0;
    if (!message.head) return;   // it was thinned away: the index will say what there is
    receiveFrame(page, message.head, buffers[0]);
    if (page.shown?.id != page.target?.id) goTo(page, page.target);   // another was chosen meanwhile
  } else if (message.kind == 'picture') {
    const picture = await decode(buffers[0], 'image/jpeg').catch(() => null);
    page.pictures.put(message.name, picture, picture ? 4 * picture.width * picture.height : 1);
    refresh(page);
  } else if (message.kind == 'patch') {
    const picture = await decode(buffers[0], 'image/png').catch(() => null);
    page.sharp = {key: `${message.row} ${message.col}`, id: message.id, picture, source: message.source};
    refresh(page);
  } else if (message.kind == 'gif') {
    page.find('.gif').disabled = false;
    page.find('.gif').textContent = 'GIF';
    if (buffers[0]) save(new Blob([bytes(buffers[0])], {type: 'image/gif'}), 'run.gif');
  }
}

// ---- drawing ----

function fitCanvas(canvas, width, height) {
  const density = screenDensity(), dots = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width != dots[0] || canvas.height != dots[1]) [canvas.width, canvas.height] = dots;
  canvas.style.height = height + 'px';
  const context = canvas.getContext('2d');
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Width and height of both panels, so that the whole page fits the window; flat for flat images and signals
function panelSize(page, frame) {
  const width = page.find('.image').clientWidth, large = page.el.classList.contains('large');
  const room = clamp(window.innerHeight - (large ? 470 : 500), 230, large ? 720 : 520);
  const shape = frame ? width * Math.max(frame.rows * page.view.tall / frame.cols, .25) : width;
  return [width, Math.round(Math.min(width, page.el.classList.contains('flat') ? room / 2 - 30 : room, shape))];
}

// How tall a cell is: as in the picture, but no side of the whole is more than four times the other
function cellShape({rows, cols}, picture) {
  const cell = picture ? picture.height / rows / (picture.width / cols) : 1;
  return clamp(cell * rows / cols, .25, 4) * cols / rows;
}

// Show all cells with content, as large as the panel allows
function fitView(page, frame, width, height) {
  const [top, left, bottom, right] = page.boxes.get(frame.name).box, {view} = page;
  const scale = Math.min((width - 8) / (right - left), (height - 8) / ((bottom - top) * view.tall));
  Object.assign(view, {
    scale, x: (left + right) / 2 - width / 2 / scale, y: (top + bottom) / 2 - height / 2 / scale / view.tall});
}

function lookOf(page) {
  return {scales: page.model.get('scales') || {}, colours: page.colours, channel: page.channel};
}

// Everything that depends on the frame shown
function drawPage(page) {
  const frame = page.shown, began = performance.now(), {el, find} = page;
  if (!find('.image').clientWidth) return;
  drawPanels(page, frame);
  showVeils(page, frame);
  if (frame) describeFrame(page, frame);
  drawPin(page, frame);
  if (page.redraw) drawCurves(page);
  drawCursor(page);
  el.dataset.drawn = Number(el.dataset.drawn || 0) + 1;   // for tests: how often, and milliseconds
  el.dataset.ms = (performance.now() - began).toFixed(1);
}

function drawPanels(page, frame) {
  const {find, view} = page, picture = frame && page.pictures.get(frame.name);
  if (frame) view.tall = cellShape(frame, picture);
  const flat = frame && !frame.whole && frame.rows * view.tall * 2.5 < frame.cols;   // signals: Z below the image
  page.el.classList.toggle('flat', Boolean(flat));
  const [width, height] = panelSize(page, frame), look = lookOf(page);
  const onImage = fitCanvas(find('.image'), width, height), onZ = fitCanvas(find('.z'), width, height);
  if (!frame) return;
  if (view.fitted) fitView(page, frame, width, height);
  drawImage(onImage, frame, view, picture, page.over, look);
  if (!frame.whole) drawZ(onZ, frame, view, page.ofZ, look);
  if (frame.whole) return;
  for (const context of [onImage, onZ]) {
    drawMark(context, frame, view, patchShown(page, frame), false);
    drawMark(context, frame, view, page.pin, true);
  }
}

// Words where there is nothing to draw
function showVeils(page, frame) {
  const {whole} = page.model.get('about'), over = ENDED.includes(page.model.get('status').state);
  const [image, z] = page.el.querySelectorAll('.veil');
  const waiting = over ? 'no frame was recorded' : 'waiting for the first inner iteration';
  image.hidden = Boolean(frame);
  image.textContent = waiting;
  page.find('.zoom').hidden = !frame || frame.whole;
  z.hidden = Boolean(frame) && !frame.whole && !whole;
  z.textContent = whole || frame?.whole ? 'this strategy trains on whole images: there is no Z' : waiting;
  for (const name of ['.over', '.of-z', '.legend.of-image', '.z-legend']) page.find(name).hidden = Boolean(whole);
}

// Captions and legends; the same in words for those who do not see the canvases
function describeFrame(page, frame) {
  const {find} = page, {states} = page.model.get('about'), look = lookOf(page), counts = states.map(() => 0);
  frame.state.forEach(state => counts[state]++);
  const right = frame.predicted == frame.true ? '\u2713' : '\u2717';
  const sure = frame.probability == null ? '' : ` (${frame.probability.toFixed(2)})`;
  find('.verdict').textContent = `true ${frame.true} \u2192 predicted ${frame.predicted}${sure} ${right}`;
  find('.loss').textContent = `loss ${Number(frame.loss).toPrecision(3)}`;
  find('.where').textContent = whereOf(frame);
  find('.slider').setAttribute('aria-valuetext', whereOf(frame));
  find('.what').textContent = frame.factor > 1 ? `a cell: ${frame.factor} x ${frame.factor} patches` : '';
  const words = `${frame.name}, ${whereOf(frame)}: ${frame.rows} by ${frame.cols} cells, ` +
    states.map((state, i) => `${counts[i]} ${state}`).join(', ') + '; arrow keys move the pin';
  find('.image').setAttribute('aria-label', 'image ' + words);
  find('.z').setAttribute('aria-label', 'Z of ' + words);
  if (frame.whole) return;
  showLegend(page, '.legend.of-image', page.over, () => imageLegend(page.over, states, page.seen, look));
  showLegend(page, '.z-legend', page.ofZ, () => zLegend(page.ofZ, states, look));
}

// A legend is made again only when something in it changed
function showLegend(page, name, shown, entries) {
  const element = page.find(name), {scales, channel} = lookOf(page);
  const key = JSON.stringify([shown, [...page.seen], scales, channel]);
  if (element.dataset.key == key) return;
  element.dataset.key = key;
  fillLegend(element, entries());
}

function whereOf({epoch, batch, j, steps}) {
  return `epoch ${epoch + 1}, batch ${batch + 1}, inner ${j + 1} of ${steps}`;
}

// ---- one patch: under the mouse, else pinned, else the first that is sampled now ----

function drawPin(page, frame) {
  const {find} = page, k = frame && !frame.whole ? patchShown(page, frame) : -1;
  find('.pin').hidden = Boolean(frame?.whole || page.model.get('about').whole);
  if (k < 0) {
    find('.pin .cell').textContent = 'one patch';
    find('.pin-text').textContent = 'point at a patch to see it; click to pin it';
    return;   // only before the first frame
  }
  const [row, col] = cellOf(k, frame.cols), pinned = k == page.pin ? ' (pinned)' : '';
  find('.pin .cell').textContent = `row ${row}, column ${col}${pinned}`;
  drawPatch(page, frame, k);
  find('.pin-text').textContent = textOf(page, frame, k);
  const canvas = find('.latent'), width = canvas.clientWidth, context = fitCanvas(canvas, width, 64);
  const most = lookOf(page).scales.latent || 1, ink = getComputedStyle(page.el).color;
  drawLatent(context, width, 64, latentOf(frame, k), meanLatent(frame), most, ink);
}

function patchShown(page, frame) {
  const chosen = page.hover >= 0 ? page.hover : page.pin, first = frame.state.indexOf(SAMPLED);
  if (chosen >= 0 && chosen < frame.state.length) return chosen;
  return first >= 0 ? first : frame.state.findIndex(state => state != BLANK);
}

function textOf(page, frame, k) {
  const {states, classes} = page.model.get('about'), state = frame.state[k], share = frame.share[k];
  if (state == BLANK) return `${states[state]}: it is not encoded,\nits cell of Z stays empty`;
  const winner = classes?.[frame.winner] ?? frame.winner;
  const amount = (share < 0 ? '\u2212' : '+') + Number(Math.abs(share).toPrecision(2));
  const source = page.sharp.picture && page.sharp.key == cellOf(k, frame.cols).join(' ') ? page.sharp.source : '';
  const times = `sampled ${frame.times[k]} time${frame.times[k] == 1 ? '' : 's'}`;
  return `${states[state]}, age ${frame.age[k]}\n${times}\nadds ${amount} to class ${winner}\n` +
    `norm ${frame.norm[k].toPrecision(3)}${source ? ', ' + source : ''}`;
}

// The patch from the picture, until Python sends it in full
function drawPatch(page, frame, k) {
  const [row, col] = cellOf(k, frame.cols), canvas = page.find('.patch'), picture = page.pictures.get(frame.name);
  const side = canvas.offsetWidth, context = fitCanvas(canvas, side, side), {sharp} = page;
  context.imageSmoothingEnabled = false;
  if (sharp.picture && sharp.key == `${row} ${col}`) return context.drawImage(sharp.picture, 0, 0, side, side);
  if (!picture) return;
  const width = picture.width / frame.cols, height = picture.height / frame.rows;
  context.drawImage(picture, col * width, row * height, width, height, 0, 0, side, side);
}

// Ask for the pixels of the patch that somebody points at, when the mouse has rested for a moment
function askForPatch(page) {
  const {live, door} = page.model.get('about'), k = page.hover >= 0 ? page.hover : page.pin;
  clearTimeout(page.resting);
  if (!live || door || k < 0 || !page.shown) return;
  page.resting = setTimeout(() => {
    const [row, col] = cellOf(k, page.shown.cols);
    if (page.sharp.key != `${row} ${col}`) page.model.send({kind: 'pin', id: page.shown.id, row, col});
  }, 120);
}

function pinTo(page, k) {
  page.pin = k;
  page.hover = -1;
  askForPatch(page);
  refresh(page);
  if (page.shown && k >= 0) {
    const [row, col] = cellOf(k, page.shown.cols);
    page.find('.say').textContent = `row ${row}, column ${col}: ${textOf(page, page.shown, k)}`;
  }
}

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

// ---- texts and controls ----

function showStatus(page) {
  const {find, model} = page, status = model.get('status') || {}, {live} = model.get('about'), text = find('.status');
  const over = ENDED.includes(status.state), paused = status.state == 'paused';
  if (text.textContent != status.text) text.textContent = text.title = status.text || '';
  text.dataset.state = status.state;
  text.classList.toggle('whole', ['failed', 'lost'].includes(status.state));
  find('.epoch').textContent = [status.epoch, status.batch].filter(part => part).join(', ');
  find('progress').value = status.progress || 0;
  find('.left').textContent = over ? '' : status.left || '';
  find('.pause').textContent = paused ? 'Resume' : 'Pause';
  find('.pause').title = paused ? 'go on training' : 'hold training after this inner iteration';
  for (const name of RUN_CONTROLS) find('.' + name).disabled = over;
  for (const element of page.el.querySelectorAll('.training, .live, .settings, .gif')) element.hidden = !live;
  find('.speed').hidden = live && !over;
  showSlides(page);
  showFoot(page);
  refresh(page);
}

function showFoot(page) {
  const {memory, lr, saved} = page.model.get('status') || {}, {find} = page;
  const ago = Math.max(0, Date.now() / 1000 - saved), about = page.model.get('about');
  const since = ago < 100 ? `${Math.round(ago)} s` : `${Math.round(ago / 60)} min`;
  const parts = {
    title: about.live && about.title,
    memory: memory &&
      `${memory.name} ${memory.used.toFixed(1)} of ${memory.budget} GiB, peak ${memory.peak.toFixed(1)}`,
    lr: lr != null && `learning rate ${Number(lr.toPrecision(3))}`,
    saved: saved && about.live && `saved ${since} ago`};
  for (const [name, text] of Object.entries(parts)) {
    find('.' + name).textContent = text || '';
    find('.' + name).hidden = !text;
  }
}

// Fill the choice of slides: while a run goes on the one to watch, afterwards the one whose frames are shown
function showSlides(page) {
  const live = isRunning(page), settings = page.model.get('settings') || {}, select = page.find('.watch');
  const own = new Set((page.model.get('index') || []).map(entry => entry[5]));
  const names = live ? settings.names || [] : [...own], first = live ? 'first of each batch' : 'all slides';
  const key = JSON.stringify([first, names]);
  if (select.dataset.key != key) {
    select.dataset.key = key;
    select.replaceChildren(new Option(first, ''), ...names.map(name => new Option(name, name)));
  }
  if (live && document.activeElement != select) select.value = settings.watch || '';
}

function showSettings(page) {
  const settings = page.model.get('settings') || {}, {find} = page;
  const fields = {slow: settings.delay, fraction: settings.fraction, accumulate: settings.accumulate};
  for (const [name, value] of Object.entries(fields)) {
    const field = find('.' + name);
    if (value != null && document.activeElement != field) field.value = value;
  }
  for (const name of ['fraction', 'accumulate']) find('.of-' + name).hidden = settings[name] == null;
  find('.seconds').textContent = `${Number(find('.slow').value).toFixed(1)} s`;
  find('.share').textContent = Number(find('.fraction').value).toFixed(2);
  showSlides(page);
}

function listenToControls(page) {
  const {find} = page, set = (name, value) => page.model.send({kind: 'set', name, value});
  find('.pause').onclick = () => {
    page.model.send({kind: 'do', what: page.model.get('status').state == 'paused' ? 'continue' : 'pause'});
  };
  for (const what of ['inner', 'batch', 'stop']) find('.' + what).onclick = () => page.model.send({kind: 'do', what});
  find('.slow').oninput = () => { showSettings(page); set('delay', Number(find('.slow').value)); };
  find('.fraction').oninput = () => showSettings(page);
  find('.fraction').onchange = () => set('fraction', Number(find('.fraction').value));
  find('.accumulate').onchange = () => set('accumulate', Math.round(Number(find('.accumulate').value)));
  find('.watch').onchange = () => {
    if (isRunning(page)) return set('watch', find('.watch').value);
    showIndex(page);
  };
  find('.settings').onclick = () => {
    find('.more').hidden = !find('.more').hidden;
    find('.settings').setAttribute('aria-expanded', !find('.more').hidden);
  };
}

function listenToViews(page) {
  const {find} = page;
  find('.over').onchange = () => { page.over = find('.over').value; refresh(page); };
  find('.of-z').onchange = () => {
    page.ofZ = find('.of-z').value;
    find('.channel').hidden = page.ofZ != 'channel';
    refresh(page);
  };
  find('.channel').oninput = () => {
    const last = (page.shown?.channels || 1) - 1;
    page.channel = clamp(Math.round(Number(find('.channel').value)) || 0, 0, last);
    refresh(page);
  };
  find('.nearer').onclick = () => zoom(page, 1.4);
  find('.farther').onclick = () => zoom(page, 1 / 1.4);
  find('.fit').onclick = () => showWhole(page);
  find('.large').onclick = () => setLarge(page, !page.el.classList.contains('large'));
  find('.png').onclick = () => { if (page.shown) savePicture(page); };
  find('.gif').onclick = () => {
    find('.gif').disabled = true;
    find('.gif').textContent = 'GIF ...';
    page.model.send({kind: 'gif'});
  };
}

// Fill the window. A popover lies above everything, whatever the page around it clips or moves.
function setLarge(page, large) {
  const {el} = page;
  el.classList.toggle('large', large);
  page.find('.large').textContent = large ? 'Small' : 'Large';
  if (el.showPopover) {
    if (large) {
      el.popover = 'manual';
      el.showPopover();
    } else if (el.popover) {
      el.hidePopover();
      el.popover = null;
    }
  }
  page.find('.large').focus();
  redraw(page);
}

// Python draws more often while somebody is at it; Escape ends the full window
function listenToPeople(page) {
  let last = 0;
  function alive() {
    if (!isRunning(page) || Date.now() - last < 1000) return;
    last = Date.now();
    page.model.send({kind: 'alive'});
  }
  for (const name of ['pointermove', 'pointerdown', 'keydown', 'wheel']) {
    page.el.addEventListener(name, alive, {passive: true});
  }
  page.el.addEventListener('keydown', event => {
    if (event.key == 'Escape' && page.el.classList.contains('large')) setLarge(page, false);
  });
}

// ---- a picture to keep ----

function save(blob, name) {
  const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Image and Z beside each other, with captions and legends
function savePicture(page) {
  const {find, shown} = page, panels = shown.whole ? [find('.image')] : [find('.image'), find('.z')];
  const width = find('.image').clientWidth, height = find('.image').clientHeight, style = getComputedStyle(page.el);
  const [canvas, context] = smallCanvas(panels.length * (width + 16) + 16, height + 108);
  Object.assign(context, {fillStyle: style.backgroundColor, textBaseline: 'middle'});
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  const lines = [`${page.model.get('about').title}; ${shown.name}, ${whereOf(shown)}`,
    `${find('.verdict').textContent}, ${find('.loss').textContent}`];
  lines.forEach((line, i) => {
    context.font = `${i ? '' : '600 '}13px sans-serif`;
    context.fillText(line, 16, 16 + 20 * i, canvas.width / 2 - 32);
  });
  panels.forEach((panel, i) => {
    context.drawImage(panel, 16 + i * (width + 16), 50, width, height);
    drawLegendText(context, find(i ? '.z-legend' : '.legend.of-image'), 16 + i * (width + 16), height + 66, width);
  });
  canvas.toBlob(blob => save(blob, 'run.png'));
}

// A legend of the page, drawn again in a picture, in as many lines as it needs
function drawLegendText(context, legend, left, top, width) {
  let x = left, y = top;
  context.font = '12px sans-serif';
  for (const entry of legend.children) {
    const sizes = [...entry.childNodes].map(part => part.width / 2 || context.measureText(part.textContent).width);
    const whole = sizes.reduce((sum, size) => sum + size, 0);
    if (x > left && x + whole > left + width) [x, y] = [left, y + 20];
    [...entry.childNodes].forEach((part, i) => {
      if (part.width) context.drawImage(part, x, y - part.height / 4, part.width / 2, part.height / 2);
      else context.fillText(part.textContent, x, y);
      x += sizes[i];
    });
    x += 12;
  }
}

// ---- the widget ----

// The toolbar sticks to the top of the notebook, not of its cell: nothing between may be a scroll container of its own
function letStick(el) {
  const cell = el.closest('.jp-Cell');
  for (let node = el.parentElement; cell && node && node != cell.parentElement; node = node.parentElement) {
    const scrolls = node.matches('.jp-mod-outputsScrolled');
    if (!scrolls && getComputedStyle(node).overflow != 'visible') node.style.overflow = 'clip';
  }
}

function redraw(page) {
  page.redraw = true;   // the curves too
  refresh(page);
}

// What is done when which trait changes
function reactions(page) {
  const {model} = page;
  return {
    about: () => showStatus(page), status: () => showStatus(page), settings: () => showSettings(page),
    scales: () => refresh(page),
    index: () => { showSlides(page); showIndex(page); },
    curves: () => redraw(page),
    colours: () => { page.colours = unpackColours(model.get('colours') || {}); refresh(page); },
    frame: () => {
      const {head, data} = model.get('frame') || {};
      if (!head) return;
      receiveFrame(page, head, data);
      if (page.live) goTo(page, {id: head.id, place: head.place});
    }};
}

function render({model, el}) {
  const page = createPage(model, el), react = reactions(page);
  for (const canvas of [page.find('.image'), page.find('.z')]) {
    for (const listen of [listenToPointer, listenToWheel, listenToKeys]) listen(page, canvas);
  }
  for (const listen of [listenToControls, listenToViews, listenToSlider, listenToPlots, listenToPeople]) listen(page);
  const answer = (message, buffers) => receive(page, message, buffers || []);
  for (const [name, change] of Object.entries(react)) {
    model.on('change:' + name, change);
    change();
  }
  model.on('msg:custom', answer);
  setLive(page, true);
  const resized = new ResizeObserver(() => { letStick(el); redraw(page); });
  resized.observe(el);
  const clock = setInterval(() => showFoot(page), 1000);
  return () => {
    play(page, false);
    resized.disconnect();
    clearInterval(clock);
    for (const [name, change] of Object.entries(react)) model.off?.('change:' + name, change);
    model.off?.('msg:custom', answer);
  };
}

export default {render};
