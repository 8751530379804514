"""Looking at models: wiring, cost, similarity, Grad-CAM."""
