/** Requests to the explorer's HTTP API: addresses, answers kept in memory, and failures as one sentence. */

import type { Query } from "../address.svelte";

/** Answers kept in memory; the one that was not used for longest is dropped first. */
const KEPT = 300;
const kept = new Map<string, unknown>();

/** A request that was not answered: one sentence for people, and what kind of failure it is. */
export class Failed extends Error {
  constructor(
    sentence: string,
    /** "refused", "model_loading", "model_failed", or "unreachable" if the server did not answer. */
    readonly kind: string,
    readonly status: number,
  ) {
    super(sentence);
  }
}

/** The address of an answer about a store: `api("run", "heads/L3.H2", { run: "textspan" })`. */
export function api(store: string, path = "", query: Query = {}): string {
  const base = `/api/stores/${encodeURIComponent(store)}`;
  return withQuery(path ? `${base}/${path}` : base, query);
}

/** An address with a query; null, undefined and "" leave a key out, lists repeat it. */
export function withQuery(address: string, query: Query): string {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query))
    for (const one of Array.isArray(value) ? value : [value])
      if (one !== null && one !== undefined && one !== "") search.append(key, String(one));
  const text = search.toString();
  return text ? `${address}?${text}` : address;
}

/** The address of an image's whole picture, at most `side` pixels wide and high. */
export function picture(store: string, image: string | number, side: number): string {
  // Sizes are rounded up to a few values, so that screens share pictures in the browser's cache.
  const wanted = Math.min(1024, side * Math.min(2, devicePixelRatio || 1));
  const asked = [64, 128, 256, 512].find((size) => size >= wanted) ?? 1024;
  return api(store, `images/${encodeURIComponent(image)}/picture`, { side: asked });
}

/** The address of the square that the model saw of an image. */
export function seen(store: string, image: string | number): string {
  return api(store, `images/${encodeURIComponent(image)}/seen`);
}

/** An answer that is already in memory for this version of its store. */
export function remembered<T>(address: string, version: string): T | undefined {
  const key = `${version} ${address}`;
  const value = kept.get(key) as T | undefined;
  if (value !== undefined) {
    kept.delete(key);
    kept.set(key, value);
  }
  return value;
}

/** Ask for a JSON answer. Answers are kept by address and version. Raises Failed. */
export async function get<T>(address: string, version: string, signal?: AbortSignal): Promise<T> {
  const known = remembered<T>(address, version);
  if (known !== undefined) return known;
  const response = await request(address, { signal });
  const value = (await read(response, "json")) as T;
  kept.set(`${version} ${address}`, value);
  for (const oldest of kept.keys()) {
    if (kept.size <= KEPT) break;
    kept.delete(oldest);
  }
  return value;
}

/** Ask for a binary answer; it is not kept. Raises Failed. */
export async function bytes(address: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  const response = await request(address, { signal });
  return (await read(response, "arrayBuffer")) as ArrayBuffer;
}

/** Send a file's bytes and read a JSON answer. Raises Failed. */
export async function send<T>(address: string, body: Blob, signal?: AbortSignal): Promise<T> {
  const headers = { "content-type": body.type || "application/octet-stream" };
  const response = await request(address, { method: "POST", body, headers, signal });
  return (await read(response, "json")) as T;
}

async function request(address: string, options: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw unreachable();
  }
  if (response.ok) return response;
  let failure: { error?: unknown; kind?: unknown } = {};
  try {
    failure = (await response.json()) as typeof failure;
  } catch {
    // Not an answer of the explorer; the status says what there is to say.
  }
  const sentence = typeof failure.error === "string" ? failure.error : `The server answered ${response.status} ${response.statusText}.`;
  throw new Failed(sentence, typeof failure.kind === "string" ? failure.kind : "refused", response.status);
}

async function read(response: Response, as: "json" | "arrayBuffer"): Promise<unknown> {
  try {
    return await response[as]();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw unreachable();
  }
}

function unreachable(): Failed {
  return new Failed("The explorer's server does not answer. Start it again with headspan explore; this page then continues.", "unreachable", 0);
}
