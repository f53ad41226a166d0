/** What the map of heads can be coloured by. */

import { categorical, diverging, sequential, type Rgb } from "./colours";
import type { HeadSummary } from "./api/types";
import { fixed, percent } from "./numbers";

export interface Measure {
  /** Its name in addresses. */
  key: string;
  title: string;
  /** One sentence that says what it is. */
  hint: string;
  /** Null if the head has none. */
  of: (head: HeadSummary) => number | null;
  words: (value: number | null) => string;
  /** A scale from zero to the largest value, from the smallest to the largest, to both sides of zero, or 0 to 5. */
  scale: "share" | "range" | "signed" | "five";
}

export const MEASURES: readonly Measure[] = [
  {
    key: "ccs",
    title: "CCS",
    hint: "Concept Consistency Score: how many of the head's first five texts fit its label, 0 to 5.",
    of: (head) => head.ccs,
    words: (value) => (value === null ? "–" : String(value)),
    scale: "five",
  },
  {
    key: "variance",
    title: "Variance share",
    hint: "The head's share of the variance of the image embeddings.",
    of: (head) => head.variance_share,
    words: (value) => percent(value),
    scale: "signed",
  },
  {
    key: "length",
    title: "Squared length share",
    hint: "The head's share of the mean squared length of the image embeddings.",
    of: (head) => head.squared_length_share,
    words: (value) => percent(value),
    scale: "signed",
  },
  {
    key: "explained",
    title: "Explained by texts",
    hint: "The share of the head's own variance that its texts explain.",
    of: (head) => head.explained,
    words: (value) => percent(value),
    scale: "share",
  },
  {
    key: "excess",
    title: "Excess over chance",
    hint: "How much more of the head's variance its texts explain than random directions would.",
    of: (head) => head.excess,
    words: (value) => percent(value),
    scale: "signed",
  },
  {
    key: "rank",
    title: "Effective rank",
    hint: "The effective number of dimensions of the head's contributions.",
    of: (head) => head.effective_rank,
    words: (value) => fixed(value, 1),
    scale: "range",
  },
];

/** The ends of a measure's scale over some heads. */
export function ends(measure: Measure, heads: readonly HeadSummary[]): [number, number] {
  if (measure.scale === "five") return [0, 5];
  const values = heads.map(measure.of).filter((value) => value !== null);
  const high = Math.max(0, ...values);
  // Negative values that would not be seen beside the positive ones do not make the scale two-sided.
  const low = Math.min(...values, 0) < -0.02 * high ? Math.min(...values) : 0;
  if (measure.scale === "range") return [Math.min(...values, high), high];
  return measure.scale === "share" ? [0, high] : [low, high];
}

/** The colour of a value between the ends of its scale; null for no value. */
export function colourOf(value: number | null, [low, high]: [number, number], scale: Measure["scale"], dark: boolean): Rgb | null {
  if (value === null) return null;
  // A signed measure without negative values is a share.
  if (scale === "signed" && low < 0) return diverging(value / Math.max(-low, high, 1e-12), dark);
  return sequential((value - low) / Math.max(high - low, 1e-12), dark);
}

/** The labels of some heads, the most frequent first, and the place of each; rare ones share the last colour. */
export function labelsOf(heads: readonly HeadSummary[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { label } of heads) if (label) counts.set(label, (counts.get(label) ?? 0) + 1);
  return new Map([...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])));
}

export function labelColour(label: string | null, labels: Map<string, number>, dark: boolean): Rgb | null {
  const place = label ? [...labels.keys()].indexOf(label) : -1;
  return place < 0 ? null : categorical(place, dark);
}
