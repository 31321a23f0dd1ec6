// Curves over a run, as SVG. x is the place of an inner iteration in the run, in every plot and in the slider.

const PLOT = {left: 3.7, right: 1, top: .6, bottom: 1.6};   // margins of a plot, as multiples of its font's size
const LINES = ['#3d8fd1', '#d1541e', '#2a8a3e', '#a04fc0', '#8a6d1d', '#c2266b'];   // 3:1 on white and on black
const DASHES = ['', '6 3', '2 2', '8 3 2 3', '4 4', '1 3'];

// About `wanted` round numbers from `low` to `high`
function roundSteps(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(n => n * power >= rough), first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({length: count}, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

// Curves of the loss: what was measured, light, and smoothed
function lossCurves({loss, smooth}) {
  return [
    {name: 'each inner iteration', points: loss, colour: LINES[0], width: 1, opacity: .8, dash: ''},
    {name: 'smoothed', points: smooth, colour: LINES[1], width: 2, opacity: 1, dash: ''}].filter(curve => curve.points);
}

function metricCurves({metrics}) {
  return Object.entries(metrics || {}).map(([name, points], i) => ({
    name, points, colour: LINES[i % 6], width: 1.8, opacity: 1, dash: DASHES[i % 6], dots: true}));
}

// The ends of the y axis: those of all points, a little wider; outliers among many points are cut off at the top
function yEnds(curves) {
  const values = curves.flatMap(curve => curve.points[1]).filter(Number.isFinite).sort((a, b) => a - b);
  if (!values.length) return null;
  const low = values[0], high = values[values.length > 50 ? Math.floor(values.length * .99) : values.length - 1];
  const margin = (high - low) * .06 || Math.abs(high) * .1 || 1;
  return [low - margin, high + margin];
}

// How places and values become pixels, between the margins; without any value, places only
function plotScales(curves, n, width, height, size) {
  const [low, high] = yEnds(curves) || [], left = PLOT.left * size, right = width - PLOT.right * size;
  const top = PLOT.top * size, bottom = height - PLOT.bottom * size, last = Math.max(n, 1);
  return {
    low, high, left, right, top, bottom, x: place => left + (right - left) * place / last,
    y: value => clamp(top + (bottom - top) * (high - value) / (high - low), top - 2, bottom),
    place: x => clamp((x - left) / (right - left), 0, 1) * last};
}

// One curve as a line, with dots where its points are few
function curveElement({points: [xs, ys], colour, width, opacity, dash, dots}, {x, y}) {
  const found = xs.map((place, i) => [place, ys[i]]).filter(([, value]) => Number.isFinite(value));
  const at = found.map(([place, value]) => [x(place).toFixed(1), y(value).toFixed(1)]);
  const line = `<polyline points="${at.join(' ')}" fill="none" stroke="${colour}" stroke-width="${width}"
    stroke-opacity="${opacity}" stroke-dasharray="${dash}" stroke-linejoin="round"/>`;
  if (at.length != 1 && (!dots || at.length > 40)) return line;
  return line + at.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="2.4" fill="${colour}"/>`).join('');
}

// Lines and numbers of both axes
function axesElement({low, high, left, right, bottom, x, y}, n, size) {
  const text = (at, height, anchor, words) => `<text x="${at}" y="${height}" text-anchor="${anchor}">${words}</text>`;
  const rule = (name, height) => `<line class="${name}" x1="${left}" x2="${right}" y1="${height}" y2="${height}"/>`;
  const rows = low == null ? [] : roundSteps(low, high, 4).map(value =>
    rule('rule', y(value)) + text(left - size / 2, y(value) + size / 3, 'end', value));
  const places = roundSteps(0, Math.max(n, 1), Math.max(2, Math.floor((right - left) / size / 9)));
  const below = bottom + 1.3 * size, free = places.filter(place => x(place) < right - 10 * size);
  const columns = free.map(place => text(x(place), below, 'middle', place));
  return rows.join('') + columns.join('') + text(right, below, 'end', `inner iterations: ${n}`) + rule('axis', bottom);
}

// Draw a plot into its svg, or `empty`, a text; returns the scales, for the cursor and the mouse
function drawPlot(svg, curves, n, empty) {
  const width = svg.clientWidth || 400, height = svg.clientHeight || 120;
  const size = parseFloat(getComputedStyle(svg).fontSize);
  const scales = plotScales(curves, n, width, height, size), words = scales.low == null ? empty : '';
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.innerHTML = axesElement(scales, n, size) + curves.map(curve => curveElement(curve, scales)).join('') + `
    <text x="${width / 2}" y="${height / 2}" text-anchor="middle">${words}</text>
    <line class="cursor" y1="${scales.top}" y2="${scales.bottom}"/>`;
  return scales;
}

// The value of a curve at a place: that of the last point up to there, if there is one
function valueAt([xs, ys], place) {
  return ys[xs.findLastIndex(x => x <= place)];
}

// A legend with the values at `place`: a piece of each line, its name, its value
function plotLegend(element, curves, place) {
  element.replaceChildren(...curves.map(({name, points, colour, width, opacity, dash}) => {
    const entry = document.createElement('span'), value = valueAt(points, place);
    const line = `<line x1="1" x2="23" y1="5" y2="5" stroke="${colour}" stroke-width="${width + .6}"`;
    entry.innerHTML = `<svg width="24" height="10" aria-hidden="true">${line}
      stroke-opacity="${opacity}" stroke-dasharray="${dash}"/></svg> `;
    entry.append(name, Number.isFinite(value) ? ` ${Number(value.toPrecision(3))}` : '');
    return entry;
  }));
}
