// A client of OperatorService over mutual TLS, for control or a store hub.
//
// Every call has a deadline, its retries included. Repeated are only calls that change nothing, and only when the link
// is down or the node is busy: not before the node's hint (RetryInfo), plus full jitter.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const FORM = { longs: String, enums: String, defaults: true, keepCase: true };
const MAX_PAGES = 100_000;
const BACKOFF_BASE_MS = 200;
const BACKOFF_CAP_MS = 5_000;

const google = protoLoader.loadSync(join(HERE, "rpc.proto"), FORM);

// A refusal: the gRPC code's name, ErrorInfo's stable reason and what it is about, the node's hint when to return.
export class WavemeshError extends Error {
  constructor(failed) {
    super(failed.details || failed.message);
    this.name = "WavemeshError";
    this.code = grpc.status[failed.code] ?? "UNKNOWN";
    this.reason = "";
    this.details = {};
    this.retryAfterMs = 0;
    const [raw] = failed.metadata?.get("grpc-status-details-bin") ?? [];
    const status = raw ? google["google.rpc.Status"].deserialize(raw) : { details: [] };
    for (const detail of status.details) {
      const kind = detail.type_url.split("/").at(-1);
      if (kind === "google.rpc.ErrorInfo") {
        const info = google[kind].deserialize(detail.value);
        [this.reason, this.details] = [info.reason, info.metadata];
      } else if (kind === "google.rpc.RetryInfo") {
        const delay = google[kind].deserialize(detail.value).retry_delay;
        this.retryAfterMs = Number(delay?.seconds ?? 0) * 1000 + (delay?.nanos ?? 0) / 1e6;
      }
    }
  }

  get mayPass() {
    return ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"].includes(this.code);
  }

  // How long to wait before the next attempt, after so many failures.
  waitMs(failures) {
    return this.retryAfterMs + Math.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** failures);
  }
}

// "spiffe://acme/region/midwest/store/store-208" has the DNS name "store-208.midwest.storehub.acme" in its certificate.
export function dnsName(spiffeId) {
  const [, fleet, path] = /^spiffe:\/\/([^/]+)\/(.+)$/.exec(spiffeId) ?? [];
  if (!path) throw new Error(`${spiffeId}: not of the form spiffe://FLEET/PATH`);
  const parts = path.split("/");
  const role = { control: "control", "region/store": "storehub" }[parts.filter((_, at) => at % 2 === 0).join("/")];
  if (!role) throw new Error(`${spiffeId}: neither control nor a store hub; they alone serve operators`);
  return [...parts.filter((_, at) => at % 2 === 1).reverse(), role, fleet].join(".");
}

export class OperatorClient {
  // address "host:port"; node, the SPIFFE id that must answer there; identity, a directory with node.key, node.crt and
  // ca.crt; protos, the directory that contains wavemesh/v1.
  constructor({ address, node, identity, protos = join(HERE, "../../proto"), deadlineMs = 20_000 }) {
    const read = (name) => readFileSync(join(identity, name));
    const definition = protoLoader.loadSync("wavemesh/v1/operator.proto", { ...FORM, includeDirs: [protos] });
    const { OperatorService } = grpc.loadPackageDefinition(definition).wavemesh.v1;
    this.deadlineMs = deadlineMs;
    this.stub = new OperatorService(
      address,
      grpc.credentials.createSsl(read("ca.crt"), read("node.key"), read("node.crt")),
      {
        // Any node of the fleet has a certificate of its CA; only this one has this name.
        "grpc.ssl_target_name_override": dnsName(node),
        "grpc.keepalive_time_ms": 30_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.initial_reconnect_backoff_ms": BACKOFF_BASE_MS,
        "grpc.max_reconnect_backoff_ms": BACKOFF_CAP_MS,
      },
    );
  }

  close() {
    this.stub.close();
  }

  // One question, repeated within the deadline. It is for calls that change nothing.
  async ask(method, request) {
    const until = Date.now() + this.deadlineMs;
    for (let failures = 0; ; failures += 1) {
      const { error, answer } = await new Promise((resolve) => {
        this.stub[method](request, { deadline: until }, (error, answer) => resolve({ error, answer }));
      });
      if (!error) return answer;
      const failed = new WavemeshError(error);
      const wait = failed.waitMs(failures);
      if (!failed.mayPass || Date.now() + wait >= until) throw failed;
      await sleep(wait);
    }
  }

  // Entries of all pages of a list: for await (const wave of client.list("ListWaves", "waves", { page_size: 50 })).
  async *list(method, entries, request = {}) {
    let token = request.page_token ?? "";
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const answer = await this.ask(method, { ...request, page_token: token });
      yield* answer[entries];
      if (!answer.next_page_token) return;
      if (answer.next_page_token === token) break;
      token = answer.next_page_token;
    }
    throw new Error(`${method}: the pages of this list do not end`);
  }

  // The wave now and after every change until it is closed. A stream that breaks, or is ten minutes old, is opened
  // again; the wave then comes whole, and is passed over when it is as it was.
  async *watchWave(waveId, { patienceMs = 300_000, streamMs = 600_000 } = {}) {
    let last;
    let [heardAt, failures] = [Date.now(), 0];
    for (;;) {
      const stream = this.stub.WatchWave({ wave_id: waveId }, { deadline: Date.now() + streamMs });
      stream.on("error", () => {}); // what breaks the loop below is told there; what comes after it concerns nobody
      try {
        for await (const { wave } of stream) {
          [heardAt, failures] = [Date.now(), 0];
          if (!isDeepStrictEqual(wave, last)) {
            last = wave;
            yield wave;
          }
          heardAt = Date.now();
        }
        return;
      } catch (error) {
        if (error.code === undefined) throw error;
        const failed = new WavemeshError(error);
        const wait = failed.waitMs(failures);
        if (!failed.mayPass || Date.now() + wait >= heardAt + patienceMs) throw failed;
        failures += 1;
        await sleep(wait);
      } finally {
        stream.cancel();
      }
    }
  }
}
