// The page behind the chart's nginx in headless Chromium, in two windows: `node page.mjs URL`, with the token behind #. Ends with 0
// when a message that is written in one is read in the other, and neither reports an error.

import { createRequire } from 'node:module';

const { chromium } = createRequire(`${process.env.PLENUM_TOOLS}/node/`)('playwright-core');
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update'],
});
const complaints = [];
// What the browser says of every site that is no localhost and has no TLS.
const WITHOUT_TLS = /^The Cross-Origin-Opener-Policy header has been ignored/;
const LIMIT = { timeout: 60_000 };

async function open() {
  const page = await browser.newPage();
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (line) => line.type() === 'error' && !WITHOUT_TLS.test(line.text()) && complaints.push(line.text()));
  await page.goto(process.argv[2], LIMIT);
  await page.locator('#status', { hasText: /^connected$/ }).waitFor(LIMIT);
  return page;
}

const text = `written at ${Date.now()}`;
try {
  const [writer, reader] = [await open(), await open()];
  await writer.locator('#input').fill(text);
  await writer.locator('#send').click();
  await reader.locator('#messages li', { hasText: text }).waitFor(LIMIT);
} catch (error) {
  complaints.push(String(error));
}
await browser.close();
if (complaints.length > 0) {
  console.error(complaints.join('\n'));
  process.exit(1);
}
