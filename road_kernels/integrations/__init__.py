"""road_kernels inside other frameworks. Nothing here is imported, and no framework touched, until it is asked for."""
