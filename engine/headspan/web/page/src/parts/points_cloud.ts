/** What the points' renderers share. */

/** What is visible: the centre in data coordinates, and data units per CSS pixel. */
export interface View {
  x: number;
  y: number;
  perPixel: number;
}

/** Points in the order of arrival. */
export interface Cloud {
  /** x and y of each point, one after the other. */
  xy: Float32Array<ArrayBuffer>;
  codes: Uint8Array<ArrayBuffer>;
  count: number;
}

/** Red, green, blue and opacity of each of 256 codes. */
export type Palette = Uint8Array<ArrayBuffer>;

/** The code of points without a category; they are drawn first, below all others. */
export const NONE = 255;
