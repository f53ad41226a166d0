// Neighbours as rows of a table.

import type { Neighbours } from "../api/types";
import type { Row } from "./downloads";

/** A row for each image, the nearest first. */
export function ranked(answer: Neighbours): Row[] {
  return answer.hits.map((hit, place) => ({
    store: answer.store,
    through: answer.through,
    rank: place + 1,
    row: hit.row,
    key: hit.key,
    score: hit.score,
    caption: hit.caption,
    class: hit.class_name,
  }));
}
