// Texts, buttons and settings of a run's page, and the picture that it saves.

// ---- texts and controls ----

function showStatus(page) {
  const {find, model} = page, status = model.get('status') || {}, {live} = model.get('about'), text = find('.status');
  const over = ENDED.includes(status.state), paused = status.state == 'paused';
  if (text.textContent != status.text) text.textContent = text.title = status.text || '';
  text.dataset.state = status.state;
  text.classList.toggle('whole', ['failed', 'lost'].includes(status.state));
  if (find('.alert').textContent != (status.alert || '')) find('.alert').textContent = status.alert || '';
  find('.alert').hidden = !status.alert;
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
      `${memory.name} ${memory.used.toFixed(1)} of ${Number(memory.budget.toPrecision(3))} GiB, ` +
      `peak ${memory.peak.toFixed(1)}`,
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
