"""Which heads are pruned: groups by score, label or list, and random ones beside them."""
