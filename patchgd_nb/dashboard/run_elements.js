// The elements of a run's page, and how they look.

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
  & .alert { padding: 3px 8px; border: 2px solid #d42a2a; border-radius: 4px; margin-top: 4px; }
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
    <div class="alert" role="alert" hidden></div>
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
