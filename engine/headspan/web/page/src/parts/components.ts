// The components of a cosine: which bars are shown, in which order, and what they sum to.

import type { Bar } from "../api/types";

export type Order = "size" | "layer";

/** The components of one layer, or those of none, with their sum. */
export interface Layer {
  layer: number | null;
  sum: number;
  mean: number | null;
  bars: Bar[];
}

/** The sum of what the bars add, and of their means; the mean is null where one is unknown. */
export function sums(bars: readonly Bar[]): { value: number; mean: number | null } {
  const value = bars.reduce((sum, bar) => sum + bar.value, 0);
  const mean = bars.reduce<number | null>(
    (sum, bar) => (sum === null || bar.mean === null ? null : sum + bar.mean),
    0,
  );
  return { value, mean };
}

/** The bars with the largest first, whatever their sign. */
export function bySize(bars: readonly Bar[]): Bar[] {
  return [...bars].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

/** The bars in groups: the layers from the last to the first, then what belongs to none. */
export function byLayer(bars: readonly Bar[]): Layer[] {
  const groups = new Map<number | null, Bar[]>();
  for (const bar of bars) groups.set(bar.layer, [...(groups.get(bar.layer) ?? []), bar]);
  return [...groups]
    .map(([layer, own]) => {
      const { value, mean } = sums(own);
      return { layer, sum: value, mean, bars: bySize(own) };
    })
    .sort((a, b) => (b.layer ?? -1) - (a.layer ?? -1));
}

/** The smallest and the largest number that is drawn, with zero between them. */
export function extent(numbers: readonly (number | null)[]): [number, number] {
  const known = numbers.filter((value) => value !== null);
  return [Math.min(0, ...known), Math.max(0, ...known)];
}
