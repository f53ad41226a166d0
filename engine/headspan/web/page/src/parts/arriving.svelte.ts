// The image that is on its way from the reader to the server: one at a time, whichever part of the page it came from.

import { go } from "../address.svelte";
import { server } from "../api/status.svelte";
import { upload } from "./upload";

type Opened = (id: string) => void;

class Arriving {
  /** Whether an image is being sent. */
  busy = $state(false);
  /** Why the last one did not arrive, as a sentence. */
  error = $state<string | null>(null);
  #taker: Opened | null = null;

  /** Let a screen take the images that are dropped or pasted while it is shown. Returns how to stop. */
  take(opened: Opened): () => void {
    this.#taker = opened;
    return () => {
      if (this.#taker === opened) this.#taker = null;
    };
  }

  /** Send a file, then give its id to the screen that takes images, or open the image's own screen. */
  async send(file: File | null): Promise<void> {
    const store = server.store?.name;
    if (this.busy) return;
    if (!store) {
      this.error = "The page does not know its stores yet; drop the image in again once it shows one.";
      return;
    }
    if (file === null) {
      this.error = "What was dropped holds no file; drop an image file, or copy an image and paste it.";
      return;
    }
    this.busy = true;
    this.error = null;
    try {
      const { id } = await upload(store, file);
      if (this.#taker) this.#taker(id);
      else go({ store, screen: "image", argument: id });
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
    } finally {
      this.busy = false;
    }
  }
}

export const arriving = new Arriving();
