// The JavaScript SDK in Node: node e2e/js/suite.mjs json|protobuf [filter]

import { runCases } from './cases.mjs';
import { closeAll } from './clients.mjs';
import { network } from './plenum.mjs';
import './sdk/connection.mjs';
import './sdk/channels.mjs';
import './sdk/recovery.mjs';
import './sdk/server-side.mjs';
import { variant } from './sdk/variant.mjs';

await runCases(variant, process.argv[3] ?? '', async () => {
  await closeAll();
  await network('accept');
});
