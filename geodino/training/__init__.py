"""Training of the models that geodino ships; nothing here is needed to run them."""
