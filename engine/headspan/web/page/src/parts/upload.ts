// Images that are dropped in, pasted or chosen: what is one, and how it is sent to the server.

import type { Upload } from "../api/types";
import { api, send } from "../api/client";

/** The largest file that the server accepts. */
const LARGEST_BYTES = 32 * 1024 * 1024;

/** The image among what was dropped or pasted; null if there is none. */
export function imageOf(data: DataTransfer | null): File | null {
  const files = [...(data?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
}

/** Whether what is being dragged may be a file. */
export function holdsFile(data: DataTransfer | null): boolean {
  return [...(data?.types ?? [])].includes("Files");
}

/** Send an image; the answer's id stands where addresses name an image. Raises a sentence if it is not accepted. */
export async function upload(store: string, file: File): Promise<Upload> {
  if (file.size === 0) throw new Error(`${file.name || "The file"} is empty; choose an image.`);
  if (file.size > LARGEST_BYTES) {
    const megabytes = (file.size / 1024 / 1024).toFixed(0);
    throw new Error(`${file.name || "The image"} has ${megabytes} MB; at most 32 MB are accepted, so make it smaller.`);
  }
  return send<Upload>(api(store, "uploads"), file);
}
