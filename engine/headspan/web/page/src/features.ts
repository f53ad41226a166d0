/** Words and colours of sparse features: their classes, the scores that tell these, and what features are sorted by. */

import type { FeatureRow } from "./api/types";

export interface FeatureClass {
  /** Its name in addresses and answers. */
  key: string;
  title: string;
  /** One sentence that says what it is. */
  hint: string;
  colour: string;
}

/** In the order of a histogram's parts, the lowest part first. */
export const CLASSES: readonly FeatureClass[] = [
  { key: "text-dominant", title: "Text-dominant", hint: "Captions activate the feature more than images do.", colour: "var(--against)" },
  { key: "cross-modal", title: "Cross-modal", hint: "Images and captions activate the feature alike.", colour: "var(--cross)" },
  { key: "image-dominant", title: "Image-dominant", hint: "Images activate the feature more than captions do.", colour: "var(--for)" },
  { key: "undecided", title: "Undecided", hint: "The feature is active in too few pairs, or its interval crosses a bound.", colour: "var(--line-strong)" },
];

export const RULES: readonly (readonly [string, string])[] = [
  ["spread", "Mean ± std"],
  ["interval", "Intervals"],
];
export const RULE_HINTS: Record<string, string> = {
  spread: "Image-dominant: MDS above the mean of all features plus their standard deviation; text-dominant: below the mean minus it.",
  interval: "A feature has a class only if its whole 95 % interval lies below the lower bound, above the upper one, or between both: 1/3 and 2/3.",
};

export type Score = "mds" | "energy";
export const SCORES: readonly (readonly [Score, string])[] = [
  ["mds", "MDS"],
  ["energy", "Energy score"],
];
export const SCORE_HINTS: Record<Score, string> = {
  mds: "Modality Dominance Score: the image’s share of the two codes, its mean over the pairs in which one of both is active.",
  energy: "The images’ share of the sum of squared codes over all pairs.",
};

/** The class of a feature by a rule. */
export function classOf(row: { class_by_spread: string; class_by_interval: string }, rule: string): FeatureClass {
  const key = rule === "interval" ? row.class_by_interval : row.class_by_spread;
  return CLASSES.find((one) => one.key === key) ?? CLASSES[CLASSES.length - 1]!;
}

/** A score of a feature: its value, the ends of its interval, and its value with captions shuffled, which changes MDS only. */
export function scoreOf(row: FeatureRow, score: Score) {
  return score === "mds"
    ? { value: row.mds, low: row.mds_low, high: row.mds_high, shuffled: row.shuffled_mds }
    : { value: row.energy, low: row.energy_low, high: row.energy_high, shuffled: null };
}

/** What a feature is called: its nearest text, else the caption with its largest code, else its number alone. */
export function nameOf(row: { feature: number; name: string | null; caption?: string | null }): string {
  return row.name ?? row.caption ?? `feature ${row.feature}`;
}

/** What a list is sorted by, as in addresses: a name, with a minus sign before it from the largest to the smallest. */
export const USUAL_SORT = "-active";
