// Which build of the SDK this process tests.

export const variant = process.argv[2];
if (variant !== 'json' && variant !== 'protobuf') throw new Error('usage: suite.mjs json|protobuf [filter]');
