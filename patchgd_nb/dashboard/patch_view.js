// An image with its patches beside Z, as the traits of `PatchView` (view.py) have them. Follows colours.js.

const SIDE = 440;   // pixels of the page along the longer side of the grid, at most

// ---- the elements ----

function canvasElement(name) {
  const style = `width:100%;${BORDER};cursor:crosshair;background:var(--jp-layout-color1,#fff)`;
  return `<canvas class="${name}" tabindex="0" role="img" style="${style}"></canvas>`;
}

// Two canvases and the patch that is pointed at, with captions and legends; a function that finds them
function createElements(el) {
  const figure = `margin:0;flex:1 1 260px;max-width:${SIDE}px`, small = 'font-size:12px';
  const patch = `image-rendering:pixelated;${BORDER};background:var(--jp-layout-color2,#eee)`;
  const waiting = 'no frame yet: it comes with the first inner iteration that samples patches';
  el.classList.add('patchgd-view');
  el.innerHTML = `
    <div style="display:flex;flex-wrap:wrap;gap:14px;color:var(--jp-ui-font-color1,#333);font-size:13px">
      <figure style="${figure}">
        <figcaption class="left">${waiting}</figcaption>
        ${canvasElement('image')}
        <div class="legend" style="${small}"></div>
      </figure>
      <figure style="${figure}">
        <figcaption class="right">&nbsp;</figcaption>
        ${canvasElement('z')}
        <div class="scale" style="${small}"></div>
      </figure>
      <figure style="margin:0;flex:0 1 200px">
        <figcaption>the patch you point at</figcaption>
        <img class="patch" width="180" height="180" alt="" style="${patch}">
        <div class="about" aria-live="polite" style="${small};white-space:pre-line"></div>
      </figure>
    </div>`;
  return selector => el.querySelector(selector);
}

// Give a canvas the shape of the grid and empty it; returns its context, width and height in pixels of the page
function fitToGrid(canvas, frame) {
  const longer = Math.max(frame.rows, frame.cols), density = screenDensity();
  const width = Math.max(60, SIDE * frame.cols / longer), height = Math.max(60, SIDE * frame.rows / longer);
  const dots = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width != dots[0] || canvas.height != dots[1]) {
    [canvas.width, canvas.height] = dots;
    canvas.style.maxWidth = width + 'px';
  }
  const context = canvas.getContext('2d');
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

// ---- the image ----

// A canvas of one pixel per cell, enlarged without blurring its edges
function drawCells(context, cells, width, height) {
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, 0, 0, width, height);
  context.imageSmoothingEnabled = true;
}

function drawGrid(context, width, height, {rows, cols}) {
  const xs = Array.from({length: cols - 1}, (_, i) => (i + 1) * width / cols);
  const ys = Array.from({length: rows - 1}, (_, i) => (i + 1) * height / rows);
  context.strokeStyle = 'rgba(128,128,128,.45)';
  context.lineWidth = .5;
  gridLines(context, xs, ys, [0, 0, width, height]);
}

// Whatever colours the image, the patches that are sampled now keep their orange frame
function drawSampled(context, width, height, {rows, cols}, state) {
  const x = width / cols, y = height / rows;
  context.strokeStyle = '#d55e00';
  context.lineWidth = Math.min(2, x / 3);
  for (let k = 0; k < rows * cols; k++) {
    if (state[k] != 3) continue;
    const [row, col] = cellOf(k, cols);
    context.strokeRect(col * x + 1, row * y + 1, x - 2, y - 2);
  }
}

// The image under its patches, coloured by `layer`: 'state', or an amount ('times', 'age')
function drawImage(context, width, height, frame, picture, layer) {
  const state = bytes(frame.state), amounts = layer == 'state' ? null : bytes(frame[layer]);
  const rgbaOf = k => amounts && state[k] ? [...colour(CIVIDIS, amounts[k] / 255), 165] : INK[state[k]];
  if (picture) context.drawImage(picture, 0, 0, width, height);
  drawCells(context, cellCanvas(frame.rows, frame.cols, rgbaOf), width, height);
  drawGrid(context, width, height, frame);
  drawSampled(context, width, height, frame, state);
}

// ---- Z ----

// The colour scale of the values that are shown of Z
function scaleOf(frame) {
  return frame.view == 'share' ? PUOR : CIVIDIS;
}

// Z cell by cell; `faded`: the older a cell, the paler
function drawZ(context, width, height, frame, faded) {
  const state = bytes(frame.state), values = bytes(frame.values), age = bytes(frame.age), scale = scaleOf(frame);
  const rgbOf = k => frame.view == 'colours' ? values.slice(3 * k, 3 * k + 3) : colour(scale, values[k] / 255);
  const rgbaOf = k => state[k] ? [...rgbOf(k), faded ? 255 - .8 * age[k] : 255] : [128, 128, 128, 64];
  drawCells(context, cellCanvas(frame.rows, frame.cols, rgbaOf), width, height);
  if (faded && Math.min(width / frame.cols, height / frame.rows) >= 20) drawAges(context, width, height, frame);
}

// The age as a number in each cell that is not blank
function drawAges(context, width, height, frame) {
  const state = bytes(frame.state), age = bytes(frame.age), x = width / frame.cols, y = height / frame.rows;
  Object.assign(context, {font: '11px sans-serif', textAlign: 'center', textBaseline: 'middle'});
  Object.assign(context, {lineWidth: 2.5, strokeStyle: '#fff', fillStyle: '#000'});
  for (let k = 0; k < frame.rows * frame.cols; k++) {
    if (!state[k]) continue;
    const [row, col] = cellOf(k, frame.cols), text = String(Math.round(age[k] / 255 * frame.max.age));
    context.strokeText(text, (col + .5) * x, (row + .5) * y);
    context.fillText(text, (col + .5) * x, (row + .5) * y);
  }
}

// ---- both ----

function drawMark(context, width, height, frame, k) {
  const [row, col] = cellOf(k, frame.cols), x = width / frame.cols, y = height / frame.rows;
  outline(context, [col * x, row * y, x, y], 3, 1.2);
}

// HTML of the legend below the image
function imageLegend(frame, layer, states) {
  if (layer == 'state') return states.map((name, i) => swatch(INK[i], name)).join('');
  const sampled = swatch([213, 94, 0, 255], 'frame: sampled now');
  return `${ramp(CIVIDIS, 0, frame.max[layer], frame.units[layer])} ${swatch(INK[0], 'blank')}${sampled}`;
}

// HTML of the legend below Z
function zLegend(frame, faded) {
  const like = 'like colours: like latents';
  const scale = frame.view == 'colours' ? like : ramp(scaleOf(frame), frame.low, frame.high, frame.unit);
  return scale + (faded ? `; the paler, the older, up to ${frame.max.age} inner iterations` : '');
}

// The cell under the mouse
function cellUnder(event, canvas, {rows, cols}) {
  const box = canvas.getBoundingClientRect();
  const row = clamp(Math.floor((event.clientY - box.top) / box.height * rows), 0, rows - 1);
  const col = clamp(Math.floor((event.clientX - box.left) / box.width * cols), 0, cols - 1);
  return row * cols + col;
}

// Call `point` with the cell under the mouse, at most 20 times a second, and with the one an arrow key leads to
function listen(canvas, model, point) {
  let last = 0;
  canvas.addEventListener('mousemove', event => {
    const frame = model.get('frame'), now = performance.now();
    if (!frame.rows || now - last < 50) return;
    last = now;
    point(cellUnder(event, canvas, frame));
  });
  canvas.addEventListener('keydown', event => {
    const {rows, cols} = model.get('frame');
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -cols, ArrowDown: cols}[event.key];
    if (step === undefined || !rows) return;
    event.preventDefault();
    event.stopPropagation();
    point(clamp(model.get('pointed') + step, 0, rows * cols - 1));
  });
}

// ---- the widget: what is drawn when which trait changes ----

function render({model, el}) {
  const find = createElements(el), image = find('.image'), z = find('.z');
  let picture = null, patchUrl = null;

  function draw() {
    const frame = model.get('frame'), began = performance.now();
    if (!frame || !frame.rows) return;
    const layer = model.get('over'), faded = model.get('faded'), pointed = model.get('pointed');
    const onImage = fitToGrid(image, frame), onZ = fitToGrid(z, frame);
    drawImage(...onImage, frame, picture, layer);
    drawZ(...onZ, frame, faded);
    if (pointed >= 0 && pointed < frame.rows * frame.cols) {
      drawMark(...onImage, frame, pointed);
      drawMark(...onZ, frame, pointed);
    }
    describe(frame, layer, faded);
    el.dataset.drawn = Number(el.dataset.drawn || 0) + 1;   // for tests: how often, and milliseconds
    el.dataset.ms = performance.now() - began;
  }

  // Captions and legends, and the same in words for those who do not see the canvases
  function describe(frame, layer, faded) {
    find('.left').textContent = frame.left;
    find('.right').textContent = 'Z: ' + frame.right;
    find('.legend').innerHTML = imageLegend(frame, layer, model.get('states'));
    find('.scale').innerHTML = zLegend(frame, faded);
    image.setAttribute('aria-label', `${frame.alt}; arrow keys move the mark`);
    z.setAttribute('aria-label', `Z, ${frame.right}: ${frame.alt}; arrow keys move the mark`);
  }

  function point(k) {
    if (k == model.get('pointed')) return;
    model.set('pointed', k);
    model.save_changes();
    draw();
  }

  function showPatch() {
    const png = model.get('patch'), img = find('.patch');
    if (patchUrl) URL.revokeObjectURL(patchUrl);
    patchUrl = png && png.byteLength ? URL.createObjectURL(new Blob([bytes(png)], {type: 'image/png'})) : null;
    if (patchUrl) img.src = patchUrl;
    else img.removeAttribute('src');
    find('.about').textContent = img.alt = model.get('about');
  }

  async function showPicture() {
    picture = await decode(model.get('picture'), 'image/jpeg');
    draw();
  }

  for (const canvas of [image, z]) listen(canvas, model, point);
  for (const name of ['frame', 'pointed', 'over', 'faded']) model.on('change:' + name, draw);
  for (const name of ['patch', 'about']) model.on('change:' + name, showPatch);
  model.on('change:picture', showPicture);
  showPicture();
  showPatch();
}

export default {render};
