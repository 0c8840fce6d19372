"""Nodes: the machines of a lab. A provider makes, starts, stops and removes nodes of one kind."""
