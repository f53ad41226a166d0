/** Points drawn with WebGL 2. A lost context is set up again from the points in memory when it returns. */

import type { Cloud, Palette, View } from "./points_cloud";

const VERTEX = `#version 300 es
in vec2 position;
in uint code;
uniform vec2 centre;
uniform vec2 scale;
uniform float size;
uniform bool behind;
uniform sampler2D palette;
out vec4 colour;
void main() {
  colour = texelFetch(palette, ivec2(int(code), 0), 0);
  bool drawn = (code == 255u) == behind && colour.a > 0.0;
  gl_Position = drawn ? vec4((position - centre) * scale, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = behind ? size * 0.85 : size;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 colour;
out vec4 drawn;
uniform float soft;
void main() {
  float radius = length(gl_PointCoord - 0.5) * 2.0;
  float inside = 1.0 - smoothstep(1.0 - soft, 1.0, radius);
  drawn = vec4(colour.rgb, 1.0) * colour.a * inside;
}`;

/** Whether WebGL computes on the processor, by the name that its renderer gives. */
function onProcessor(): boolean {
  // On a canvas of its own: one that had a WebGL context can hold no picture.
  const gl = document.createElement("canvas").getContext("webgl2");
  const names = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = gl && names ? String(gl.getParameter(names.UNMASKED_RENDERER_WEBGL)) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|softpipe|basic render/i.test(name);
}

export class WebGlPoints {
  #cloud: Cloud | null = null;
  #palette: Palette | null = null;
  #program!: WebGLProgram;
  #positions!: WebGLBuffer;
  #codes!: WebGLBuffer;
  #places: Record<string, WebGLUniformLocation | null> = {};
  #stopping = new AbortController();

  private constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly images: number,
    restored: () => void,
  ) {
    this.#setUp();
    const { signal } = this.#stopping;
    gl.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault(), { signal });
    const again = () => {
      this.#setUp();
      if (this.#cloud) this.update(this.#cloud, 0, this.#cloud.count, "both");
      if (this.#palette) this.paint(this.#palette);
      restored();
    };
    gl.canvas.addEventListener("webglcontextrestored", again, { signal });
  }

  /** On a canvas; null where the browser has no WebGL 2, or, if it has to be fast, only one without a graphics card. */
  static on(canvas: HTMLCanvasElement, images: number, restored: () => void, fast: boolean): WebGlPoints | null {
    if (fast && onProcessor()) return null;
    const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true });
    if (!gl) return null;
    return new WebGlPoints(gl, images, restored);
  }

  update(cloud: Cloud, from: number, count: number, what: "both" | "codes"): void {
    this.#cloud = cloud;
    const { gl } = this;
    if (gl.isContextLost()) return;
    if (what === "both") {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#positions);
      gl.bufferSubData(gl.ARRAY_BUFFER, 8 * from, cloud.xy, 2 * from, 2 * count);
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#codes);
    gl.bufferSubData(gl.ARRAY_BUFFER, from, cloud.codes, from, count);
  }

  paint(palette: Palette): void {
    this.#palette = palette;
    const { gl } = this;
    if (gl.isContextLost()) return;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
  }

  draw(view: View, count: number, size: number, pixels: number): void {
    const { gl } = this;
    if (gl.isContextLost()) return;
    const { width, height } = gl.canvas;
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.#places.centre!, view.x, view.y);
    gl.uniform2f(this.#places.scale!, (2 * pixels) / (view.perPixel * width), (2 * pixels) / (view.perPixel * height));
    gl.uniform1f(this.#places.size!, size);
    gl.uniform1f(this.#places.soft!, Math.min(1, 2.4 / size));
    for (const behind of [1, 0]) {
      gl.uniform1i(this.#places.behind!, behind);
      gl.drawArrays(gl.POINTS, 0, count);
    }
  }

  close(): void {
    this.#stopping.abort();
    this.gl.deleteBuffer(this.#positions);
    this.gl.deleteBuffer(this.#codes);
    this.gl.deleteProgram(this.#program);
  }

  #setUp(): void {
    const { gl } = this;
    if (gl.isContextLost()) return;
    this.#program = gl.createProgram()!;
    for (const [kind, source] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ] as const) {
      const shader = gl.createShader(kind)!;
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.#program, shader);
    }
    gl.linkProgram(this.#program);
    if (!gl.getProgramParameter(this.#program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(this.#program) ?? "no log");
    gl.useProgram(this.#program);
    for (const name of ["centre", "scale", "size", "soft", "behind"]) this.#places[name] = gl.getUniformLocation(this.#program, name);

    this.#positions = gl.createBuffer()!;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#positions);
    gl.bufferData(gl.ARRAY_BUFFER, 8 * this.images, gl.DYNAMIC_DRAW);
    const position = gl.getAttribLocation(this.#program, "position");
    gl.enableVertexAttribArray(position);
    gl.vertexAttribPointer(position, 2, gl.FLOAT, false, 0, 0);

    this.#codes = gl.createBuffer()!;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.#codes);
    gl.bufferData(gl.ARRAY_BUFFER, this.images, gl.DYNAMIC_DRAW);
    const code = gl.getAttribLocation(this.#program, "code");
    gl.enableVertexAttribArray(code);
    gl.vertexAttribIPointer(code, 1, gl.UNSIGNED_BYTE, 0, 0);

    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }
}
