// A slide to pan and zoom, and the latent of a chosen patch, as the traits of `SlidePage` (slide_view.py) have them.
// Follows colours.js. Lengths are in pixels of the model's canvas, where the patches lie, unless they are said to be
// of the screen. Two objects hold what is drawn:
//   slide  what stays: `grid` (the trait), `whole` (a coarse picture of all of it, at `grid.whole_at`), `tints`
//   view   what moves: `top`, `left`, `scale` (canvas pixels along one of the screen), `sharp` (picture and place),
//          `chosen` (a patch), `tint` (how strong the tints are, 0 to 1)

// ---- the elements ----

function buttonElement(name, text, title) {
  const style = 'font-size:13px;padding:1px 8px;color:inherit;background:var(--jp-layout-color2,#eee);' +
    'border:1px solid var(--jp-border-color2,#888);cursor:pointer';
  return `<button class="${name}" title="${title}" style="${style}">${text}</button>`;
}

function toolbarElement() {
  const buttons = [
    buttonElement('in', '+', 'zoom in (+)'),
    buttonElement('out', '&minus;', 'zoom out (-)'),
    buttonElement('all', 'whole slide', 'the whole slide (0)'),
    buttonElement('one', '1 : 1', 'one pixel of the file to one of the screen (1)')];
  const slider = 'type="range" min="0" max="1" step="0.05" style="vertical-align:middle;width:90px"';
  return `
    <div style="display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;margin:4px 0">
      <span role="group" aria-label="zoom">${buttons.join(' ')}</span>
      <label>tint <input class="tint" ${slider}></label>
      <span class="legend" style="font-size:12px"></span>
    </div>`;
}

function slideElement() {
  const style = `width:100%;height:480px;${BORDER};cursor:grab;touch-action:none;display:block`;
  const help = 'Drag, or Shift and arrows: move. + and &minus;, or the wheel after a click: zoom. ' +
    'Click, or arrows: choose a patch; Enter: go there.';
  return `
    <div style="flex:3 1 420px;min-width:280px">
      <canvas class="slide" tabindex="0" role="application" aria-roledescription="slide" style="${style}"></canvas>
      <div class="place" style="font-size:12px"></div>
      <div style="font-size:12px;color:var(--jp-ui-font-color2,#666)">${help}</div>
    </div>`;
}

function patchElement() {
  const image = 'width:200px;image-rendering:pixelated;margin:4px 0;border:1px solid var(--jp-border-color2,#888)';
  return `
    <div style="flex:1 1 250px;max-width:420px">
      <div class="about" aria-live="polite" style="font-size:12px;white-space:pre-line"></div>
      <img class="patch" alt="" style="${image}">
      <div class="name" style="font-size:12px"></div>
      <canvas class="latent" role="img" style="width:100%;height:150px;display:block"></canvas>
      <div class="value" style="font-size:12px;min-height:1.4em"></div>
      <details style="font-size:12px">
        <summary>all its numbers</summary>
        <div class="numbers" style="max-height:120px;overflow:auto"></div>
      </details>
    </div>`;
}

// The slide with its buttons, the chosen patch beside it; a function that finds the elements
function createElements(el) {
  el.classList.add('patchgd-slide');
  el.innerHTML = `
    <div style="color:var(--jp-ui-font-color1,#333);font-size:13px">
      <div class="caption" style="font-weight:600"></div>
      ${toolbarElement()}
      <div style="display:flex;flex-wrap:wrap;gap:14px">${slideElement()}${patchElement()}</div>
    </div>`;
  return selector => el.querySelector(selector);
}

// Give a canvas as many dots as the screen has and empty it; returns its context, width and height on the page
function fitToScreen(canvas) {
  const density = screenDensity(), width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * density;
  canvas.height = height * density;
  const context = canvas.getContext('2d');
  context.setTransform(density, 0, 0, density, 0, 0);
  return [context, width, height];
}

// ---- the latent of the chosen patch ----

const LEFT = 44;   // pixels of the screen left of the first bar, for the numbers of the axis

// Bars, number by number, with the mean of all patches as a line: what is special about this patch stands out of it
function drawLatent(find, {latent, mean}, marked) {
  const [context, width, height] = fitToScreen(find('.latent')), text = getComputedStyle(find('.name')).color;
  const low = Math.min(...latent, ...mean, 0), high = Math.max(...latent, ...mean, 0, low + 1e-9);
  const step = (width - LEFT - 6) / latent.length;
  const x = i => LEFT + step * i, y = value => 8 + (height - 30) * (high - value) / (high - low);
  drawBars(context, latent, marked, x, y, Math.max(1, step - 1));
  drawLine(context, text, 1, [[LEFT, y(0)], [width, y(0)]]);
  drawLine(context, '#e69f00', 1.5, mean.flatMap((value, i) => [[x(i), y(value)], [x(i + 1), y(value)]]));
  context.fillStyle = text;
  context.font = '11px sans-serif';
  drawAxes(context, [low, 0, high], latent.length, y, width, height);
}

function drawBars(context, values, marked, x, y, barWidth) {
  values.forEach((value, i) => {
    context.fillStyle = i == marked ? '#d55e00' : '#0072b2';
    context.fillRect(x(i), Math.min(y(0), y(value)), barWidth, Math.max(1, Math.abs(y(value) - y(0))));
  });
}

function drawLine(context, colour, lineWidth, points) {
  context.strokeStyle = colour;
  context.lineWidth = lineWidth;
  context.beginPath();
  for (const point of points) context.lineTo(...point);
  context.stroke();
}

// Values on the left where there is room for them, first and last number of the latent below
function drawAxes(context, values, n, y, width, height) {
  context.textAlign = 'right';
  context.textBaseline = 'middle';
  for (const value of values) {
    const apart = value == 0 || Math.abs(y(value) - y(0)) > 12;
    if (apart) context.fillText(value == 0 ? '0' : value.toPrecision(3), LEFT - 4, y(value));
  }
  context.textBaseline = 'alphabetic';
  context.fillText(n - 1, width - 4, height - 4);
  context.textAlign = 'left';
  context.fillText('0', LEFT, height - 4);
  context.textAlign = 'center';
  context.fillText('number in the latent', LEFT + (width - LEFT - 6) / 2, height - 4);
}

// Show the latent of `patch`, and under the mouse one of its numbers
function showLatent(find, patch) {
  const {latent, mean} = patch, canvas = find('.latent'), square = colour => `<span style="color:${colour}">`;
  find('.name').innerHTML = `its latent: ${latent.length} numbers (${square('#0072b2')}&#9632;</span> this patch, ` +
    `${square('#e69f00')}&#9473;</span> mean of all patches with content)`;
  find('.numbers').textContent = latent.map(value => value.toPrecision(3)).join(', ');
  find('.value').textContent = '';
  canvas.setAttribute('aria-label', patch.about + '; its latent: see all its numbers below');
  drawLatent(find, patch, -1);
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - 6);
    const i = clamp(Math.floor(share * latent.length), 0, latent.length - 1);
    drawLatent(find, patch, i);
    find('.value').textContent = `number ${i}: ${latent[i].toPrecision(4)}, mean ${mean[i].toPrecision(4)}`;
  };
}

// ---- the slide ----

// Half of what two neighbouring patches overlap by: a cell of the grid is what a patch covers alone
function cellGap(grid) {
  return (grid.patch - grid.stride) / 2;
}

// A place (top, left, height, width) on the screen, as canvases want it: x, y, width, height
function toScreen([top, left, height, width], view) {
  return [(left - view.left) / view.scale, (top - view.top) / view.scale, width / view.scale, height / view.scale];
}

// Whatever pictures there are, the tints over them, lines where patches are large, the chosen patch, a scale bar
function drawSlide(context, width, height, slide, view) {
  context.fillStyle = slide.grid.background;
  context.fillRect(0, 0, width, height);
  drawPictures(context, slide, view);
  drawTints(context, slide, view);
  if (slide.grid.stride / view.scale > 14) drawGrid(context, slide.grid, view);
  if (view.chosen >= 0) drawChosen(context, slide.grid, view);
  drawScaleBar(context, height, slide.grid, view);
}

// The coarse picture of the whole slide lies below, the sharp one above; pixels of the file keep their edges
function drawPictures(context, slide, view) {
  context.imageSmoothingEnabled = true;
  if (slide.whole) context.drawImage(slide.whole, ...toScreen(slide.grid.whole_at, view));
  context.imageSmoothingEnabled = view.scale * slide.grid.step > .5;
  if (view.sharp?.picture) context.drawImage(view.sharp.picture, ...toScreen(view.sharp.at, view));
}

function drawTints(context, {grid, tints}, view) {
  if (!tints) return;
  const gap = cellGap(grid);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = view.tint;
  context.drawImage(tints, ...toScreen([gap, gap, grid.rows * grid.stride, grid.cols * grid.stride], view));
  context.globalAlpha = 1;
}

function drawGrid(context, grid, view) {
  const place = [cellGap(grid), cellGap(grid), grid.rows * grid.stride, grid.cols * grid.stride];
  const [left, top, width, height] = toScreen(place, view), cell = grid.stride / view.scale;
  const xs = Array.from({length: grid.cols + 1}, (_, i) => left + i * cell);
  const ys = Array.from({length: grid.rows + 1}, (_, i) => top + i * cell);
  context.strokeStyle = 'rgba(128,128,128,.6)';
  context.lineWidth = .6;
  gridLines(context, xs, ys, [left, top, left + width, top + height]);
}

function drawChosen(context, grid, view) {
  const [row, col] = cellOf(view.chosen, grid.cols);
  outline(context, toScreen([row * grid.stride, col * grid.stride, grid.patch, grid.patch], view), 4, 2);
}

// A bar of 1, 2 or 5 times a power of ten, at most 140 pixels of the screen long, and its length in words
function drawScaleBar(context, height, grid, view) {
  const unit = grid.um || grid.step;   // micrometres along a pixel of the canvas, or pixels of the file
  const longest = 140 * view.scale * unit, ten = 10 ** Math.floor(Math.log10(longest));
  const length = ten * [5, 2, 1].find(digit => longest / ten >= digit || digit == 1);
  const width = length / unit / view.scale;
  const metric = length >= 1000 ? `${length / 1000} mm` : `${length} \u00b5m`;
  const name = grid.um ? metric : `${length} pixels of the file`;
  context.font = '12px sans-serif';
  context.fillStyle = 'rgba(255,255,255,.8)';
  context.fillRect(8, height - 34, Math.max(width, context.measureText(name).width) + 12, 28);
  context.fillStyle = '#000';
  context.fillRect(14, height - 13, width, 3);
  context.textBaseline = 'alphabetic';
  context.textAlign = 'left';
  context.fillText(name, 14, height - 18);
}

// Orange where a patch adds to the score, blue where it takes from it; a byte each, 128 is nothing
function tintCanvas(grid) {
  const values = bytes(grid.tints);
  return cellCanvas(grid.rows, grid.cols, k => {
    const share = (values[k] - 128) / 127;
    return share > 0 ? [213, 94, 0, 255 * share] : [0, 114, 178, -255 * share];
  });
}

// HTML of the legend of the tints
function tintLegend(grid) {
  const bar = 'display:inline-block;width:120px;height:11px;vertical-align:-1px;border:1px solid #888;' +
    'background:linear-gradient(90deg,rgb(0,114,178),#fff,rgb(213,94,0))';
  return `takes up to ${grid.max} from the score <span style="${bar}"></span> adds up to ${grid.max}`;
}

// ---- moving about ----

// The ways to move the view; each keeps it near the slide and calls `changed`
function createMoves(canvas, slide, view, changed) {
  const size = () => [canvas.clientWidth, canvas.clientHeight];
  const limited = scale => clamp(scale, .125 / slide.grid.step, 1.6 * slide.grid.size / Math.min(...size()));

  function moveTo(top, left, scale = view.scale) {
    const [width, height] = size(), side = slide.grid.size;
    view.scale = limited(scale);
    const halfHeight = height * view.scale / 2, halfWidth = width * view.scale / 2;
    view.top = clamp(top, -halfHeight, side - halfHeight);   // its centre stays on the slide
    view.left = clamp(left, -halfWidth, side - halfWidth);
    changed();
  }
  function centreOn(y, x, scale = view.scale) {
    const [width, height] = size();
    moveTo(y - height * scale / 2, x - width * scale / 2, scale);
  }
  // What lies at (x, y) on the screen stays there
  function zoom(factor, x = size()[0] / 2, y = size()[1] / 2) {
    const scale = limited(view.scale * factor), change = view.scale - scale;
    moveTo(view.top + y * change, view.left + x * change, scale);
  }
  function zoomTo(scale) {
    zoom(scale / view.scale);
  }
  function showAll() {
    const side = slide.grid.size;
    centreOn(side / 2, side / 2, side / Math.min(...size()));
  }
  function showChosen() {
    if (view.chosen < 0) return;
    const {cols, stride, patch} = slide.grid, [row, col] = cellOf(view.chosen, cols);
    centreOn(row * stride + patch / 2, col * stride + patch / 2);
  }
  return {moveTo, zoom, zoomTo, showAll, showChosen};
}

// Drag to move; a click, which is a drag of at most 4 pixels, chooses the patch under it
function listenToPointer(canvas, slide, view, moves, choose) {
  let start = null;
  canvas.onpointerdown = event => {
    canvas.focus({preventScroll: true});
    canvas.setPointerCapture(event.pointerId);
    start = {x: event.clientX, y: event.clientY, top: view.top, left: view.left, dragged: false};
  };
  canvas.onpointermove = event => {
    if (!start) return;
    const dx = event.clientX - start.x, dy = event.clientY - start.y;
    start.dragged = start.dragged || Math.hypot(dx, dy) > 4;
    if (start.dragged) moves.moveTo(start.top - dy * view.scale, start.left - dx * view.scale);
  };
  canvas.onpointerup = event => {
    const clicked = start && !start.dragged;
    start = null;
    if (clicked) choose(patchUnder(event, canvas, slide.grid, view));
  };
}

// The patch under the pointer, or the nearest one; the canvas has a border of one pixel
function patchUnder(event, canvas, grid, view) {
  const box = canvas.getBoundingClientRect();
  const cell = (at, n) => clamp(Math.floor((at - cellGap(grid)) / grid.stride), 0, n - 1);
  const row = cell(view.top + (event.clientY - box.top - 1) * view.scale, grid.rows);
  const col = cell(view.left + (event.clientX - box.left - 1) * view.scale, grid.cols);
  return row * grid.cols + col;
}

// The wheel zooms only where the slide has the focus, so that one can still scroll past it
function listenToWheel(canvas, moves) {
  canvas.addEventListener('wheel', event => {
    if (!canvas.matches(':focus') && !event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect(), turn = clamp(event.deltaY, -200, 200);
    moves.zoom(Math.exp(turn * .002), event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
}

// Keys that act, and arrows: a step to the next patch, or with Shift an eighth of the view
function listenToKeys(canvas, slide, view, moves, choose) {
  const arrows = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  const actions = {
    '+': () => moves.zoom(.7), '=': () => moves.zoom(.7), '-': () => moves.zoom(1 / .7),
    '0': moves.showAll, 'Home': moves.showAll, '1': () => moves.zoomTo(1 / slide.grid.step), 'Enter': moves.showChosen};
  canvas.onkeydown = event => {
    const arrow = arrows[event.key], action = actions[event.key];
    if (!arrow && !action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (action) return action();
    const [down, right] = arrow;
    if (event.shiftKey) {
      const step = view.scale / 8;
      moves.moveTo(view.top + down * canvas.clientHeight * step, view.left + right * canvas.clientWidth * step);
    } else {
      const {rows, cols} = slide.grid, [row, col] = cellOf(Math.max(view.chosen, 0), cols);
      choose(clamp(row + down, 0, rows - 1) * cols + clamp(col + right, 0, cols - 1), true);
    }
  };
}

// ---- the widget: the page sends `window` and `chosen`, and gets pictures and latents back ----

function render({model, el}) {
  const find = createElements(el), canvas = find('.slide');
  const slide = {grid: model.get('grid'), whole: null, tints: null};
  const view = {top: 0, left: 0, scale: 1, sharp: null, chosen: -1, tint: .6};
  const moves = createMoves(canvas, slide, view, () => { draw(); ask(); });
  let asked = '', patchUrl = null;

  function count(name) {   // for tests: how often something was done
    el.dataset[name] = Number(el.dataset[name] || 0) + 1;
  }
  function draw() {
    if (!canvas.clientWidth) return;
    view.chosen = model.get('chosen');
    view.tint = model.get('tint');
    drawSlide(...fitToScreen(canvas), slide, view);
    count('drawn');
  }
  // The view as the trait `window`: Python answers with the trait `view`
  function ask() {
    const width = canvas.clientWidth, height = canvas.clientHeight;
    const dots = Math.round(width * screenDensity());
    const now = [view.top, view.left, height * view.scale, width * view.scale, dots];
    asked = JSON.stringify(now);
    model.set('window', now);
    model.save_changes();
  }
  // Show all of the trait `window`, whatever the shape of the element; not if it comes from `ask`
  function fitToWindow() {
    const [top, left, height, width] = model.get('window');
    if (!canvas.clientWidth) return;
    view.scale = Math.max(height / canvas.clientHeight, width / canvas.clientWidth);
    view.top = top + (height - canvas.clientHeight * view.scale) / 2;
    view.left = left + (width - canvas.clientWidth * view.scale) / 2;
    draw();
    ask();
  }
  function windowChanged() {
    if (JSON.stringify(model.get('window')) != asked) fitToWindow();
  }
  // Choose patch k; `follow`: move the view to it if it is not all in sight
  function choose(k, follow) {
    model.set('chosen', k);
    model.save_changes();
    const {cols, stride, patch} = slide.grid, [row, col] = cellOf(k, cols), y = row * stride, x = col * stride;
    const bottom = view.top + canvas.clientHeight * view.scale, right = view.left + canvas.clientWidth * view.scale;
    const visible = y >= view.top && x >= view.left && y + patch <= bottom && x + patch <= right;
    if (follow && !visible) {
      view.chosen = k;
      moves.showChosen();
    }
    draw();
  }

  function showTexts() {
    find('.caption').textContent = model.get('caption');
    find('.place').textContent = model.get('place');
    canvas.setAttribute('aria-label', model.get('caption') + '; ' + model.get('place'));
  }
  async function showGrid() {
    slide.grid = model.get('grid');
    slide.tints = tintCanvas(slide.grid);
    slide.whole = await decode(slide.grid.whole, 'image/jpeg');
    find('.legend').innerHTML = tintLegend(slide.grid);
    draw();
  }
  async function showSharp() {
    const {jpeg, at} = model.get('view');
    if (!at) return;
    view.sharp = {picture: await decode(jpeg, 'image/jpeg'), at};
    draw();
    count('sharp');
  }
  function showPatch() {
    const patch = model.get('patch');
    if (!patch.latent) return;
    if (patchUrl) URL.revokeObjectURL(patchUrl);
    patchUrl = URL.createObjectURL(new Blob([bytes(patch.png)], {type: 'image/png'}));
    find('.patch').src = patchUrl;
    find('.patch').alt = find('.about').textContent = patch.about;
    showLatent(find, patch);
    draw();
  }
  function setTint() {
    model.set('tint', Number(find('.tint').value));
    model.save_changes();
    draw();
  }

  listenToPointer(canvas, slide, view, moves, choose);
  listenToWheel(canvas, moves);
  listenToKeys(canvas, slide, view, moves, choose);
  find('.in').onclick = () => moves.zoom(.7);
  find('.out').onclick = () => moves.zoom(1 / .7);
  find('.all').onclick = moves.showAll;
  find('.one').onclick = () => moves.zoomTo(1 / slide.grid.step);
  find('.tint').value = model.get('tint');
  find('.tint').oninput = setTint;
  const reactions = {
    grid: showGrid, view: showSharp, patch: showPatch, caption: showTexts, place: showTexts,
    chosen: draw, tint: draw, window: windowChanged};
  for (const [trait, react] of Object.entries(reactions)) model.on('change:' + trait, react);
  const resized = new ResizeObserver(() => { fitToWindow(); showPatch(); });
  resized.observe(canvas);
  showGrid();
  showSharp();
  showPatch();
  showTexts();
  return () => resized.disconnect();
}

export default {render};
