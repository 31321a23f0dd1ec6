// What both views need: colours, pixels and cells. A view is sent to the page as one text, this file first and its
// own file after it (`load_js` in view.py), so there is nothing to import or export here.

// rgba of the four states of a patch: blank, filled only, refreshed this batch, sampled now
const INK = [[128, 128, 128, 140], [0, 0, 0, 0], [0, 114, 178, 102], [213, 94, 0, 153]];

// Colour scales that colour-blind people can read: cividis for amounts, PuOr for signed values
const CIVIDIS = [
  [0, 34, 78], [42, 63, 108], [87, 93, 109], [124, 123, 120], [166, 157, 117], [211, 193, 100], [254, 232, 56]];
const PUOR = [
  [84, 39, 136], [153, 142, 195], [216, 218, 235], [247, 247, 247], [254, 224, 182], [241, 163, 64], [179, 88, 6]];

// A border in the theme's colour
const BORDER = 'box-sizing:border-box;border:1px solid var(--jp-border-color2,#888)';

function clamp(x, low, high) {
  return Math.min(Math.max(x, low), high);
}

// Row and column of cell k; cells are counted row by row
function cellOf(k, cols) {
  return [Math.floor(k / cols), k % cols];
}

// The colour at t, from 0 to 1, on a scale: between two of its colours a mixture of both
function colour(scale, t) {
  const x = clamp(t, 0, 1) * (scale.length - 1);
  const i = Math.min(Math.floor(x), scale.length - 2);
  return scale[i].map((value, c) => Math.round(value + (x - i) * (scale[i + 1][c] - value)));
}

// HTML of a legend's entry: a box in a colour, and what it means
function swatch(rgba, text) {
  const css = `rgba(${rgba.slice(0, 3)},${rgba[3] / 255})`;
  const box = 'display:inline-block;width:12px;height:12px;border:1px solid #888;vertical-align:-2px';
  const fill = `background:linear-gradient(${css},${css}),#fff`;
  return `<span style="white-space:nowrap;margin-right:10px"><span style="${box};${fill}"></span> ${text}</span> `;
}

// HTML of a colour scale between its two ends
function ramp(scale, low, high, unit) {
  const stops = scale.map(rgb => `rgb(${rgb})`).join(',');
  const bar = 'display:inline-block;width:140px;height:10px;vertical-align:-1px';
  return `${low} <span style="${bar};background:linear-gradient(90deg,${stops})"></span> ${high} ${unit}`;
}

// Bytes from Python arrive as a DataView
function bytes(view) {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

// A picture from the bytes of a file; null where there are none
async function decode(view, type) {
  return view && view.byteLength ? await createImageBitmap(new Blob([bytes(view)], {type})) : null;
}

// A canvas with one pixel per cell. The browser enlarges it, so 4096 cells are drawn as fast as 16.
function cellCanvas(rows, cols, rgbaOf) {
  const canvas = Object.assign(document.createElement('canvas'), {width: cols, height: rows});
  const pixels = new ImageData(cols, rows);
  for (let k = 0; k < rows * cols; k++) pixels.data.set(rgbaOf(k), 4 * k);
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

// Dots of the screen along a pixel of the page
function screenDensity() {
  return Math.min(2, window.devicePixelRatio || 1);
}

// A white frame with a black edge, visible on any background
function outline(context, box, blackWidth, whiteWidth) {
  context.strokeStyle = '#000';
  context.lineWidth = blackWidth;
  context.strokeRect(...box);
  context.strokeStyle = '#fff';
  context.lineWidth = whiteWidth;
  context.strokeRect(...box);
}

// Lines between the cells of a grid: `xs` from top to bottom, `ys` from left to right
function gridLines(context, xs, ys, [left, top, right, bottom]) {
  context.beginPath();
  for (const x of xs) {
    context.moveTo(x, top);
    context.lineTo(x, bottom);
  }
  for (const y of ys) {
    context.moveTo(left, y);
    context.lineTo(right, y);
  }
  context.stroke();
}
