// A run as a page: `render` is called by anywidget, or by `start` (run_replay.js) in a file of its own. Follows the
// other files that begin with run_.

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
  model.send({kind: 'hello'});   // what changed while this page was being loaded
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
