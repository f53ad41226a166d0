/**
 * Colours for numbers and categories, even steps in OKLCH.
 *
 * Shares take a sequential scale whose zero is near the page's own colour; signed values take a diverging scale whose
 * zero is fixed there; categories take hues of one lightness.
 */

export type Rgb = readonly [number, number, number];
type Lch = readonly [number, number, number];

const SEQUENTIAL: Record<"light" | "dark", readonly Lch[]> = {
  light: [
    [0.965, 0.012, 190],
    [0.86, 0.065, 195],
    [0.7, 0.105, 215],
    [0.52, 0.13, 250],
    [0.33, 0.12, 275],
  ],
  dark: [
    [0.255, 0.02, 265],
    [0.37, 0.085, 268],
    [0.53, 0.12, 250],
    [0.73, 0.115, 205],
    [0.93, 0.085, 165],
  ],
};
const DIVERGING: Record<"light" | "dark", readonly Lch[]> = {
  light: [
    [0.4, 0.14, 265],
    [0.66, 0.11, 240],
    [0.965, 0.004, 80],
    [0.68, 0.14, 55],
    [0.45, 0.14, 40],
  ],
  dark: [
    [0.86, 0.08, 225],
    [0.6, 0.12, 245],
    [0.26, 0.004, 265],
    [0.62, 0.14, 50],
    [0.86, 0.11, 70],
  ],
};
const HUES = [255, 45, 150, 335, 95, 200, 15, 290, 125, 225] as const;

/** The colour of a share between 0 and 1; values outside take the colour of the nearer end. */
export function sequential(value: number, dark: boolean): Rgb {
  return along(SEQUENTIAL[dark ? "dark" : "light"], value);
}

/** The colour of a signed value between -1 and 1: blue below zero, orange above, zero the page's own colour. */
export function diverging(value: number, dark: boolean): Rgb {
  return along(DIVERGING[dark ? "dark" : "light"], (value + 1) / 2);
}

/** The colour of a category by its place; places beyond the tenth take hues again, in another lightness. */
export function categorical(place: number, dark: boolean): Rgb {
  const round = Math.floor(place / HUES.length) % 2;
  const lightness = dark ? 0.78 - 0.16 * round : 0.6 - 0.16 * round;
  return rgb([lightness, dark ? 0.12 : 0.145, HUES[place % HUES.length]!]);
}

/** A colour as CSS writes it. */
export function css([red, green, blue]: Rgb, alpha = 1): string {
  return alpha === 1 ? `rgb(${red} ${green} ${blue})` : `rgb(${red} ${green} ${blue} / ${alpha})`;
}

/** Black or white, whichever reads better on a colour. */
export function inkOn([red, green, blue]: Rgb): string {
  const light = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2;
  return light > 0.2 ? "#14171c" : "#fff";
}

function along(stops: readonly Lch[], value: number): Rgb {
  const at = Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0)) * (stops.length - 1);
  const first = Math.min(stops.length - 2, Math.floor(at));
  const [from, to, part] = [oklab(stops[first]!), oklab(stops[first + 1]!), at - first];
  return linear([0, 1, 2].map((axis) => from[axis]! * (1 - part) + to[axis]! * part) as unknown as Lch);
}

function rgb(colour: Lch): Rgb {
  return linear(oklab(colour));
}

function oklab([lightness, chroma, hue]: Lch): Lch {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

/** Oklab to 8-bit sRGB (Ottosson 2020); colours outside sRGB are clipped. */
function linear([lightness, a, b]: Lch): Rgb {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    encoded(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    encoded(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    encoded(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

function encoded(value: number): number {
  const gamma = value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055;
  return Math.round(255 * Math.min(1, Math.max(0, gamma)));
}
