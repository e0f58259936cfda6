'use strict';

// Two windows of this page talk through one channel. Going offline cuts the connection; coming back recovers from the
// channel's history what was missed meanwhile.

// What follows # stays in the browser: `#token=…&channel=chat:lobby` for a server that wants tokens.
const given = new URLSearchParams(location.hash.slice(1));
const CHANNEL = given.get('channel') || 'demo:lobby';
const MAX_LINES = 2000;

const element = (id) => document.getElementById(id);
const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
const centrifuge = new Centrifuge(`${scheme}://${location.host}/connection/websocket`, {
  name: 'page',
  token: given.get('token') || '',
  minReconnectDelay: 100,
  maxReconnectDelay: 5000,
});
const subscription = centrifuge.newSubscription(CHANNEL, { recoverable: true, joinLeave: true });

const present = new Set();
let self = '';
let offline = false;
let recovered = 0;
// Offset up to which publications were missed rather than live; null when nothing is being recovered. A long recovery
// arrives in several pieces, so the subscribe reply alone does not tell.
let missedUpTo = null;

function label(client) {
  const short = client.slice(0, 8);
  return client === self ? `${short} (this window)` : short;
}

function notice(text) {
  element('notice').textContent = text;
}

function setStatus(text) {
  element('status').textContent = offline ? 'offline' : text;
}

function setRecovered(count) {
  recovered = count;
  element('recovered').textContent = String(count);
}

function show(publication, missed) {
  const line = document.createElement('li');
  const who = document.createElement('b');
  const { data, info, offset } = publication;
  who.textContent = `${info ? label(info.client) : 'server'}: `;
  line.append(who, typeof data?.text === 'string' ? data.text : JSON.stringify(data));
  line.dataset.offset = String(offset ?? '');
  line.classList.toggle('recovered', missed);
  const list = element('messages');
  list.append(line);
  while (list.childElementCount > MAX_LINES) list.firstElementChild.remove();
  list.scrollTop = list.scrollHeight;
}

function showPresence() {
  const lines = [...present].sort().map((client) => {
    const line = document.createElement('li');
    line.dataset.client = client;
    line.textContent = label(client);
    return line;
  });
  element('presence').replaceChildren(...lines);
}

async function readPresence() {
  const { clients } = await subscription.presence();
  present.clear();
  Object.keys(clients).forEach((client) => present.add(client));
  showPresence();
}

// Finds where the channel stood when we came back: what lies up to there was missed, what follows is live.
async function countMissed() {
  missedUpTo = Infinity;
  const { offset } = await subscription.history({ limit: 0 });
  missedUpTo = offset;
  for (const line of document.querySelectorAll('#messages li.recovered')) {
    if (Number(line.dataset.offset) > offset) {
      line.classList.remove('recovered');
      setRecovered(recovered - 1);
    }
  }
}

centrifuge.on('connecting', () => setStatus('connecting'));
centrifuge.on('connected', (context) => {
  self = context.client;
  setStatus('connected');
});
centrifuge.on('disconnected', (context) => {
  setStatus('disconnected');
  const hint = given.has('token') ? '' : ' (does this server want a token? Put #token=…&channel=… behind the address)';
  if (!offline) notice(`${context.code} ${context.reason}${hint}`);
});

subscription.on('subscribed', (context) => {
  const failed = (error) => notice(error.message);
  readPresence().catch(failed);
  if (context.wasRecovering && context.recovered) {
    setRecovered(0);
    countMissed().catch(failed);
  } else {
    missedUpTo = null;
  }
  notice(context.wasRecovering && !context.recovered ? 'Too much was missed: the oldest messages are gone.' : '');
});
subscription.on('publication', (publication) => {
  const missed = missedUpTo !== null && publication.offset <= missedUpTo;
  if (missed) setRecovered(recovered + 1);
  show(publication, missed);
});
subscription.on('join', ({ info }) => {
  present.add(info.client);
  showPresence();
});
subscription.on('leave', ({ info }) => {
  present.delete(info.client);
  showPresence();
});
subscription.on('error', ({ error }) => notice(error.message));

element('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const input = element('input');
  const text = input.value.trim();
  if (text === '') return;
  try {
    await subscription.publish({ text });
    if (input.value.trim() === text) input.value = '';
  } catch (error) {
    notice(`not sent: ${error.message}`);
  }
});

element('offline').addEventListener('click', () => {
  offline = !offline;
  const button = element('offline');
  button.textContent = offline ? 'Go online' : 'Go offline';
  button.setAttribute('aria-pressed', String(offline));
  element('send').disabled = offline;
  if (offline) {
    centrifuge.disconnect();
    present.clear();
    showPresence();
    setStatus('offline');
  } else {
    centrifuge.connect();
  }
});

window.addEventListener('hashchange', () => location.reload());

element('channel').textContent = CHANNEL;
subscription.subscribe();
centrifuge.connect();
