/** The page's address, `#/STORE/SCREEN/ARGUMENT?key=value`: whatever a user may share or go back to is in it. */

export interface Address {
  /** The store's name; empty for the first store that the server shows. */
  store: string;
  /** The screen's name; empty for the store itself. */
  screen: string;
  /** What the screen is about: a head, an image, a label. */
  argument: string;
  query: Record<string, string[]>;
}

/** Values of a query as callers write them; null, undefined, "" and [] leave a key out. */
export type Query = Record<string, string | number | readonly string[] | null | undefined>;

/** A place to link to; what is left out is empty, except the store, which stays. */
export interface Target {
  store?: string;
  screen?: string;
  argument?: string;
  query?: Query;
}

export function parse(hash: string): Address {
  const [path = "", search = ""] = split(hash.replace(/^#?\/?/, ""), "?");
  const [store = "", screen = "", ...argument] = path.split("/").map(decoded);
  const query: Record<string, string[]> = {};
  for (const [key, value] of new URLSearchParams(search)) (query[key] ??= []).push(value);
  return { store, screen, argument: argument.join("/"), query };
}

export function format({ store, screen, argument, query }: Address): string {
  const path = [store, screen, argument].map(encodeURIComponent);
  while (path.length && !path[path.length - 1]) path.pop();
  const search = new URLSearchParams();
  for (const [key, values] of Object.entries(query)) for (const value of values) search.append(key, value);
  const text = search.toString();
  return `#/${path.join("/")}${text ? `?${text}` : ""}`;
}

class Here {
  #now = $state.raw<Address>(parse(location.hash));

  get store(): string {
    return this.#now.store;
  }
  get screen(): string {
    return this.#now.screen;
  }
  get argument(): string {
    return this.#now.argument;
  }
  get query(): Record<string, string[]> {
    return this.#now.query;
  }
  /** The first value of a key of the query; empty if there is none. */
  one(key: string): string {
    return this.#now.query[key]?.[0] ?? "";
  }
  /** The run of text spans that the query names; empty if none. Screens of features and descriptions have other runs. */
  get spansRun(): string {
    return /^(feature|descriptions)/.test(this.screen) ? "" : this.one("run");
  }
  /** Every value of a key of the query. */
  all(key: string): string[] {
    return this.#now.query[key] ?? [];
  }
  /** Read the browser's address again. */
  read(): void {
    this.#now = parse(location.hash);
  }
}

/** Where the page is. Reading it in a component or effect follows its changes. */
export const here = new Here();

/** The address of a target, for `href`. */
export function link(target: Target): string {
  return format({
    store: target.store ?? here.store,
    screen: target.screen ?? "",
    argument: target.argument ?? "",
    query: cleaned(target.query ?? {}),
  });
}

/** Go to a target or to an address from `link`, as a new step of the history. */
export function go(target: Target | string): void {
  const address = typeof target === "string" ? target : link(target);
  if (address === location.hash) return;
  history.pushState(null, "", address);
  here.read();
  scrollTo(0, 0);
}

/** Change keys of this address's query and keep the others; a new step of the history only if `step`. */
export function change(query: Query, step = false): void {
  const merged: Query = { ...here.query, ...query };
  const address = format({
    store: here.store,
    screen: here.screen,
    argument: here.argument,
    query: cleaned(merged),
  });
  if (address === location.hash) return;
  if (step) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  here.read();
}

/** Follow links inside the page, back, forward, and addresses that are typed. Returns how to stop. */
export function follow(): () => void {
  const read = () => here.read();
  const click = (event: MouseEvent) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const anchor = event.target instanceof Element ? event.target.closest("a") : null;
    const address = anchor?.getAttribute("href");
    if (!anchor || !address?.startsWith("#/") || anchor.target || anchor.hasAttribute("download")) return;
    event.preventDefault();
    go(address);
  };
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  addEventListener("click", click);
  return () => {
    removeEventListener("popstate", read);
    removeEventListener("hashchange", read);
    removeEventListener("click", click);
  };
}

function split(text: string, mark: string): [string, string] {
  const at = text.indexOf(mark);
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    // A stray per cent sign that somebody typed.
    return part;
  }
}

function cleaned(query: Query): Record<string, string[]> {
  const kept: Record<string, string[]> = {};
  for (const [key, value] of Object.entries(query)) {
    const values = (Array.isArray(value) ? value : [value]).filter((one) => one !== null && one !== undefined && one !== "");
    if (values.length) kept[key] = values.map(String);
  }
  return kept;
}
