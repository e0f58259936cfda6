// Named cases, run one after the other, counted, each with a deadline.

import { performance } from 'node:perf_hooks';

const CASE_SECONDS = 120;

const cases = [];

/**
 * Registers a case; `only` names the variants it runs in, when not in all; `skip` says why it cannot run here; `seconds` is its
 * deadline.
 */
export function test(name, body, { only, skip, seconds = CASE_SECONDS } = {}) {
  cases.push({ name, body, only, skip, seconds });
}

function deadline(promise, seconds) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Runs the registered cases whose name contains `filter`, prints a line each and the sum, and ends the process. */
export async function runCases(variant, filter, afterEach = async () => {}, atEnd = async () => {}) {
  const count = { passed: 0, failed: 0, skipped: 0 };
  for (const { name, body, only, skip, seconds } of cases) {
    if (!name.includes(filter) || (only && !only.includes(variant))) continue;
    if (skip) {
      count.skipped += 1;
      console.log(`skip  ${name}: ${skip}`);
      continue;
    }
    const begin = performance.now();
    let error;
    try {
      await deadline(Promise.resolve().then(body), seconds);
    } catch (thrown) {
      error = thrown;
    }
    await afterEach();
    const took = `${((performance.now() - begin) / 1000).toFixed(1)} s`;
    if (error) {
      count.failed += 1;
      console.log(`FAIL  ${name} (${took})\n      ${String(error.stack ?? error).split('\n').join('\n      ')}`);
    } else {
      count.passed += 1;
      console.log(`ok    ${name} (${took})`);
    }
  }
  await atEnd();
  console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
  process.exit(count.failed ? 1 : 0);
}

process.on('unhandledRejection', (reason) => {
  console.log('FAIL  unhandled rejection', reason);
  process.exit(1);
});

/** Waits until `condition` is true; says `what` was awaited when it is not within `seconds`. */
export async function until(what, condition, seconds = 15) {
  const end = performance.now() + seconds * 1000;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (performance.now() > end) {
      throw new Error(`waited ${seconds} s for ${typeof what === 'function' ? what() : what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
