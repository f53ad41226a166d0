/** Points drawn into a picture, for browsers without WebGL: squares of whole pixels. */

import { NONE, type Cloud, type Palette, type View } from "./points_cloud";

export function drawPicture(
  canvas: HTMLCanvasElement,
  { xy, codes, count }: Cloud,
  view: View,
  palette: Palette,
  size: number,
  pixels: number,
): void {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { width, height } = canvas;
  const picture = context.createImageData(width, height);
  const target = picture.data;
  const side = Math.max(1, Math.round(size * 0.85));
  const scale = pixels / view.perPixel;
  for (const behind of [true, false]) {
    for (let point = 0; point < count; point++) {
      const code = codes[point]!;
      const alpha = palette[4 * code + 3]! / 255;
      if ((code === NONE) !== behind || !alpha) continue;
      const left = Math.round(width / 2 + (xy[2 * point]! - view.x) * scale - side / 2);
      const top = Math.round(height / 2 - (xy[2 * point + 1]! - view.y) * scale - side / 2);
      if (left < -side || top < -side || left > width || top > height) continue;
      for (let y = Math.max(0, top); y < Math.min(height, top + side); y++) {
        for (let x = Math.max(0, left); x < Math.min(width, left + side); x++) {
          const at = 4 * (y * width + x);
          // Over what is there already; channels are not premultiplied.
          const under = (target[at + 3]! / 255) * (1 - alpha);
          const both = alpha + under;
          for (let channel = 0; channel < 3; channel++)
            target[at + channel] = (palette[4 * code + channel]! * alpha + target[at + channel]! * under) / both;
          target[at + 3] = 255 * both;
        }
      }
    }
  }
  context.putImageData(picture, 0, 0);
}
