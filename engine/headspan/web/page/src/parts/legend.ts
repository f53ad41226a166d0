// The legend of maps: the colours from full against, over nothing, to full for, with the threshold.

import { colourOf, decimals } from "./maps";
import { signed } from "../numbers";

export const LEGEND_HEIGHT = 76;
const STEPS = 61;

/** The colours of the legend as a CSS gradient. */
export function gradient(full: number, threshold: number): string {
  const stops = Array.from({ length: STEPS }, (_, place) => {
    const value = ((2 * place) / (STEPS - 1) - 1) * full;
    const [red, green, blue, alpha] = colourOf(value, threshold * full, full);
    const from = ((100 * place) / STEPS).toFixed(2);
    const to = ((100 * (place + 1)) / STEPS).toFixed(2);
    return `rgb(${red} ${green} ${blue} / ${(alpha / 255).toFixed(3)}) ${from}% ${to}%`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

interface Drawn {
  top: number;
  width: number;
  full: number;
  threshold: number;
  title: string;
}

/** The legend below an exported picture. */
export function drawLegend(context: CanvasRenderingContext2D, { top, width, full, threshold, title }: Drawn): void {
  const [left, across] = [24, Math.min(width - 48, 420)];
  context.font = "15px system-ui, sans-serif";
  context.fillStyle = "#1b2126";
  context.textBaseline = "middle";
  context.fillText(title, left, top + 16, width - 48);
  context.strokeStyle = "#5c666f";
  for (let x = 0; x < across; x++) {
    const value = ((2 * (x + 0.5)) / across - 1) * full;
    const [red, green, blue, alpha] = colourOf(value, threshold * full, full);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha / 255})`;
    context.fillRect(left + x, top + 30, 1, 14);
  }
  context.strokeRect(left + 0.5, top + 30.5, across - 1, 13);
  context.fillStyle = "#5c666f";
  context.font = "13px system-ui, sans-serif";
  const digits = decimals(full);
  context.fillText(signed(-full, digits), left, top + 58);
  context.textAlign = "center";
  context.fillText("0", left + across / 2, top + 58);
  context.textAlign = "right";
  context.fillText(signed(full, digits), left + across, top + 58);
  context.textAlign = "left";
}
