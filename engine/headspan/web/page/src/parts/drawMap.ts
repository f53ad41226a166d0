// Draw a picture with a map over the part that the model saw.

import { frameOf, mapPixels, onCanvas, patchBox, WHOLE, type Grid, type Part, type Patch } from "./maps";

/** How a map is shown; `threshold` is a share of the value of full colour. */
export interface Look {
  threshold: number;
  opacity: number;
  smooth: boolean;
}

export interface Drawing {
  /** Null where the picture cannot be read: the map then lies on a plain ground. */
  picture: HTMLImageElement | null;
  seen: Part | null;
  values: Grid | null;
  full: number;
  look: Look;
}

// Under a map, the picture in grey is blended with white, as in the report (headspan.plots.colours).
const WHITE_OVER_GREY = 0.5;
// What the model did not see, and the ground where there is no picture, on light and dark pages.
const UNSEEN = "rgb(128 128 128 / 0.6)";
const GROUND = "rgb(128 128 128 / 0.25)";
// A picture that is enlarged more than this shows its pixels.
const COARSE = 3;
// A smooth map is computed with this many pixels along its longer side at most.
const SMOOTH_SIDE = 384;

/** Draw over the whole canvas, whose shape is that of the frame. */
export function drawMap(canvas: HTMLCanvasElement, drawing: Drawing, marked: Patch | null = null): void {
  const context = canvas.getContext("2d");
  if (!context || canvas.width === 0 || canvas.height === 0) return;
  const { width, height } = canvas;
  const frame = frameOf(drawing.seen);
  const whole = onCanvas(WHOLE, frame, width, height);
  const box = onCanvas(drawing.seen ?? WHOLE, frame, width, height);
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  context.fillStyle = GROUND;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.imageSmoothingEnabled = !drawing.picture || drawing.picture.naturalWidth * COARSE > whole.width;
  if (drawing.picture) context.drawImage(drawing.picture, whole.x, whole.y, whole.width, whole.height);
  const { values, look } = drawing;
  if (!values) return;
  context.globalAlpha = look.opacity;
  if (drawing.picture) context.drawImage(grey(drawing.picture), whole.x, whole.y, whole.width, whole.height);
  const map = mapCanvas(values, look, drawing.full, box);
  context.imageSmoothingEnabled = look.smooth;
  context.drawImage(map, box.x, box.y, box.width, box.height);
  context.globalAlpha = 1;
  shadeUnseen(context, whole, box);
  if (marked) {
    const patch = patchBox(marked, values.length, values[0]?.length ?? 1, box);
    outline(context, patch);
  }
}

function grey(picture: HTMLImageElement): HTMLCanvasElement {
  const canvas = blank(picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext("2d")!;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-atop";
  context.fillStyle = `rgb(255 255 255 / ${WHITE_OVER_GREY})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

function mapCanvas(values: Grid, look: Look, full: number, box: DOMRect): HTMLCanvasElement {
  const scale = Math.min(1, SMOOTH_SIDE / Math.max(box.width, box.height));
  const width = look.smooth ? Math.max(1, Math.round(box.width * scale)) : (values[0]?.length ?? 1);
  const height = look.smooth ? Math.max(1, Math.round(box.height * scale)) : values.length;
  const canvas = blank(width, height);
  const pixels = mapPixels(values, look.threshold * full, full, look.smooth, width, height);
  canvas.getContext("2d")!.putImageData(pixels, 0, 0);
  return canvas;
}

function shadeUnseen(context: CanvasRenderingContext2D, whole: DOMRect, box: DOMRect): void {
  context.fillStyle = UNSEEN;
  const beyond = new Path2D();
  beyond.rect(whole.x, whole.y, whole.width, whole.height);
  const inside = new Path2D();
  inside.rect(box.x, box.y, box.width, box.height);
  beyond.addPath(inside);
  context.save();
  context.clip(wholePath(whole));
  context.fill(beyond, "evenodd");
  context.restore();
}

function wholePath(whole: DOMRect): Path2D {
  const path = new Path2D();
  path.rect(whole.x, whole.y, whole.width, whole.height);
  return path;
}

function outline(context: CanvasRenderingContext2D, box: DOMRect): void {
  context.lineWidth = 4;
  context.strokeStyle = "rgb(0 0 0 / 0.7)";
  context.strokeRect(box.x, box.y, box.width, box.height);
  context.lineWidth = 2;
  context.strokeStyle = "#ffffff";
  context.strokeRect(box.x, box.y, box.width, box.height);
}

export function blank(width: number, height: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}
