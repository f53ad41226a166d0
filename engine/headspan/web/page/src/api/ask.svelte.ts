/** Answers that follow an address: asked again when it or the store changes, given up when nobody waits for them. */

import { Failed, get, remembered } from "./client";
import { server } from "./status.svelte";

const AGAIN_MS = 700;

/** An answer as it arrives. */
export class Asked<T> {
  /** The last answer; null before the first. */
  value = $state.raw<T | null>(null);
  /** Why there is no answer. */
  failure = $state.raw<Failed | null>(null);
  /** Whether a request is under way. `value` may then be of an earlier question, if the asker keeps those. */
  busy = $state(false);
  /** What the request waits for, as a sentence, such as a model that is being loaded; null if it does not wait. */
  waiting = $state<string | null>(null);
  #tries = $state(0);

  get tries(): number {
    return this.#tries;
  }
  /** Ask again after a failure. */
  retry = (): void => {
    this.#tries += 1;
  };
}

/**
 * Ask for the answer at `address()`, and again whenever the address or the version of its store changes.
 *
 * Call it while a component is set up. A null address asks nothing. The answer of an earlier version of the store stays
 * until the new one is here, so that scroll and focus stay; the answer of another address stays only with `keep`.
 */
export function ask<T>(address: () => string | null, { keep = false } = {}): Asked<T> {
  const asked = new Asked<T>();
  let shown: string | null = null;
  const question = $derived(address());
  const version = $derived(question === null ? "" : server.version(storeOf(question)));
  $effect(() => {
    void asked.tries;
    const [asking, of] = [question, version];
    if (asking === null) {
      Object.assign(asked, { value: null, failure: null, busy: false, waiting: null });
      shown = null;
      return;
    }
    const known = remembered<T>(asking, of);
    if (known !== undefined) {
      Object.assign(asked, { value: known, failure: null, busy: false, waiting: null });
      shown = asking;
      return;
    }
    if (!keep && shown !== asking) asked.value = null;
    const leaving = new AbortController();
    void fill(asked, asking, of, leaving.signal).then((filled) => {
      if (filled) shown = asking;
    });
    return () => leaving.abort();
  });
  return asked;
}

async function fill<T>(asked: Asked<T>, address: string, version: string, signal: AbortSignal): Promise<boolean> {
  Object.assign(asked, { busy: true, failure: null });
  for (;;) {
    try {
      const value = await get<T>(address, version, signal);
      if (signal.aborted) return false;
      Object.assign(asked, { value, busy: false, waiting: null });
      return true;
    } catch (error) {
      if (signal.aborted) return false;
      const failure = error instanceof Failed ? error : new Failed(String(error), "refused", 0);
      if (failure.kind !== "model_loading" && failure.kind !== "unreachable") {
        Object.assign(asked, { value: null, failure, busy: false, waiting: null });
        return false;
      }
      asked.waiting = failure.message;
      await new Promise((wake) => setTimeout(wake, AGAIN_MS));
      if (signal.aborted) return false;
    }
  }
}

/** The store that an address of the API names; empty if it names none. */
function storeOf(address: string): string {
  const found = /^\/api\/stores\/([^/?]+)/.exec(address);
  return found?.[1] ? decodeURIComponent(found[1]) : "";
}
