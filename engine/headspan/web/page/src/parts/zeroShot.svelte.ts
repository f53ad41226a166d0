// The texts that an image is compared with: those of the address, or else the store's own.

import { ask, type Asked } from "../api/ask.svelte";
import { api } from "../api/client";
import type { Grid, KnownTexts, StoreAnswer, ZeroShot } from "../api/types";

/** Texts of one question. */
export const MOST_TEXTS = 64;
const OF_EACH_HEAD = 2;

/**
 * A store's own texts: the names of its classes; or the first texts of its heads, those of the heads that vary most
 * first; or any texts whose vectors it holds. Call it while a component is set up.
 */
export function ownTexts(store: string): () => string[] {
  const about = ask<StoreAnswer>(() => api(store));
  const grid = ask<Grid>(() => api(store, "grid"));
  const classes = $derived(Object.values(about.value?.classes ?? {}));
  const ofHeads = $derived(
    [...(grid.value?.heads ?? [])]
      .sort((a, b) => (b.variance_share ?? 0) - (a.variance_share ?? 0))
      .flatMap((head) => head.texts.slice(0, OF_EACH_HEAD)),
  );
  const lacking = $derived(about.value !== null && grid.value !== null && classes.length + ofHeads.length === 0);
  const known = ask<KnownTexts>(() => (lacking ? api(store, "texts/known") : null));
  const found = $derived(classes.length ? classes : ofHeads.length ? ofHeads : (known.value?.texts ?? []));
  return () => (about.value ? [...new Set(found)].slice(0, MOST_TEXTS) : []);
}

/** An image's cosines with some texts. Call it while a component is set up. */
export function zeroShot(store: string, image: string, texts: () => readonly string[]): Asked<ZeroShot[]> {
  return ask<ZeroShot[]>(
    () => (image && texts().length ? api(store, `images/${image}/zero-shot`, { text: texts() }) : null),
    { keep: true },
  );
}
