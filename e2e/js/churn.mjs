// 200 connections subscribe, lose their connection at random and come back, while three publishers go on for 60 s, on a slow machine
// until there were enough returns: each subscriber's sequence is complete, without doubles and in order.
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
const LONGEST = 2.5; // times the seconds
const AWAY_MS = 1000; // how long nobody gets in, now and then

/** Numbers whose publish ended without an answer, by publisher: they may have been published or not. */
const uncertain = Array.from({ length: PUBLISHERS }, () => new Set());
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Keeps what one subscriber got as one counter per publisher: memory stays flat, and the first fault is kept. */
class Sequence {
  last = new Array(PUBLISHERS).fill(0);
  offset = 0;
  fault = null;

  take({ p, n }, offset) {
    let next = this.last[p] + 1;
    while (next < n && uncertain[p].has(next)) next += 1;
    if (!this.fault && n !== next) this.fault = `publisher ${p}: ${n} after ${this.last[p]}`;
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

/** Publishes until it is `over`; gives how many, and the last that was acknowledged. */
async function publish(p, channel, over) {
  const variant = p % 2 ? 'protobuf' : 'json';
  const client = await connect(variant, { endpoint: ws }); // not through the proxy: each number is sent once
  let [n, last] = [0, 0];
  while (!over()) {
    n += 1;
    try {
      await client.publish(channel, encode(variant, { p, n }));
      last = n;
    } catch (error) {
      if (error.code >= 100) throw new Error(`publish: ${error.code} ${error.message}`); // the server's answer
      uncertain[p].add(n); // the connection was lost: a process that stood still answers no ping
    }
    await pause(PAUSE_MS);
  }
  return { n, last };
}

/** Cuts a few connections at a time, in turn between two writes and within one, and sometimes keeps them out a while. */
async function breakConnections(over) {
  let cuts = 0;
  for (let turn = 1; !over(); turn += 1) {
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

  const enough = (CONNECTIONS * SECONDS) / 20;
  const returned = () => subscribers.reduce((sum, { client }) => sum + all(client.log, 'connected').length - 1, 0);
  const begin = Date.now();
  const over = () => {
    const seconds = (Date.now() - begin) / 1000;
    return seconds > SECONDS && (seconds > LONGEST * SECONDS || returned() > enough);
  };
  const [cuts, ...sent] = await Promise.all([
    breakConnections(over),
    ...Array.from({ length: PUBLISHERS }, (_, p) => publish(p, channel, over)),
  ]);

  const behind = () => subscribers.filter(({ sequence }) => sequence.last.some((n, p) => n < sent[p].last));
  await until(() => `the last publications; ${behind().length} subscribers wait`, () => !behind().length, 90).catch(
    (error) => {
      const fault = subscribers.find(({ sequence }) => sequence.fault);
      throw fault ? new Error(`${fault.client.variant}: ${fault.sequence.fault}`) : error;
    },
  );
  const faults = subscribers.filter(({ sequence }) => sequence.fault);
  assert.deepEqual(faults.map(({ client, sequence }) => `${client.variant}: ${sequence.fault}`), []);

  const returns = returned();
  const recovered = subscribers.flatMap(({ sub }) => all(sub.log, 'subscribed').slice(1));
  assert.ok(recovered.every((context) => context.recovered), 'somebody was told that recovery failed');
  assert.ok(returns > enough, `only ${returns} returns: too few to say anything`);
  const total = sent.reduce((sum, { n }) => sum + n, 0);
  const unanswered = uncertain.reduce((sum, { size }) => sum + size, 0);
  assert.ok(unanswered < total / 20, `${unanswered} of ${total} publications had no answer`);
  console.log(`      ${total} publications (${unanswered} unanswered) × ${CONNECTIONS} subscribers, ${cuts} cuts, ${returns} returns`);
}, { seconds: LONGEST * SECONDS + 150 });

await runCases('', '', closeAll);
