// What a client missed while its connection was gone.

import assert from 'node:assert/strict';
import { test, until } from '../cases.mjs';
import { all, connect, encode, event, subscribe } from '../clients.mjs';
import { api, keptLog, network, publishMany, unique } from '../plenum.mjs';
import { variant } from './variant.mjs';

const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => from + i);

/** Takes the network away from everybody behind the proxy until `during` is done. */
async function offline(client, during) {
  const before = all(client.log, 'connected').length;
  assert.ok(before > 0, 'it was never connected');
  await network('refuse');
  const { cut } = await network('cut');
  assert.ok(cut > 0, 'nothing was cut');
  await until('the loss of the connection', () => client.state !== 'connected');
  await during();
  await network('accept');
  await until('the return', () => all(client.log, 'connected').length > before, 30);
}

const resubscribed = async (sub, times = 2) => {
  await until(`${times} times subscribed`, () => all(sub.log, 'subscribed').length >= times, 30);
  return all(sub.log, 'subscribed')[times - 1];
};

const received = (sub) => sub.values().map((value) => value.n);

/** Waits for `count` publications and compares once, so that a failure shows where they differ. */
async function complete(sub, from, to, seconds = 30) {
  const wanted = numbers(from, to);
  await until(
    () => `${wanted.length} publications; ${sub.values().length} came`,
    () => sub.values().length >= wanted.length,
    seconds,
  );
  const got = received(sub);
  const differs = got.findIndex((n, i) => n !== wanted[i]);
  assert.equal(differs, -1, `at index ${differs}: ${got.slice(Math.max(0, differs - 3), differs + 4)}`);
  assert.equal(got.length, wanted.length, 'doubled at the end');
}

test('recovery of a few publications', async () => {
  const channel = unique('chat:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 5);
  await complete(sub, 1, 5);
  await offline(client, () => publishMany(channel, 6, 5));
  const { wasRecovering, recovered } = await resubscribed(sub);
  assert.deepEqual([wasRecovering, recovered], [true, true]);
  await publishMany(channel, 11, 5);
  await complete(sub, 1, 15);
});

test('recovery when nothing was missed', async () => {
  const channel = unique('chat:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await offline(client, async () => {});
  const { recovered, hasRecoveredPublications } = await resubscribed(sub);
  assert.deepEqual([recovered, hasRecoveredPublications], [true, false]);
  await publishMany(channel, 1, 1);
  await complete(sub, 1, 1);
});

test('recovery of 10,000 publications', async () => {
  const channel = unique('deep:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 3);
  await complete(sub, 1, 3);
  await offline(client, () => publishMany(channel, 4, 10_000));
  assert.equal((await resubscribed(sub)).recovered, true);
  await publishMany(channel, 10_004, 3);
  await complete(sub, 1, 10_006);
});

// A batch of the server API publishes one after the other, which takes its time through a log with copies.
const vast = keptLog ? 20_000 : 100_000;

test(`recovery of ${vast.toLocaleString('en')} publications`, async () => {
  const channel = unique('vast:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 1);
  await complete(sub, 1, 1);
  await offline(client, () => publishMany(channel, 2, vast));
  assert.equal((await resubscribed(sub)).recovered, true);
  await publishMany(channel, vast + 2, 3);
  await complete(sub, 1, vast + 4, 60);
});

test('recovery of 10,000 publications while others go on publishing', async () => {
  const channel = unique('deep:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 1);
  await complete(sub, 1, 1);
  let last = 10_001;
  let going = true;
  let live;
  try {
    await offline(client, async () => {
      await publishMany(channel, 2, 10_000);
      live = (async () => {
        while (going) {
          await publishMany(channel, last + 1, 1);
          last += 1;
        }
      })();
      live.catch(() => {}); // it may fail before it is awaited
    });
    assert.equal((await resubscribed(sub)).recovered, true);
    const seen = last;
    await Promise.race([until('live publications after the return', () => last > seen + 50, 30), live]);
  } finally {
    going = false;
  }
  await live;
  await complete(sub, 1, last);
});

test('recovery when the connection breaks in the middle of a frame, again and again', async () => {
  const channel = unique('deep:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  for (let round = 0; round < 8; round += 1) {
    const before = all(client.log, 'connected').length;
    const first = round * 500 + 1;
    const { cut } = await network(`cut?after=${1000 + 777 * round}`);
    assert.ok(cut > 0, 'nothing to cut');
    await publishMany(channel, first, 500);
    await until('the return after a cut', () => all(client.log, 'connected').length > before);
  }
  await complete(sub, 1, 4000);
  assert.ok(all(sub.log, 'subscribed').every((e, i) => i === 0 || e.recovered));
});

test('recovery that is itself cut in the middle', async () => {
  const channel = unique('deep:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 1);
  await complete(sub, 1, 1);
  await offline(client, () => publishMany(channel, 2, 10_000));
  await until('some of what was missed', () => sub.values().length > 1);
  await network('cut?after=20000');
  await publishMany(channel, 10_002, 10);
  await complete(sub, 1, 10_011);
});

test('history_size publications missed: recovered; one more: not, and told so', async () => {
  for (const [missed, recovered] of [[10, true], [11, false]]) {
    const channel = unique('small:');
    const client = await connect(variant);
    const sub = await subscribe(client, channel);
    await publishMany(channel, 1, 1);
    await complete(sub, 1, 1);
    await offline(client, () => publishMany(channel, 2, missed));
    const context = await resubscribed(sub);
    assert.deepEqual([context.wasRecovering, context.recovered], [true, recovered], `${missed} missed`);
    await publishMany(channel, 100, 1);
    await event(sub.log, 'publication', () => received(sub).includes(100));
    if (recovered) assert.deepEqual(received(sub), [...numbers(1, 11), 100]);
  }
});

test('recovery in mode cache gives the latest publication only', async () => {
  const channel = unique('latest:');
  const client = await connect(variant);
  await publishMany(channel, 1, 3);
  const sub = await subscribe(client, channel, { since: { offset: 0, epoch: '' } });
  await complete(sub, 3, 3);
  await offline(client, () => publishMany(channel, 4, 5));
  assert.equal((await resubscribed(sub)).recovered, true);
  await until('the latest', () => received(sub).includes(8));
  assert.deepEqual(received(sub), [3, 8]);
});

test('history removed while away: not recovered', async () => {
  const channel = unique('chat:');
  const client = await connect(variant);
  const sub = await subscribe(client, channel);
  await publishMany(channel, 1, 2);
  await complete(sub, 1, 2);
  await offline(client, async () => {
    await publishMany(channel, 3, 2);
    await api('history_remove', { channel });
  });
  assert.equal((await resubscribed(sub)).recovered, false);
});

test('a subscription that starts from a known position gets what follows it', async () => {
  const channel = unique('chat:');
  const first = await subscribe(await connect(variant), channel);
  await publishMany(channel, 1, 10);
  const { publications, epoch } = await first.history({ limit: 4 });
  const since = { offset: publications.at(-1).offset, epoch };
  const late = await subscribe(await connect(variant), channel, { since });
  await complete(late, 5, 10);
});

test("a client's own publications survive a cut in the middle of them", async () => {
  const channel = unique('deep:');
  const reader = await subscribe(await connect(variant), channel);
  const writer = await connect(variant);
  let acknowledged = 0;
  for (let n = 1; n <= 200; n += 1) {
    if (n % 50 === 0) await network('cut');
    // An unacknowledged publication may have been stored or not: it is sent under a new number only.
    const done = await writer.publish(channel, encode(variant, { n })).then(() => true, () => false);
    if (done) acknowledged += 1;
    else await until('the writer', () => writer.state === 'connected');
  }
  assert.ok(acknowledged >= 150, `only ${acknowledged} of 200 acknowledged`);
  await publishMany(channel, 1000, 1);
  await until('the last', () => received(reader).includes(1000), 30);
  const got = received(reader);
  assert.deepEqual(got, [...new Set(got)].sort((a, b) => a - b), 'doubled or out of order');
  assert.ok(got.length >= acknowledged + 1, `${acknowledged} acknowledged, ${got.length} arrived`);
});
