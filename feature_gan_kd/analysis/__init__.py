"""Looking at models: topology, connections, cost, similarity of feature maps, Grad-CAM."""
