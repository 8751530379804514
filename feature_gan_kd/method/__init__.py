"""The paper: losses, topology, discriminators, connections, the update."""
