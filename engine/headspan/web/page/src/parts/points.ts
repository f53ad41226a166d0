/**
 * A plane of up to millions of points: drawn with WebGL 2, or into a picture where there is none.
 *
 * Positions stay as float32 and colours as one byte a point, which a palette of 256 colours turns into colours; a new
 * palette recolours every point without touching them. Picking searches a grid of cells, never all points.
 */

import { NONE, type Cloud, type Palette, type View } from "./points_cloud";
import { drawPicture } from "./points_picture";
import { WebGlPoints } from "./points_webgl";

export type Extent = readonly [number, number, number, number];

/** Cells of the picking grid along each axis. */
const CELLS = 256;
const LARGEST_ZOOM = 4000;
/** From here on, a WebGL that computes on the processor is slower than pictures. */
const SLOW_IMAGES = 100_000;
/** Points of a picture while it moves: the first parts, which are a sample of all images. */
const MOVING_IMAGES = 120_000;
const REST_MS = 140;

export class Points {
  readonly cloud: Cloud;
  readonly rows: Uint32Array;
  view: View = { x: 0, y: 0, perPixel: 1 };
  /** Called before each drawing, so that overlays move along. */
  moved: () => void = () => {};

  #palette: Palette = new Uint8Array(4 * 256).fill(128);
  #webgl: WebGlPoints | null = null;
  #frame = 0;
  #rest = 0;
  #moving = false;
  #fitted = 1;
  #cells: { starts: Uint32Array; order: Uint32Array } | null = null;
  #resized: ResizeObserver;

  constructor(
    readonly canvas: HTMLCanvasElement,
    images: number,
    readonly extent: Extent,
  ) {
    this.cloud = { xy: new Float32Array(2 * images), codes: new Uint8Array(images).fill(NONE), count: 0 };
    this.rows = new Uint32Array(images);
    this.#webgl = WebGlPoints.on(canvas, images, () => this.redraw(), images > SLOW_IMAGES);
    this.#resized = new ResizeObserver(() => this.#resize());
    this.#resized.observe(canvas);
    this.#resize();
    this.fit();
  }

  /** Whether the points are drawn with WebGL 2. */
  get accelerated(): boolean {
    return this.#webgl !== null;
  }

  /** Add a part of the points. */
  append(rows: Uint32Array, x: Float32Array, y: Float32Array): void {
    const { cloud } = this;
    const from = cloud.count;
    const count = Math.min(rows.length, this.rows.length - from);
    this.rows.set(rows.subarray(0, count), from);
    for (let place = 0; place < count; place++) {
      cloud.xy[2 * (from + place)] = x[place]!;
      cloud.xy[2 * (from + place) + 1] = y[place]!;
    }
    cloud.count = from + count;
    this.#cells = null;
    this.#webgl?.update(cloud, from, count, "both");
    this.redraw();
  }

  /** Give the points from `from` on their codes. */
  code(codes: Uint8Array, from: number): void {
    const count = Math.max(0, Math.min(codes.length, this.cloud.codes.length - from));
    this.cloud.codes.set(codes.subarray(0, count), from);
    this.#webgl?.update(this.cloud, from, count, "codes");
    this.redraw();
  }

  /** Take away every point's code. */
  uncode(): void {
    this.cloud.codes.fill(NONE);
    this.#webgl?.update(this.cloud, 0, this.cloud.codes.length, "codes");
    this.redraw();
  }

  /** Colours by code: red, green, blue and opacity of each as bytes. */
  paint(palette: Palette): void {
    this.#palette = palette;
    this.#webgl?.paint(palette);
    this.redraw();
  }

  /** Show every point. */
  fit(): void {
    const [x0, x1, y0, y1] = this.extent;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const perPixel = Math.max((x1 - x0) / Math.max(width, 1), (y1 - y0) / Math.max(height, 1)) * 1.06 || 1;
    this.#fitted = perPixel;
    this.view = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, perPixel };
    this.redraw();
  }

  /** Move by CSS pixels. */
  pan(right: number, down: number): void {
    const { x, y, perPixel } = this.view;
    const [x0, x1, y0, y1] = this.extent;
    this.view = {
      x: Math.min(x1, Math.max(x0, x - right * perPixel)),
      y: Math.min(y1, Math.max(y0, y + down * perPixel)),
      perPixel,
    };
    this.#move();
  }

  /** Magnify by a factor around a place in CSS pixels. */
  zoom(factor: number, px: number, py: number): void {
    const [x, y] = this.toData(px, py);
    const perPixel = Math.min(this.#fitted * 1.5, Math.max(this.#fitted / LARGEST_ZOOM, this.view.perPixel / factor));
    const moved = perPixel / this.view.perPixel;
    this.view = { x: x + (this.view.x - x) * moved, y: y + (this.view.y - y) * moved, perPixel };
    this.#move();
  }

  toData(px: number, py: number): [number, number] {
    const { x, y, perPixel } = this.view;
    return [x + (px - this.canvas.clientWidth / 2) * perPixel, y - (py - this.canvas.clientHeight / 2) * perPixel];
  }

  toPixels(x: number, y: number): [number, number] {
    const { view } = this;
    return [
      this.canvas.clientWidth / 2 + (x - view.x) / view.perPixel,
      this.canvas.clientHeight / 2 - (y - view.y) / view.perPixel,
    ];
  }

  /** The point nearest to a place within `reach` CSS pixels; -1 if there is none. Invisible ones are passed over. */
  pick(px: number, py: number, reach = 12): number {
    const [x, y] = this.toData(px, py);
    const far = reach * this.view.perPixel;
    const { starts, order } = (this.#cells ??= this.#sorted());
    const [c0, c1] = [this.#column(x - far), this.#column(x + far)];
    const [r0, r1] = [this.#line(y - far), this.#line(y + far)];
    const { xy, codes } = this.cloud;
    let [found, nearest] = [-1, far * far];
    for (let line = r0; line <= r1; line++) {
      for (let at = starts[line * CELLS + c0]!; at < starts[line * CELLS + c1 + 1]!; at++) {
        const point = order[at]!;
        if (!this.#palette[4 * codes[point]! + 3]) continue;
        const distance = (xy[2 * point]! - x) ** 2 + (xy[2 * point + 1]! - y) ** 2;
        if (distance < nearest) [found, nearest] = [point, distance];
      }
    }
    return found;
  }

  /** Draw again at the next frame. */
  redraw(): void {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** Give back what the drawing needs. */
  close(): void {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#rest);
    this.#frame = -1;
    this.#resized.disconnect();
    this.#webgl?.close();
  }

  #draw(): void {
    this.#frame = 0;
    // The ratio of pixels changes without the size when the window goes to another screen.
    this.#resize();
    this.moved();
    const pixels = this.canvas.width / Math.max(this.canvas.clientWidth, 1);
    const size = this.#pointSize() * pixels;
    if (this.#webgl) this.#webgl.draw(this.view, this.cloud.count, size, pixels);
    else {
      const count = this.#moving ? Math.min(this.cloud.count, MOVING_IMAGES) : this.cloud.count;
      drawPicture(this.canvas, { ...this.cloud, count }, this.view, this.#palette, size, pixels);
    }
  }

  /** Draw what moves at once, and every point when it rests. */
  #move(): void {
    this.#moving = true;
    clearTimeout(this.#rest);
    this.#rest = window.setTimeout(() => {
      this.#moving = false;
      if (!this.#webgl) this.redraw();
    }, REST_MS);
    this.redraw();
  }

  /** Diameter of a point in CSS pixels: smaller the more there are, larger the nearer one looks. */
  #pointSize(): number {
    const area = this.canvas.clientWidth * this.canvas.clientHeight;
    const spacing = Math.sqrt(area / Math.max(1, this.cloud.codes.length));
    const magnified = (this.#fitted / this.view.perPixel) ** 0.45;
    return Math.min(11, Math.max(1.6, 0.38 * spacing) * magnified);
  }

  #resize(): void {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) =>
      Math.max(1, Math.round(side * Math.min(2, devicePixelRatio || 1))),
    ) as [number, number];
    if (canvas.width === width && canvas.height === height) return;
    const before = this.#fitted;
    const shown = this.view;
    canvas.width = width;
    canvas.height = height;
    this.fit();
    // What was magnified stays magnified around the same centre.
    if (shown.perPixel < before * 0.99) this.view = { ...shown, perPixel: (shown.perPixel / before) * this.#fitted };
    this.redraw();
  }

  #column(x: number): number {
    const [x0, x1] = this.extent;
    return cellOf((x - x0) / (x1 - x0));
  }

  #line(y: number): number {
    const [, , y0, y1] = this.extent;
    return cellOf((y - y0) / (y1 - y0));
  }

  /** Points by cell: a counting sort. */
  #sorted(): { starts: Uint32Array; order: Uint32Array } {
    const { xy, count } = this.cloud;
    const cells = new Uint16Array(count);
    const starts = new Uint32Array(CELLS * CELLS + 1);
    for (let point = 0; point < count; point++) {
      const cell = this.#line(xy[2 * point + 1]!) * CELLS + this.#column(xy[2 * point]!);
      cells[point] = cell;
      starts[cell + 1]! += 1;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell++) starts[cell + 1]! += starts[cell]!;
    const next = starts.slice();
    const order = new Uint32Array(count);
    for (let point = 0; point < count; point++) order[next[cells[point]!]!++] = point;
    return { starts, order };
  }
}

function cellOf(part: number): number {
  return Math.min(CELLS - 1, Math.max(0, Math.floor(part * CELLS) || 0));
}
