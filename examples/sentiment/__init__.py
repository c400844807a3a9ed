"""Human-rated sentiment in four domains, one adapter each: finetuned side by side, then served in one batch."""
