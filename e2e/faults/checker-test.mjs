// The checker notices what it is there for.

import assert from 'node:assert/strict';
import { Witness, check } from './checker.mjs';

const acknowledged = () => [{ channel: 'c', done: new Map([1, 2, 3, 4].map((n) => [n, { offset: n * 10, epoch: 'e' }])) }];

/** Counts for a subscriber that got these numbers (at their own offsets); `told` are indexes. */
function counts(numbers, told = [], offsets = numbers.map((n) => n * 10)) {
  const witness = new Witness('w', 'c');
  witness.epoch = 'e';
  numbers.forEach((n, i) => {
    if (told.includes(i)) witness.tell();
    witness.take({ p: 0, n }, offsets[i], i);
  });
  const { lost, doubled, reordered, misplaced } = check([witness], acknowledged());
  return [lost, doubled, reordered, misplaced];
}

assert.deepEqual(counts([1, 2, 3, 4]), [0, 0, 0, 0]);
assert.deepEqual(counts([1, 2, 4]), [1, 0, 0, 0], 'one lost');
assert.deepEqual(counts([1, 2, 3]), [1, 0, 0, 0], 'the last one lost');
assert.deepEqual(counts([1, 2, 2, 3, 4]), [0, 1, 0, 0], 'one doubled');
assert.deepEqual(counts([1, 3, 2, 4]), [0, 0, 1, 0], 'two reordered');
assert.deepEqual(counts([1, 4], [1]), [0, 0, 0, 0], 'lost, and told so');
assert.deepEqual(counts([1, 3, 4], [2]), [1, 0, 0, 0], 'told later of something else');
assert.deepEqual(counts([2, 3, 4], [1]), [1, 0, 0, 0], 'lost before it was told');
assert.deepEqual(counts([1, 2, 3, 4], [], [10, 20, 31, 40]), [0, 0, 0, 0], 'another offset than acknowledged holds no other');
assert.deepEqual(counts([1, 2, 3, 4], [], [10, 20, 25, 30]), [0, 0, 0, 1], 'the place of another');

/** Counts where the second half of the publications came in another epoch, told of or not. */
function afterRollback(told) {
  const witness = new Witness('w', 'c');
  const take = (epoch, list) => list.forEach(([n, offset]) => Object.assign(witness, { epoch }).take({ p: 0, n }, offset, n));
  take('e', [[1, 10], [2, 20], [3, 30]]);
  if (told) witness.tell();
  take('f', [[3, 100], [4, 110]]);
  const { lost, doubled, reordered, misplaced } = check([witness], acknowledged());
  return [lost, doubled, reordered, misplaced];
}

assert.deepEqual(afterRollback(true), [0, 0, 0, 0], 'published again in another epoch, and told so');
assert.deepEqual(afterRollback(false), [0, 1, 0, 0], 'published again in another epoch, and told nothing');
