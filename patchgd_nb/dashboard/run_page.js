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
  const {whole, note} = page.model.get('about'), over = ENDED.includes(page.model.get('status').state);
  const [image, z] = page.el.querySelectorAll('.veil');
  const waiting = note || (over ? 'no frame was recorded' : 'waiting for the first inner iteration');
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
  return `epoch ${epoch + 1}, batch ${batch + 1}, inner ${j + 1}${steps ? ` of ${steps}` : ''}`;
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
