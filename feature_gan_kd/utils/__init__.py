"""What every folder may use: errors, files, the hub's cache, memory."""
