"""The command line: it parses and prints, and knows nothing that the core does not."""
