"""From recorded results to tables, plots and pages. From outside imports harness.record only."""
