"""Two tasks in disjoint halves of one adapter, trained at once from mixed batches, used alone or together."""
