"""What agents changed: statistics of their deltas by layer and module, as a table, JSON and a page; advice in words."""
