// Files that the page makes of what it shows: CSV, JSON and PNG.

export type Cell = string | number | boolean | null | undefined;
export type Row = Record<string, Cell>;

// Spreadsheets compute a text cell that begins with one of these; an apostrophe before it makes it a text again.
const FORMULA = /^[=+\-@\t\r\n]/;

function cell(value: Cell): string {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A table as CSV (RFC 4180) in UTF-8, with the mark by which spreadsheets know the encoding. */
export function csv(rows: readonly Row[]): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [columns.map(cell), ...rows.map((row) => columns.map((column) => cell(row[column])))];
  return `\ufeff${lines.map((line) => `${line.join(",")}\r\n`).join("")}`;
}

/** Save a file of that name to the reader's downloads. */
export function save(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads the file after this call returns.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A name for a file: letters, digits and dashes. */
export function fileName(...parts: readonly string[]): string {
  const words = parts.map((part) => part.replace(/[^\p{L}\p{N}.]+/gu, "-").replace(/^[-.]+|[-.]+$/g, ""));
  return words.filter(Boolean).join("_").slice(0, 120) || "headspan";
}
