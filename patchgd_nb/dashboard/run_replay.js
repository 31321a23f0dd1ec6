// A run in one file: an object that stands in for the kernel. It has the methods of a model that the page uses, and
// answers the page's questions from data that are embedded in the file.

function bytesOf(base64) {
  const all = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return new DataView(all.buffer);
}

async function inflate(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new DataView(await new Response(stream).arrayBuffer());
}

// The colours' numbers, from base64
function embeddedColours({channels, mean, basis, scale}) {
  return mean ? {channels, mean: bytesOf(mean), basis: bytesOf(basis), scale: bytesOf(scale)} : {};
}

// The answer to a message of the page: [message, buffers], or null
async function replayAnswer(data, frames, {kind, id, name}) {
  if (kind == 'want' && frames.has(id)) {
    const {head, data: packed} = frames.get(id);
    return [{kind: 'frame', head}, [await inflate(bytesOf(packed))]];
  }
  if (kind == 'picture') return [{kind, name}, data.pictures[name] ? [bytesOf(data.pictures[name])] : []];
  return null;
}

// A model for `render`, made of the embedded data
function replayModel(data) {
  const frames = new Map(data.frames.map(frame => [frame.head.id, frame])), listeners = [];
  const traits = {...data, colours: embeddedColours(data.colours || {}), frame: {}};
  async function send(message) {
    const answer = await replayAnswer(data, frames, message);
    if (answer) for (const listener of listeners) listener(...answer);
  }
  function on(event, listener) {
    if (event == 'msg:custom') listeners.push(listener);   // nothing else ever changes
  }
  return {get: name => traits[name], on, send, save_changes() {}};
}

// Draw the run that this page holds
function start() {
  const data = JSON.parse(document.getElementById('run').textContent);
  render({model: replayModel(data), el: document.querySelector('.run')});
}
