/** Words and colours of descriptions: verdicts, what the training's log holds, and what lists are sorted by. */

export interface Verdict {
  /** Its name in addresses and answers. */
  key: string;
  title: string;
  /** One sentence that says what it is. */
  hint: string;
  colour: string;
}

export const VERDICTS: readonly Verdict[] = [
  { key: "visual", title: "Visual", hint: "It teaches something about the class that one can see.", colour: "var(--cross)" },
  { key: "non-visual", title: "Non-visual", hint: "It teaches something about the class that one cannot see.", colour: "var(--against)" },
  { key: "spurious", title: "Spurious", hint: "It teaches nothing about the class.", colour: "var(--for)" },
  { key: "undecided", title: "Undecided", hint: "The judges gave no answer, or are divided.", colour: "var(--line-strong)" },
];

export function verdictOf(key: string | null): Verdict | null {
  return VERDICTS.find((one) => one.key === key) ?? null;
}

/** Numbers of the training's log in the order in which they are drawn; the others follow. */
const LOGGED: Record<string, string> = {
  reward: "Reward",
  kl: "KL, nats",
  length: "Length, tokens",
  distinct_1: "Distinct words",
  entropy: "Entropy, nats",
  cut: "Share cut",
  distinct_2: "Distinct pairs",
  distinct_3: "Distinct triples",
  ended: "Share ended",
};

/** The numbers of a log that are known at two steps or more, those of most interest first. */
export function curvesOf(log: Record<string, readonly (number | null)[]>): [string, readonly (number | null)[]][] {
  const order = Object.keys(LOGGED);
  const place = (name: string) => (order.includes(name) ? order.indexOf(name) : order.length);
  return Object.entries(log)
    .filter(([name, values]) => name !== "step" && values.filter((one) => one !== null).length > 1)
    .sort(([one], [other]) => place(one) - place(other));
}

/** What a number of the training's log is called. */
export function logged(name: string): string {
  const words = LOGGED[name] ?? name.replaceAll("_", " ");
  return words[0]!.toUpperCase() + words.slice(1);
}

/** What a list is sorted by, as in addresses: a name, with a minus sign before it from the largest to the smallest. */
export const USUAL_SORT = "-reward";
