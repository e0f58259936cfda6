// 200 connections subscribe, lose their connection at random and come back, while three publishers go on for 60 s:
// each subscriber's sequence is complete, without doubles and in order.
//
//   node e2e/js/churn.mjs [seconds] [connections]

import assert from 'node:assert/strict';
import { runCases, test, until } from './cases.mjs';
import { all, closeAll, connect, decode, encode, subscribe } from './clients.mjs';
import { network, unique, ws } from './plenum.mjs';

const SECONDS = Number(process.argv[2] ?? 60);
const CONNECTIONS = Number(process.argv[3] ?? 200);
const PUBLISHERS = 3;
const PAUSE_MS = 50; // between two publications of one publisher
const CUT_EVERY_MS = 400;
const SHARE = 0.05; // of the connections, at each cut
const AWAY_MS = 1000; // how long nobody gets in, now and then

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Keeps what one subscriber got as one counter per publisher: memory stays flat, and the first fault is kept. */
class Sequence {
  last = new Array(PUBLISHERS).fill(0);
  offset = 0;
  fault = null;

  take({ p, n }, offset) {
    if (!this.fault && n !== this.last[p] + 1) this.fault = `publisher ${p}: ${n} after ${this.last[p]}`;
    if (!this.fault && offset <= this.offset) this.fault = `offset ${offset} after ${this.offset}`;
    this.last[p] = n;
    this.offset = offset;
  }
}

async function subscriber(variant, channel) {
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  const sequence = new Sequence();
  sub.removeAllListeners('publication');
  sub.on('publication', (p) => sequence.take(decode(variant, p.data), p.offset));
  return { client, sub, sequence };
}

async function publish(p, channel, end) {
  const variant = p % 2 ? 'protobuf' : 'json';
  const client = await connect(variant, { endpoint: ws }); // not through the proxy: each number is sent once
  let n = 0;
  while (Date.now() < end) {
    n += 1;
    await client.publish(channel, encode(variant, { p, n }));
    await pause(PAUSE_MS);
  }
  return n;
}

/** Cuts a few connections at a time, in turn between two writes and within one, and sometimes keeps them out a while. */
async function breakConnections(end) {
  let cuts = 0;
  for (let turn = 1; Date.now() < end; turn += 1) {
    await pause(CUT_EVERY_MS);
    const away = turn % 10 === 0;
    if (away) await network('refuse');
    cuts += (await network(`cut?share=${away ? 4 * SHARE : SHARE}${turn % 3 ? '' : '&after=500'}`)).cut;
    if (away) {
      await pause(AWAY_MS);
      await network('accept');
    }
  }
  return cuts;
}

test(`${CONNECTIONS} connections come and go for ${SECONDS} s`, async () => {
  const channel = unique('deep:');
  const subscribers = [];
  while (subscribers.length < CONNECTIONS) {
    const next = Array.from({ length: Math.min(20, CONNECTIONS - subscribers.length) }, (_, i) =>
      subscriber(i % 2 ? 'protobuf' : 'json', channel),
    );
    subscribers.push(...(await Promise.all(next)));
  }
  assert.ok(subscribers.every(({ sub }) => sub.state === 'subscribed'));

  const end = Date.now() + SECONDS * 1000;
  const [cuts, ...sent] = await Promise.all([
    breakConnections(end),
    ...Array.from({ length: PUBLISHERS }, (_, p) => publish(p, channel, end)),
  ]);

  const behind = () => subscribers.filter(({ sequence }) => sequence.last.some((n, p) => n < sent[p]));
  await until(() => `the last publications; ${behind().length} subscribers wait`, () => !behind().length, 30).catch(
    (error) => {
      const fault = subscribers.find(({ sequence }) => sequence.fault);
      throw fault ? new Error(`${fault.client.variant}: ${fault.sequence.fault}`) : error;
    },
  );
  const faults = subscribers.filter(({ sequence }) => sequence.fault);
  assert.deepEqual(faults.map(({ client, sequence }) => `${client.variant}: ${sequence.fault}`), []);

  const returns = subscribers.reduce((sum, { client }) => sum + all(client.log, 'connected').length - 1, 0);
  const recovered = subscribers.flatMap(({ sub }) => all(sub.log, 'subscribed').slice(1));
  assert.ok(recovered.every((context) => context.recovered), 'somebody was told that recovery failed');
  assert.ok(returns > (CONNECTIONS * SECONDS) / 20, `only ${returns} returns: too few to say anything`);
  const total = sent.reduce((a, b) => a + b, 0);
  console.log(`      ${total} publications × ${CONNECTIONS} subscribers, ${cuts} cuts, ${returns} returns`);
});

await runCases('', '', closeAll);
