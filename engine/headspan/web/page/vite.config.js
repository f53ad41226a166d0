import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Assets are files of their own: the page's content security policy allows no inline scripts.
export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: { outDir: "../static", emptyOutDir: true, assetsInlineLimit: 0, sourcemap: false },
});
