"""What features are used for, each beside a control: probes of an attribute, attacks on pixels, and edits."""
