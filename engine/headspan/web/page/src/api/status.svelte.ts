/** The server's state, asked for every few seconds: which stores there are, and whether they changed. */

import { here } from "../address.svelte";
import type { Status, StoreSummary } from "./types";
import { Failed, get } from "./client";

const USUAL_MS = 4000;
const WAITING_MS = 1000;

class Server {
  value = $state.raw<Status | null>(null);
  failure = $state.raw<Failed | null>(null);

  /** The store of the address, or the first one; null while nothing is known, or if there is no such store. */
  store = $derived(this.named(here.store));

  /** A store by its name; the first one for an empty name. */
  named(name: string): StoreSummary | null {
    const stores = this.value?.stores ?? [];
    return (name ? stores.find((store) => store.name === name) : stores[0]) ?? null;
  }

  /** Changes whenever answers about the store may have changed. */
  version(name: string): string {
    return this.named(name)?.version ?? "";
  }

  #ask = async (): Promise<void> => {
    try {
      const value = await get<Status>("/api/status", String(performance.now()));
      // Effects that read the state run only if it changed.
      if (JSON.stringify(value) !== JSON.stringify(this.value)) this.value = value;
      this.failure = null;
    } catch (error) {
      this.failure = error instanceof Failed ? error : new Failed(String(error), "unreachable", 0);
    }
  };

  /** Ask now and every few seconds, except while the page is hidden. Returns how to stop. */
  follow(): () => void {
    let timer = 0;
    let stopped = false;
    const turn = async () => {
      clearTimeout(timer);
      if (!document.hidden) await this.#ask();
      const waiting = this.failure || this.value?.stores.some((store) => store.model_process.state === "loading");
      if (!stopped) timer = window.setTimeout(turn, waiting ? WAITING_MS : USUAL_MS);
    };
    const shown = () => {
      if (!document.hidden) void turn();
    };
    document.addEventListener("visibilitychange", shown);
    void turn();
    return () => {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }
}

export const server = new Server();
