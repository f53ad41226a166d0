/** Light or dark: as the system says, or as the user chose; the choice is kept in this browser. */

export type Choice = "system" | "light" | "dark";
const KEY = "headspan.theme";
const CHOICES: readonly Choice[] = ["system", "light", "dark"];

class Theme {
  #system = matchMedia("(prefers-color-scheme: dark)");
  #systemDark = $state(this.#system.matches);
  choice = $state<Choice>(kept());

  /** Whether colours are those for a dark page. */
  dark = $derived(this.choice === "system" ? this.#systemDark : this.choice === "dark");

  constructor() {
    this.#system.addEventListener("change", (event) => (this.#systemDark = event.matches));
    this.#show();
  }

  /** Take the next choice: system, light, dark. */
  next(): void {
    this.choice = CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length]!;
    try {
      localStorage.setItem(KEY, this.choice);
    } catch {
      // A browser that keeps nothing: the choice holds until the page is closed.
    }
    this.#show();
  }

  #show(): void {
    if (this.choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.choice;
  }
}

function kept(): Choice {
  try {
    const value = localStorage.getItem(KEY) as Choice | null;
    return value && CHOICES.includes(value) ? value : "system";
  } catch {
    return "system";
  }
}

export const theme = new Theme();

/** Whether the user asked for as little motion as possible. */
export function still(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
