"""How good a model is: baselines and reports."""
