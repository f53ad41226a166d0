/** Numbers as the page shows them. */

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count with separators, such as 1,000,000. */
export function count(value: number): string {
  return WHOLE.format(value);
}

/** "1 image", "12 images". */
export function counted(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** A share as a percentage, "–" if it is not known. */
export function percent(value: number | null | undefined, digits = 1): string {
  return value === null || value === undefined ? "–" : `${fixed(100 * value, digits)} %`;
}

/** A number with a fixed number of digits, "–" if it is not known. Negative numbers have a minus sign, zero has none. */
export function fixed(value: number | null | undefined, digits = 2): string {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** A number with its sign, "–" if it is not known. */
export function signed(value: number | null | undefined, digits = 2): string {
  if (value === null || value === undefined) return "–";
  return Number(value.toFixed(digits)) > 0 ? `+${value.toFixed(digits)}` : fixed(value, digits);
}
