"""What the kernels are measured against, and the models they run in. Imports the harness."""
