// The released JavaScript SDK in headless Chromium, on the page that `plenum serve --dev` shows at `/`.

import assert from 'node:assert/strict';
import { runCases, test, until } from './cases.mjs';
import { network, proxyUrl, requireTool, unique, url } from './plenum.mjs';

const { chromium } = requireTool('playwright-core');
const SWITCHES = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

// Each launch makes a fresh profile folder and removes it.
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: SWITCHES,
  timeout: 120_000, // the first start on a busy machine takes long
});
const windows = [];

/** A window on the page in a browser context of its own; `complaints` collects what its console reports as errors. */
async function openWindow(address = url) {
  const context = await browser.newContext();
  const page = await context.newPage();
  const window = { page, context, complaints: [] };
  page.on('pageerror', (error) => window.complaints.push(String(error)));
  await page.goto(`${address}/`);
  windows.push(window);
  await status(window, 'connected');
  return window;
}

async function closeWindows() {
  for (const { context } of windows.splice(0)) await context.close();
  await network('accept');
}

const text = ({ page }, selector) => page.locator(selector).innerText();
const lines = ({ page }, selector = '#messages li') => page.locator(selector).allInnerTexts();
const status = (window, wanted) => until(`status "${wanted}"`, async () => (await text(window, '#status')) === wanted, 20);

/** Types a message and waits until the writer itself sees it. */
async function write(window, message) {
  await window.page.locator('#input').fill(message);
  await window.page.locator('#send').click();
  await until(`"${message}" on the writer's page`, async () => (await seen(window, message)) === 1);
}

const seen = async (window, message) => (await lines(window)).filter((line) => line.endsWith(`: ${message}`)).length;

/** The messages with this prefix, in the order of the page, without who wrote them. */
const withPrefix = async (window, prefix) =>
  (await lines(window)).map((line) => line.slice(line.indexOf(': ') + 2)).filter((line) => line.startsWith(prefix));

async function writeMany(window, prefix, count) {
  const messages = Array.from({ length: count }, (_, i) => `${prefix} ${i + 1}`);
  for (const message of messages) await write(window, message);
  return messages;
}

const present = (window) => window.page.locator('#presence li').count();

test('the page connects and its console stays clean', async () => {
  const window = await openWindow();
  assert.equal(await window.page.title(), 'Plenum');
  assert.deepEqual(window.complaints, []);
});

test('two windows exchange messages', async () => {
  const [one, two] = [await openWindow(), await openWindow()];
  const prefix = unique('talk');
  await write(one, `${prefix} from one`);
  await write(two, `${prefix} from two`);
  for (const window of [one, two]) {
    await until('both messages', async () => (await withPrefix(window, prefix)).length === 2);
    assert.deepEqual(await withPrefix(window, prefix), [`${prefix} from one`, `${prefix} from two`]);
  }
});

test('a message is shown as text, never as markup', async () => {
  const window = await openWindow();
  const message = `<img src=x onerror="document.title='broken'">${unique('')}`;
  await write(window, message);
  assert.equal(await window.page.title(), 'Plenum');
  assert.equal(await window.page.locator('#messages img').count(), 0);
});

test('each window sees who is present, and who has gone', async () => {
  const one = await openWindow();
  await until('one present', async () => (await present(one)) === 1);
  const two = await openWindow();
  await until('two present', async () => (await present(one)) === 2 && (await present(two)) === 2);
  await two.context.close();
  await until('one present again', async () => (await present(one)) === 1);
});

test('a window that goes offline recovers what it missed', async () => {
  const [one, two] = [await openWindow(), await openWindow()];
  const prefix = unique('missed');
  const first = await writeMany(one, prefix, 2);
  await until('the first messages', async () => (await withPrefix(two, prefix)).length === 2);
  await two.page.locator('#offline').click();
  await status(two, 'offline');
  const missed = await writeMany(one, `${prefix} later`, 30);
  assert.equal((await withPrefix(two, prefix)).length, 2);
  await two.page.locator('#offline').click();
  await status(two, 'connected');
  await until('what was missed', async () => (await withPrefix(two, prefix)).length >= 32);
  await until('the count of recovered messages', async () => (await text(two, '#recovered')) === '30');
  await write(one, `${prefix} live`);
  await until('a live message', async () => (await seen(two, `${prefix} live`)) === 1);
  assert.deepEqual(await withPrefix(two, prefix), [...first, ...missed, `${prefix} live`]);
});

test('a window whose network is cut recovers what it missed', async () => {
  const [one, two] = [await openWindow(), await openWindow(proxyUrl)];
  const prefix = unique('cut');
  await network('refuse');
  assert.ok((await network('cut')).cut > 0, 'nothing was cut');
  await status(two, 'connecting');
  const missed = await writeMany(one, prefix, 10);
  await network('accept');
  await status(two, 'connected');
  await until('what was missed', async () => (await withPrefix(two, prefix)).length >= 10);
  assert.deepEqual(await withPrefix(two, prefix), missed);
});

test('a browser that reports itself offline comes back and recovers', async () => {
  const [one, two] = [await openWindow(), await openWindow()];
  const prefix = unique('plane');
  await two.context.setOffline(true);
  await until('the loss of the connection', async () => (await text(two, '#status')) !== 'connected', 20);
  const missed = await writeMany(one, prefix, 5);
  await two.context.setOffline(false);
  await status(two, 'connected');
  await until('what was missed', async () => (await withPrefix(two, prefix)).length >= 5);
  assert.deepEqual(await withPrefix(two, prefix), missed);
});

await runCases('', process.argv[2] ?? '', closeWindows, () => browser.close());
