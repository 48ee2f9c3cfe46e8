"""The scores of a split, and the load of its experts."""
