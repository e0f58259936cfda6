// Decides from what each subscriber got, and what publishers were told, whether anything was lost, doubled or reordered.

/** What one subscriber got: publications, and the moments at which it was told that something may be missing. */
export class Witness {
  publications = [];
  /** Indexes into `publications`: what is missing between the one before and the one at it was told. */
  told = [];
  epoch = '';
  lastAt = 0;
  stall = 0;

  constructor(name, channel) {
    this.name = name;
    this.channel = channel;
  }

  take({ p, n }, offset, at) {
    this.publications.push({ p, n, offset, epoch: this.epoch });
    if (this.lastAt) this.stall = Math.max(this.stall, at - this.lastAt);
    this.lastAt = at;
  }

  tell() {
    this.told.push(this.publications.length);
  }
}

/** For one publisher's numbers as a witness got them: those which it was told that it may have missed. */
export function excused(witness, p, highest) {
  const numbers = new Set();
  for (const at of witness.told) {
    const before = witness.publications.slice(0, at).filter((got) => got.p === p);
    const after = witness.publications.slice(at).find((got) => got.p === p);
    const from = before.reduce((most, got) => Math.max(most, got.n), 0);
    for (let n = from + 1; n < (after?.n ?? highest + 1); n += 1) numbers.add(n);
  }
  return numbers;
}

/**
 * `acknowledged` holds per publisher `{channel, done: Map(n → {offset, epoch})}`; a number that is not in it may have been
 * published once or not at all. Gives the counts, and up to ten of what was found in words.
 */
export function check(witnesses, acknowledged) {
  const result = { lost: 0, doubled: 0, reordered: 0, misplaced: 0, told: 0, delivered: 0, faults: [] };
  const places = new Map();
  const fault = (kind, text) => {
    result[kind] += 1;
    if (result.faults.length < 10) result.faults.push(`${kind}: ${text}`);
  };
  // Every subscriber of a channel sees the same publication at an offset of an epoch: the one acknowledged with it.
  const place = (channel, { epoch, offset, p, n }, who) => {
    const key = `${channel} ${epoch} ${offset}`;
    const there = places.get(key);
    if (there === undefined) places.set(key, `${p}:${n}`);
    else if (there !== `${p}:${n}`) fault('misplaced', `${who}: ${key} is ${p}:${n} and ${there}`);
  };
  acknowledged.forEach(({ channel, done }, p) => {
    for (const [n, position] of done) place(channel, { ...position, p, n }, `publisher ${p}`);
  });
  for (const witness of witnesses) {
    const { name, channel } = witness;
    result.told += witness.told.length;
    result.delivered += witness.publications.length;
    const seen = new Map();
    const last = new Map();
    let position = { epoch: '', offset: 0 };
    for (const [index, got] of witness.publications.entries()) {
      const numbers = seen.get(got.p) ?? seen.set(got.p, new Map()).get(got.p);
      const before = numbers.get(got.n);
      // What was delivered and then lost with its stream is published again; subscribers were told that it is another one.
      const again = before && before.epoch !== got.epoch && witness.told.some((at) => at > before.index && at <= index);
      if (before && !again) fault('doubled', `${name}: ${got.p}:${got.n} at ${got.offset}`);
      else if (again) last.set(got.p, got.n);
      else if (got.n < (last.get(got.p) ?? 0)) fault('reordered', `${name}: ${got.p}:${got.n} after ${last.get(got.p)}`);
      else if (got.epoch === position.epoch && got.offset <= position.offset)
        fault('reordered', `${name}: offset ${got.offset} after ${position.offset}`);
      numbers.set(got.n, { index, epoch: got.epoch });
      last.set(got.p, Math.max(got.n, last.get(got.p) ?? 0));
      position = got;
      place(channel, got, name);
    }
    acknowledged.forEach((publisher, p) => {
      if (publisher.channel !== channel) return;
      const numbers = seen.get(p) ?? new Map();
      const missing = [...publisher.done.keys()].filter((n) => !numbers.has(n));
      if (!missing.length) return;
      const known = excused(witness, p, Math.max(...publisher.done.keys()));
      for (const n of missing) if (!known.has(n)) fault('lost', `${name}: ${p}:${n}, acknowledged at ${publisher.done.get(n).offset}`);
    });
  }
  return result;
}
