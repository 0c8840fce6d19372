"""Images: frozen disk states of nodes, and the guest that instances boot."""
