import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// Assets are files of their own: the page's content security policy allows no inline scripts.
export default defineConfig({
  base: "./",
  plugins: [svelte()],
  build: { outDir: "../static", emptyOutDir: true, assetsInlineLimit: 0, sourcemap: false, modulePreload: { polyfill: false } },
  // `npm run dev` serves the page from its sources, and passes requests on to an explorer that runs at this port.
  server: { proxy: { "/api": `http://127.0.0.1:${process.env.EXPLORER_PORT ?? 8000}` } },
});
