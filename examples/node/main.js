#!/usr/bin/env node
// node main.js --address HOST:PORT --node SPIFFE-ID --identity DIR waves [--state S] [--store NAME] [--page-size N]
// node main.js --address HOST:PORT --node SPIFFE-ID --identity DIR watch WAVE
//
// Prints one JSON object a line. A refusal goes to stderr with its code and reason, and ends it with 1.

import { parseArgs } from "node:util";

import { OperatorClient, WavemeshError } from "./client.js";

const USAGE = "usage: main.js --address HOST:PORT --node SPIFFE-ID --identity DIR waves | watch WAVE";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: "string" },
    node: { type: "string" },
    identity: { type: "string" },
    protos: { type: "string" },
    state: { type: "string", multiple: true },
    store: { type: "string" },
    "page-size": { type: "string" },
    "deadline-ms": { type: "string" },
  },
});

const summary = ({ wave_id, state, release, counts }) => ({ wave_id, state, release, counts });

const commands = {
  waves: (client) =>
    client.list("ListWaves", "waves", {
      states: (values.state ?? []).map((name) => `WAVE_STATE_${name.toUpperCase()}`),
      store: values.store ?? "",
      page_size: Number(values["page-size"] ?? 0),
    }),
  watch: (client, waveId) => client.watchWave(waveId),
};

async function main() {
  const [name, ...rest] = positionals;
  const { address, node, identity, protos } = values;
  if (!address || !node || !identity || !(name in commands) || (name === "watch") !== (rest.length === 1)) {
    console.error(USAGE);
    return 2;
  }
  const deadlineMs = Number(values["deadline-ms"] ?? 20_000);
  const client = new OperatorClient({ address, node, identity, deadlineMs, ...(protos && { protos }) });
  try {
    for await (const wave of commands[name](client, ...rest)) console.log(JSON.stringify(summary(wave)));
    return 0;
  } catch (error) {
    if (!(error instanceof WavemeshError)) throw error;
    console.error(`${error.code} ${error.reason || "-"}: ${error.message}`);
    return 1;
  } finally {
    client.close();
  }
}

process.exitCode = await main();
