// The texts that an image is compared with: those of the address, or the store's classes, or texts that it knows.

import { ask, type Asked } from "../api/ask.svelte";
import { api } from "../api/client";
import type { KnownTexts, StoreAnswer, ZeroShot } from "../api/types";

const MOST = 64;

/** The store's own texts: the names of its classes, or texts whose vectors are stored. Call it while a component is set up. */
export function ownTexts(store: () => string): () => string[] {
  const about = ask<StoreAnswer>(() => api(store()));
  const classes = () => Object.values(about.value?.classes ?? {});
  const known = ask<KnownTexts>(() => (about.value && classes().length === 0 ? api(store(), "texts/known", { limit: MOST }) : null));
  return () => (classes().length ? classes() : (known.value?.texts ?? [])).slice(0, MOST);
}

/** An image's cosines with some texts. Call it while a component is set up. */
export function zeroShot(store: () => string, image: () => string, texts: () => string[]): Asked<ZeroShot[]> {
  return ask<ZeroShot[]>(
    () => (image() && texts().length ? api(store(), `images/${image()}/zero-shot`, { text: texts() }) : null),
    { keep: true },
  );
}
