"""Notes on the members of a tar that are neither rows nor companions of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from headspan.member_names import MemberNames
from headspan.shards.joining import Unused
from headspan.shards.samples import BadImage

# The row of a note that concerns no image.
NO_ROW = -1
# How many of several members a note names.
_NAMED_MEMBERS = 10


def note_unused(
    unused: Unused, linked: AbstractSet[int], source: str, names: MemberNames, on_note: Callable[[BadImage], None]
) -> None:
    """Call `on_note` for the members in `unused`, except those whose data a link uses, at the offsets `linked`."""

    def note(path: str, reason: str) -> None:
        on_note(BadImage(NO_ROW, path, source, reason))

    for entry in unused.without_image:
        # With an image of the same key it would be part of a sample. Without, it may be an image of unknown extension.
        if entry.offset not in linked:
            note(entry.path, "is neither an image nor a member that belongs to one")
    for entry in unused.away_from_image:
        if entry.offset not in linked:
            note(entry.path, "not used, because its key repeats in the tar and no image is next to it")
    if unmatched := [entry for entry in unused.unmatched if entry.offset not in linked]:
        paths = [entry.path for entry in unmatched]
        reason = f"members that are not used, because no image with their key has their name: {listed(paths)}"
        has_caption = any(entry.field.role == "caption" for entry in unmatched)
        note(paths[0], reason + ("; select a caption with --caption-member" if has_caption else ""))
    if unused.masks:
        reason = f"treated as masks of the images beside them, so they have no rows: {listed(unused.masks)}"
        note(unused.masks[0], f"{reason}; select the images that get rows with --image-member")
    if unused.other_images:
        others = listed(unused.other_images)
        reason = f"images that --image-member {names.image} does not select, so they have no rows: {others}"
        note(unused.other_images[0], reason)


def listed(paths: Sequence[str]) -> str:
    """How many paths there are, and the first of them."""
    more = f" and {len(paths) - _NAMED_MEMBERS:,} more" if len(paths) > _NAMED_MEMBERS else ""
    return f"{len(paths):,} ({', '.join(paths[:_NAMED_MEMBERS])}{more})"
