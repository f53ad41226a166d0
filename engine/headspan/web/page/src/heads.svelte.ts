/** The grids of heads of the open stores: names, labels and numbers of every head, asked for once a version. */

import { here } from "./address.svelte";
import { ask, type Asked } from "./api/ask.svelte";
import { api } from "./api/client";
import { server } from "./api/status.svelte";
import type { Grid, HeadSummary } from "./api/types";

class Heads {
  #asked = $state.raw<Asked<Grid> | null>(null);
  #byName = $derived(new Map((this.#asked?.value?.heads ?? []).map((head) => [head.name, head])));

  /** Start to ask for the grid of the address's store. Call it once, while the page is set up. */
  follow(): void {
    this.#asked = ask<Grid>(() => {
      const store = server.store;
      return store ? api(store.name, "grid", { run: here.spansRun }) : null;
    });
  }

  /** The grid of the store that is shown, as it arrives. */
  get asked(): Asked<Grid> | null {
    return this.#asked;
  }

  /** Every head of a store by its name; null if the store's grid is not known. */
  of(store?: string): ReadonlyMap<string, HeadSummary> | null {
    const shown = this.#asked?.value?.store;
    return shown && (!store || store === shown) ? this.#byName : null;
  }

  /** The shown store's heads that a word names by their name, label or texts, best first. */
  matching(word: string): HeadSummary[] {
    const wanted = word.trim().toLowerCase();
    if (!wanted) return [];
    const ranked = (this.#asked?.value?.heads ?? []).map((head) => ({ head, rank: rank(head, wanted) }));
    return ranked
      .filter(({ rank }) => rank < Infinity)
      .sort((a, b) => a.rank - b.rank || (b.head.variance_share ?? 0) - (a.head.variance_share ?? 0))
      .map(({ head }) => head);
  }
}

/** How well a head fits what was typed, 0 best; Infinity if it does not. */
function rank(head: HeadSummary, wanted: string): number {
  if (head.name.toLowerCase() === wanted) return 0;
  if (head.label?.toLowerCase().includes(wanted)) return 1;
  const text = head.texts.findIndex((one) => one.toLowerCase().includes(wanted));
  if (text >= 0) return 2 + text;
  return head.name.toLowerCase().startsWith(wanted) ? 1000 : Infinity;
}

export const heads = new Heads();
