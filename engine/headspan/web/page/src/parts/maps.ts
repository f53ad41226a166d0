// Maps of patches: their arithmetic, their colours, and where they lie on a picture. Nothing here asks the server.

export type Grid = readonly (readonly number[])[];

/** A part of a picture, as fractions of its width and height; it may reach beyond the picture. */
export interface Part {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

export const WHOLE: Part = { left: 0, top: 0, right: 1, bottom: 1 };

/** A patch by its row and column. */
export interface Patch {
  row: number;
  column: number;
}

// Orange for the text, blue against it, as in the report and its plots (headspan.plots.colours).
const FOR = [214, 84, 10] as const;
const AGAINST = [31, 84, 166] as const;
// The opacity of full colour.
const STRONGEST = 0.85;
// This share of all patches has less than full colour, since single patches can be far larger than all others.
const FULL_COLOUR = 0.99;

/** One map minus another, patch by patch. */
export function difference(a: Grid, b: Grid): number[][] {
  return a.map((line, row) => line.map((value, column) => value - (b[row]?.[column] ?? 0)));
}

/** The sum of a map's patches. */
export function total(values: Grid): number {
  return values.reduce((sum, line) => sum + line.reduce((part, value) => part + value, 0), 0);
}

/** The value of full colour of some maps that share one scale: 99 % of their patches are nearer to zero. */
export function fullColour(maps: readonly Grid[]): number {
  const sizes = maps.flatMap((values) => values.flatMap((line) => line.map(Math.abs))).sort((a, b) => a - b);
  if (sizes.length === 0) return 0;
  const place = FULL_COLOUR * (sizes.length - 1);
  const below = sizes[Math.floor(place)] ?? 0;
  const above = sizes[Math.ceil(place)] ?? below;
  return below + (above - below) * (place - Math.floor(place));
}

/** The number of patches that have a colour. */
export function coloured(values: Grid, threshold: number): number {
  return values.reduce((sum, line) => sum + line.filter((value) => Math.abs(value) > threshold).length, 0);
}

/** The patches with the largest and with the smallest value. */
export function extremes(values: Grid): { high: Patch; low: Patch } {
  const high = { row: 0, column: 0 };
  const low = { row: 0, column: 0 };
  values.forEach((line, row) =>
    line.forEach((value, column) => {
      if (value > at(values, high)) Object.assign(high, { row, column });
      if (value < at(values, low)) Object.assign(low, { row, column });
    }),
  );
  return { high, low };
}

/** A map's value at a patch. */
export function at(values: Grid, patch: Patch): number {
  return values[patch.row]?.[patch.column] ?? 0;
}

/**
 * The colour of a value: transparent at zero and within the threshold, and the less so the nearer it is to full colour.
 * The threshold only hides; it changes no other patch.
 */
export function colourOf(value: number, threshold: number, full: number): [number, number, number, number] {
  const size = Math.abs(value);
  if (!(size > threshold) || !(full > 0)) return [0, 0, 0, 0];
  const [red, green, blue] = value > 0 ? FOR : AGAINST;
  return [red, green, blue, Math.round(255 * STRONGEST * Math.min(1, size / full))];
}

/** A map as the pixels of a picture of that size: each patch a rectangle, or values between the patches' centres. */
export function mapPixels(
  values: Grid,
  threshold: number,
  full: number,
  smooth: boolean,
  width: number,
  height: number,
): ImageData {
  const rows = values.length;
  const columns = values[0]?.length ?? 0;
  const pixels = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    const down = ((y + 0.5) / height) * rows;
    for (let x = 0; x < width; x++) {
      const across = ((x + 0.5) / width) * columns;
      const value = smooth
        ? between(values, down - 0.5, across - 0.5)
        : at(values, { row: Math.floor(down), column: Math.floor(across) });
      pixels.data.set(colourOf(value, threshold, full), 4 * (y * width + x));
    }
  }
  return pixels;
}

function between(values: Grid, down: number, across: number): number {
  const rows = values.length;
  const columns = values[0]?.length ?? 0;
  const y = Math.min(Math.max(down, 0), rows - 1);
  const x = Math.min(Math.max(across, 0), columns - 1);
  const [top, left] = [Math.floor(y), Math.floor(x)];
  const [bottom, right] = [Math.min(top + 1, rows - 1), Math.min(left + 1, columns - 1)];
  const above = mix(at(values, { row: top, column: left }), at(values, { row: top, column: right }), x - left);
  const below = mix(at(values, { row: bottom, column: left }), at(values, { row: bottom, column: right }), x - left);
  return mix(above, below, y - top);
}

const mix = (from: number, to: number, share: number): number => from + (to - from) * share;

/** What is drawn: the whole picture, and what the model saw beyond it. */
export function frameOf(seen: Part | null): Part {
  const part = seen ?? WHOLE;
  return {
    left: Math.min(0, part.left),
    top: Math.min(0, part.top),
    right: Math.max(1, part.right),
    bottom: Math.max(1, part.bottom),
  };
}

/** A part of a picture in the pixels of a canvas that shows `frame`. */
export function onCanvas(part: Part, frame: Part, width: number, height: number): DOMRect {
  const across = width / (frame.right - frame.left);
  const down = height / (frame.bottom - frame.top);
  return new DOMRect(
    (part.left - frame.left) * across,
    (part.top - frame.top) * down,
    (part.right - part.left) * across,
    (part.bottom - part.top) * down,
  );
}

/** The rectangle of one patch in a map that fills `box`. */
export function patchBox(patch: Patch, rows: number, columns: number, box: DOMRect): DOMRect {
  const [width, height] = [box.width / columns, box.height / rows];
  return new DOMRect(box.x + patch.column * width, box.y + patch.row * height, width, height);
}

/** The patch at a point of the canvas; null beside the map. */
export function patchAt(x: number, y: number, rows: number, columns: number, box: DOMRect): Patch | null {
  const row = Math.floor(((y - box.y) / box.height) * rows);
  const column = Math.floor(((x - box.x) / box.width) * columns);
  return row >= 0 && row < rows && column >= 0 && column < columns ? { row, column } : null;
}

/** Where a patch lies, in words, such as "top left". */
export function whereabouts(patch: Patch, rows: number, columns: number): string {
  const third = (place: number, count: number) => Math.min(2, Math.floor(((place + 0.5) / count) * 3));
  const down = ["top", "", "bottom"][third(patch.row, rows)] ?? "";
  const across = ["left", "", "right"][third(patch.column, columns)] ?? "";
  return `${down} ${across}`.trim() || "centre";
}

/** How many decimals show values of this size with three digits. */
export function decimals(size: number): number {
  return size > 0 ? Math.min(8, Math.max(2, 2 - Math.floor(Math.log10(size)))) : 2;
}
