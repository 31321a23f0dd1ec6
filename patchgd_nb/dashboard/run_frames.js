// A frame of a run: unpacked from its bytes, then drawn as the image with its patches and as Z. Follows colours.js.
// `view` says which part of the grid is seen: `x`, `y` (left upper corner, in cells), `scale` (pixels of the page
// along a cell's width) and `tall` (a cell's height as a multiple of its width).

const WASH = [150, 154, 162, 120];   // over blank cells of the image
const BLANK = 0, CARRIED = 2, REFRESHED = 3, SAMPLED = 4;   // states of a cell, as `about.states` counts them

// ---- unpacking ----

// A frame's head and its numbers per cell, in the order in which Python wrote them
function unpackFrame(head, data) {
  const cells = head.rows * head.cols, all = bytes(data);
  let at = 0;
  function take(Numbers, count) {   // a copy: a typed array may not begin at an odd byte
    const part = all.slice(at, at += count * Numbers.BYTES_PER_ELEMENT);
    return new Numbers(part.buffer);
  }
  return {
    ...head, size: all.length, state: take(Uint8Array, cells), times: take(Uint16Array, cells),
    age: take(Uint16Array, cells), norm: take(Float32Array, cells), share: take(Float32Array, cells),
    latent: take(Int8Array, cells * head.channels)};
}

function floats(view) {
  return view ? new Float32Array(bytes(view).slice().buffer) : new Float32Array(0);
}

// The directions in which latents become red, green and blue: the same for every frame of a run
function unpackColours({mean, basis, scale}) {
  return {mean: floats(mean), basis: floats(basis), scale: floats(scale)};
}

// The latent of cell k
function latentOf({latent, channels, z_scale}, k) {
  return Array.from(latent.subarray(k * channels, (k + 1) * channels), value => value * z_scale / 127);
}

// The mean latent of all cells that are not blank, worked out once per frame
function meanLatent(frame) {
  if (frame.mean) return frame.mean;
  const sum = new Float64Array(frame.channels);
  let count = 0;
  for (let k = 0; k < frame.state.length; k++) {
    if (frame.state[k] == BLANK) continue;
    count++;
    for (let c = 0; c < frame.channels; c++) sum[c] += frame.latent[k * frame.channels + c];
  }
  frame.mean = Array.from(sum, value => value * frame.z_scale / 127 / Math.max(count, 1));
  return frame.mean;
}

// Red, green and blue of every cell, worked out once per frame
function latentColours(frame, colours) {
  if (frame.rgbBy == colours) return frame.rgb;
  const {latent, channels} = frame, {mean, basis, scale} = colours, unit = frame.z_scale / 127;
  const rgb = new Uint8ClampedArray(3 * frame.state.length);
  for (let k = 0; k < frame.state.length; k++) {
    let r = 0, g = 0, b = 0;
    for (let c = 0; c < channels; c++) {
      const value = latent[k * channels + c] * unit - mean[c];
      r += value * basis[3 * c];
      g += value * basis[3 * c + 1];
      b += value * basis[3 * c + 2];
    }
    [r, g, b].forEach((value, i) => { rgb[3 * k + i] = 255 * (.5 + .5 * value / (scale[i] || 1)); });
  }
  frame.rgbBy = colours;
  return frame.rgb = rgb;
}

// ---- amounts: what the colours of cells can stand for, on one scale for the whole run ----

// An amount by its name: the value of cell k, the ends of its scale, and how to write both
function amountOf(name, scales, channel) {
  const whole = value => String(Math.round(value)), small = value => Number(value.toPrecision(2)).toString();
  const signed = value => (value > 0 ? '+' : '') + small(value);
  const share = scales.share || 1, latent = scales.latent || 1, [low, high] = scales.norm || [0, 1];
  return {
    times: {
      of: (f, k) => f.times[k], ends: [0, scales.times || 1], colours: CIVIDIS, text: whole, unit: 'times sampled'},
    age: {
      of: (f, k) => f.age[k], ends: [0, scales.age || 1], colours: CIVIDIS, text: whole, unit: 'inner iterations'},
    norm: {of: (f, k) => f.norm[k], ends: [low, high], colours: CIVIDIS, text: small, unit: 'norm'},
    adds: {of: (f, k) => f.share[k], ends: [-share, share], colours: PUOR, text: signed, unit: 'to the score'},
    channel: {
      of: (f, k) => f.latent[k * f.channels + channel] * f.z_scale / 127, ends: [-latent, latent],
      colours: PUOR, text: signed, unit: `channel ${channel}`}}[name];
}

// A function of k: red, green and blue of the cell
function paintOf(frame, name, {scales, colours, channel}) {
  if (name == 'colours') {
    const rgb = latentColours(frame, colours);
    return k => rgb.subarray(3 * k, 3 * k + 3);
  }
  const {of, ends: [low, high], colours: scale} = amountOf(name, scales, channel);
  return k => colour(scale, (of(frame, k) - low) / ((high - low) || 1));
}

// ---- where cells lie ----

// The rows and columns to show: all cells that are not blank, and one more on each side
function contentBox({rows, cols, state}) {
  let [top, left, bottom, right] = [rows, cols, 0, 0];
  for (let k = 0; k < rows * cols; k++) {
    if (state[k] == BLANK) continue;
    const [row, col] = cellOf(k, cols);
    [top, left] = [Math.min(top, row - 1), Math.min(left, col - 1)];
    [bottom, right] = [Math.max(bottom, row + 2), Math.max(right, col + 2)];
  }
  if (bottom == 0) return [0, 0, rows, cols];
  return [Math.max(top, 0), Math.max(left, 0), Math.min(bottom, rows), Math.min(right, cols)];
}

// Left, top, width and height of cell k on the page
function boxOf(k, cols, {x, y, scale, tall}) {
  const [row, col] = cellOf(k, cols);
  return [(col - x) * scale, (row - y) * scale * tall, scale, scale * tall];
}

// One path of all the cells in a state, each smaller by `inset` on all sides
function cellsIn(state, frame, view, inset = 0) {
  const path = new Path2D();
  for (let k = 0; k < frame.state.length; k++) {
    if (frame.state[k] != state) continue;
    const [x, y, width, height] = boxOf(k, frame.cols, view);
    path.rect(x + inset, y + inset, width - 2 * inset, height - 2 * inset);
  }
  return path;
}

// Left, top, width and height of the whole grid on the page
function gridBox({rows, cols}, {x, y, scale, tall}) {
  return [-x * scale, -y * scale * tall, cols * scale, rows * scale * tall];
}

// ---- drawing ----

// Diagonal lines as a pattern, near enough to meet each cell, however small. Each is dark with a light edge, so that
// it is seen on any ground. `cross`: both ways
function hatching(context, {scale}, dark, light, ground, cross) {
  const side = Math.round(clamp(scale / 2, 4, 12)), thin = side < 8 ? .7 : 1, tile = document.createElement('canvas');
  Object.assign(tile, {width: side, height: side});
  const pen = tile.getContext('2d');
  pen.fillStyle = ground;
  pen.fillRect(0, 0, side, side);
  for (const [ink, shift, width] of [[light, 1.2, 1.4], [dark, 0, 1.2]]) {
    pen.strokeStyle = ink;
    pen.lineWidth = width * thin;
    pen.beginPath();
    for (const start of [-side, 0, side]) {
      pen.moveTo(start + shift - 1, side + 1);
      pen.lineTo(start + side + shift + 1, -1);
      if (!cross) continue;
      pen.moveTo(start + shift - 1, -1);
      pen.lineTo(start + side + shift + 1, side + 1);
    }
    pen.stroke();
  }
  return context.createPattern(tile, 'repeat');
}

// One pixel per cell, enlarged without blurring
function drawPixels(context, frame, view, rgbaOf) {
  context.imageSmoothingEnabled = false;
  context.drawImage(cellCanvas(frame.rows, frame.cols, rgbaOf), ...gridBox(frame, view));
  context.imageSmoothingEnabled = true;
}

// Cells sampled now have a thick outline, orange between white between black: it does not depend on colour
function drawSampled(context, frame, view) {
  const unit = clamp(view.scale * Math.min(1, view.tall) / 18, .4, 1), path = cellsIn(SAMPLED, frame, view, 2.4 * unit);
  const wide = [['#000', 4.6], ['#fff', 3.2], ['#e66100', 2]], narrow = [['#000', 6], ['#e66100', 3]];
  for (const [ink, width] of view.scale < 11 ? narrow : wide) {
    context.strokeStyle = ink;
    context.lineWidth = width * unit;
    context.stroke(path);
  }
}

// Cells carried from an earlier visit of the image have a dot in the corner
function drawCarried(context, frame, view) {
  const radius = clamp(view.scale / 8, .8, 3.5), path = new Path2D();
  for (let k = 0; k < frame.state.length; k++) {
    if (frame.state[k] != CARRIED) continue;
    const [x, y] = boxOf(k, frame.cols, view);
    path.moveTo(x + 2.6 * radius, y + 1.6 * radius);
    path.arc(x + 1.6 * radius, y + 1.6 * radius, radius, 0, 7);
  }
  Object.assign(context, {fillStyle: '#fff', strokeStyle: '#000', lineWidth: Math.min(1.2, radius)});
  context.fill(path);
  context.stroke(path);
}

// Blank cells are washed out and cross-hatched, as they are in Z: told apart from pale tissue without colours, too
function drawBlank(context, frame, view) {
  drawPixels(context, frame, view, k => frame.state[k] == BLANK ? WASH : [0, 0, 0, 0]);
  context.fillStyle = hatching(context, view, '#85898f', 'rgba(0,0,0,0)', 'rgba(0,0,0,0)', true);
  context.fill(cellsIn(BLANK, frame, view));
}

// How the cells stand: blank washed out, carried with a dot, refreshed hatched, filled as the image is
function drawStates(context, frame, view) {
  drawBlank(context, frame, view);
  context.fillStyle = hatching(context, view, '#00466b', 'rgba(255,255,255,.9)', 'rgba(0,0,0,0)');
  context.fill(cellsIn(REFRESHED, frame, view));
  drawCarried(context, frame, view);
}

// An amount on the image: a square in each cell, so that its colour is the legend's and the image shows around it
function drawAmount(context, frame, view, name, look) {
  const paint = paintOf(frame, name, look), margin = view.scale < 10 ? 0 : view.scale / 6;
  drawBlank(context, frame, view);
  for (let k = 0; k < frame.state.length; k++) {
    if (frame.state[k] == BLANK) continue;
    const [x, y, width, height] = boxOf(k, frame.cols, view);
    context.fillStyle = `rgb(${paint(k)})`;
    context.fillRect(x + margin, y + margin * view.tall, width - 2 * margin, height - 2 * margin * view.tall);
  }
}

// The value in each cell, where cells are large enough: ages and times can be read, not only seen
function drawNumbers(context, frame, view, name, look) {
  if (!['age', 'times'].includes(name) || view.scale < 20 || view.scale * view.tall < 16) return;
  const paint = paintOf(frame, name, look), size = clamp(view.scale / 2.6, 10, 14);
  Object.assign(context, {font: `${size}px sans-serif`, textAlign: 'center', textBaseline: 'middle'});
  for (let k = 0; k < frame.state.length; k++) {
    if (frame.state[k] == BLANK) continue;
    const [x, y, width, height] = boxOf(k, frame.cols, view), [r, g, b] = paint(k);
    context.fillStyle = .3 * r + .59 * g + .11 * b > 130 ? '#000' : '#fff';
    context.fillText(frame[name][k], x + width / 2, y + height / 2 + 1);
  }
}

// Lines between cells, where there is room for them
function drawGrid(context, frame, view) {
  if (view.scale < 9) return;
  const [left, top, width, height] = gridBox(frame, view), steps = n => Array.from({length: n + 1}, (_, i) => i / n);
  Object.assign(context, {strokeStyle: 'rgba(90,90,90,.35)', lineWidth: .6});
  gridLines(context, steps(frame.cols).map(t => left + t * width), steps(frame.rows).map(t => top + t * height),
    [left, top, left + width, top + height]);
}

// The image under its patches; `name`: 'states', or an amount
function drawImage(context, frame, view, picture, name, look) {
  context.imageSmoothingQuality = 'high';
  context.fillStyle = '#d8d8d8';
  context.fillRect(...gridBox(frame, view));
  if (picture) context.drawImage(picture, ...gridBox(frame, view));
  if (frame.whole) return;
  drawGrid(context, frame, view);
  if (name == 'states') drawStates(context, frame, view);
  else drawAmount(context, frame, view, name, look);
  drawSampled(context, frame, view);
  drawNumbers(context, frame, view, name, look);
}

// Z cell by cell; `name`: 'colours', or an amount. Blank cells are cross-hatched grey, as no cell with a latent is.
function drawZ(context, frame, view, name, look) {
  const paint = paintOf(frame, name, look);
  context.fillStyle = hatching(context, view, '#a3a6ab', '#e6e8ea', '#d5d7da', true);
  context.fillRect(...gridBox(frame, view));
  drawPixels(context, frame, view, k => frame.state[k] == BLANK ? [0, 0, 0, 0] : [...paint(k), 255]);
  drawGrid(context, frame, view);
  drawSampled(context, frame, view);
  drawNumbers(context, frame, view, name, look);
}

// The cell that is pinned has dashes around it, the one under the mouse a thin line
function drawMark(context, frame, view, k, pinned) {
  if (k < 0 || k >= frame.state.length) return;
  const [x, y, width, height] = boxOf(k, frame.cols, view), gap = pinned ? 2.5 : 0;
  const box = [x - gap, y - gap, width + 2 * gap, height + 2 * gap];
  if (!pinned) return outline(context, box, 3, 1.2);
  outline(context, box, 5, 3);
  Object.assign(context, {strokeStyle: '#000', lineWidth: 3});
  context.setLineDash([5, 5]);
  context.strokeRect(...box);
  context.setLineDash([]);
}

// The latent of a cell as bars, and as a line the mean of all filled cells: what is special here stands out
function drawLatent(context, width, height, latent, mean, most, ink) {
  const step = width / latent.length, y = value => height / 2 * (1 - clamp(value / most, -1, 1));
  context.fillStyle = '#3d8fd1';
  latent.forEach((value, i) => {
    context.fillRect(i * step, Math.min(y(0), y(value)), Math.max(.8, step - (step > 4)), Math.abs(y(value) - y(0)));
  });
  context.fillStyle = ink;
  context.fillRect(0, y(0) - .5, width, 1);
  Object.assign(context, {strokeStyle: '#e66100', lineWidth: step < 2 ? .8 : 1.4});
  context.beginPath();
  mean.forEach((value, i) => { context.lineTo(i * step, y(value)); context.lineTo((i + 1) * step, y(value)); });
  context.stroke();
}

// ---- legends: entries of a text, a picture and a text, put into the page or into a PNG ----

function smallCanvas(width, height) {
  const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
  Object.assign(canvas, {width: 2 * width, height: 2 * height});
  canvas.style.cssText = `width:${width}px;height:${height}px`;
  context.scale(2, 2);
  return [canvas, context];
}

// A cell in a state, drawn by the functions that draw the panels: on the image's colour, or in Z
function stateEntry(state, text, inZ) {
  const [icon, context] = smallCanvas(18, 18), view = {x: 0, y: 0, scale: 18, tall: 1};
  const frame = {rows: 1, cols: 1, state: [state], times: [0], age: [0], norm: [0], share: [0]};
  if (inZ) drawZ(context, frame, view, 'age', {scales: {}});
  else {
    context.fillStyle = state == BLANK ? '#fff' : '#eec3d6';
    context.fillRect(0, 0, 18, 18);
    drawStates(context, frame, view);
    drawSampled(context, frame, view);
  }
  return ['', icon, text];
}

function scaleEntry({ends: [low, high], colours, text, unit}) {
  const [icon, context] = smallCanvas(72, 12), ground = context.createLinearGradient(0, 0, 72, 0);
  colours.forEach((rgb, i) => ground.addColorStop(i / (colours.length - 1), `rgb(${rgb})`));
  context.fillStyle = ground;
  context.fillRect(0, 0, 72, 12);
  return [text(low), icon, `${text(high)} ${unit}`];
}

// What the image shows; `seen`: the states that any frame of this run had
function imageLegend(name, states, seen, look) {
  const entries = states.map((text, state) => stateEntry(state, text));
  if (name == 'states') return entries.filter((_, state) => seen.has(state));
  return [scaleEntry(amountOf(name, look.scales, look.channel)), entries[BLANK], entries[SAMPLED]];
}

function zLegend(name, states, look) {
  const ends = [stateEntry(BLANK, states[BLANK], true), stateEntry(SAMPLED, states[SAMPLED])];
  if (name == 'colours') return [['like colours: like latents', null, ''], ...ends];
  return [scaleEntry(amountOf(name, look.scales, look.channel)), ...ends];
}

function fillLegend(element, entries) {
  element.replaceChildren(...entries.map(parts => {
    const entry = document.createElement('span');
    entry.append(...parts.filter(part => part).flatMap((part, i) => i ? [' ', part] : [part]));
    return entry;
  }));
}
