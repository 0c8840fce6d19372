"""What can be built: services, layer profiles, releases and topologies in YAML, and the graph over them."""
