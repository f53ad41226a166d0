// How maps are shown, in the address: `threshold`, `opacity` and `smooth`.

import { change, here } from "../address.svelte";
import type { Look } from "./drawMap";

const USUAL: Look = { threshold: 0.2, opacity: 0.85, smooth: false };

/** The look that the address says, or the usual one. */
export function lookHere(): Look {
  return {
    threshold: share(here.one("threshold"), USUAL.threshold),
    opacity: share(here.one("opacity"), USUAL.opacity),
    smooth: here.one("smooth") === "1",
  };
}

/** Write a look into the address; what is usual is left out. */
export function keepLook({ threshold, opacity, smooth }: Look): void {
  change({
    threshold: threshold === USUAL.threshold ? null : threshold.toFixed(2),
    opacity: opacity === USUAL.opacity ? null : opacity.toFixed(2),
    smooth: smooth ? "1" : null,
  });
}

function share(text: string, otherwise: number): number {
  const value = Number(text);
  return text !== "" && value >= 0 && value <= 1 ? value : otherwise;
}
